"""The model types as a page: `python -m foveate.cli.families_table > docs/families.md`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from foveate.errors import UnsupportedModelError
from foveate.families.refusals import NO_VIDEO, type_refusal
from foveate.families.tables import (
    ALWAYS_TESTED,
    NEEDS_TORCHVISION,
    ONE_TOKEN,
    RESAMPLED,
    TESTED,
    TEXT_POSITIONS,
)
from foveate.inference.doctor import Findings, examine
from foveate.inference.loading import CAUSAL

HEADERS = ("type", "decoder layers", "tower signal", "video", "methods that cannot", "tested")

HEAD = """\
# Model types

Every type that `AutoModelForImageTextToText` of transformers {version} knows, built from its default configuration
without weights and probed, as `foveate doctor --model M` does with a checkpoint's. Each is tested or refused; a test
fails for one that is neither. (`python -m foveate.cli.families_table > docs/families.md` writes this page.)

*Decoder layers*: `full` ones see everything, `sliding` and `chunked` ones a window, `linear` ones have no keys per
token, `shared` ones read the keys of an earlier layer. *Tower signal*: what received attention is taken from. Where
it is `none`, what a tower would say is replaced, for all methods alike: projected features stand in for its keys and
hidden states, and the order in which max-min diversity chooses them for the attention that they receive; the trace
says so. *Methods that cannot*: with their default parameters; `foveate doctor` says why. GlimpsePrune was trained on
a tower's features, which nothing stands in for; PruMerge without a `keep` counts outliers of attention, which ranks
have none of.

*Tested*: `every run` and `make families` mean tiny random models (`tests/families`) of {count} types. Keeping
everything is the stock model bit for bit; dropping equals masking within 1e-5 at several stages, in padded batches,
with eager and sdpa attention, with beams, in second turns that bring text or a new image; a changed patch is read at
the token that it makes; attention that methods read is, element by element, that of stock eager code; operations are
counted within 1 %. Recurrent layers have seen what they drop if it is only masked; they are held to the stock
language model on the survivors. Videos are tested on every type with a `yes`.

Images of a picture in tiles: budgets are per picture. ViTCoP's clusters and evidence boxes lie in the whole picture,
where tiles are known to be side by side from what stands between them (Idefics 3, SmolVLM), else arranged as nearly
square as their number allows; VScan's windows, HiPrune's neighbours and Downsample's rectangles are those of each
tile, which is what the tower saw as an image. On {resampled} and deepseek_ocr2 tokens are learned queries without a
place: pictures only count them, and methods that use places take their order. MiniCPM's slices have a budget each.

Videos. On {one_token} they stand on the token of images, so stock code takes images or videos in a call, not both.
{no_video} Molmo 2's pictures see each other in both directions; a later turn with a new one is not tested there.

Without torchvision images are prepared by the stock processors' own code for PIL, also for models whose processors
want torchvision for videos. Transformers has no such code for {needs_torchvision}: these need torchvision.

Memory: `python benchmarks/memory.py` reads one picture of 16,384 visual tokens with mid-llava (float32, torch 2.13, one
thread of a Xeon CPU, keep 1/9, a fresh process each). Peak resident memory during `generate`: stock 1.96 GiB, ViTCoP
1.18, VisionZip 1.00, FastV 1.21; reading the tower and choosing take less than pruning saves.

Stock code sets limits. On {positions} it gives the image of a later turn positions of text. On fuyu, llama4 and the
GLM types it mixes up or refuses beams with images, on Qwen3.5 MoE padding moves the chunks of its recurrence
(differences of 1e-5). Layers that choose keys by an index of their own (sparse attention) score every key of the
cache by its place: dropping would need the index rebuilt layer by layer, so such types are refused.
"""

UNKNOWN = "as a checkpoint says: the default configuration is no whole model"


@cache
def findings() -> dict[str, Findings | str]:
    """Per type what was found, or why it cannot be pruned. Takes about a minute."""
    found: dict[str, Findings | str] = {}
    for model_type in sorted({*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, *CAUSAL}):
        try:
            config = CONFIG_MAPPING[model_type]()
            for name in ("image_token_id", "video_token_id"):  # which checkpoints of some types must bring
                if getattr(config, name, 0) is None:
                    setattr(config, name, 1)
            found[model_type] = type_refusal(config) or examine(config)
        except UnsupportedModelError as error:
            found[model_type] = str(error)
        except Exception:  # some default configurations describe no model
            if tested(model_type):
                found[model_type] = UNKNOWN
    return found


def rows() -> Iterator[tuple[str, ...]]:
    """Cells of every type that can be pruned."""
    for model_type, found in findings().items():
        if tested(model_type) and isinstance(found, str):
            yield model_type, UNKNOWN, "", "", "", tested(model_type)
        if isinstance(found, Findings):
            video = "yes" if "video" in found.modalities else ""
            cannot = ", ".join(found.cannot) or "-"
            yield model_type, found.layers, found.signal, video, cannot, tested(model_type)


def tested(model_type: str) -> str:
    """By what, in words."""
    return "every run" if model_type in ALWAYS_TESTED else "`make families`" if model_type in TESTED else ""


def render() -> str:
    """The page as Markdown."""
    import transformers

    head = HEAD.format(
        version=transformers.__version__,
        count=len(ALWAYS_TESTED) + len(TESTED),
        positions=", ".join(TEXT_POSITIONS),
        resampled=", ".join(sorted(RESAMPLED)),
        one_token=", ".join(sorted(ONE_TOKEN)),
        no_video=" ".join(f"Videos of {name} are refused: {why}." for name, why in NO_VIDEO.items()),
        needs_torchvision=", ".join(NEEDS_TORCHVISION),
    )
    lines = [head, f"| {' | '.join(HEADERS)} |", "|---" * len(HEADERS) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows()]
    lines += ["", "## Refused", "", "| type | why |", "|---|---|"]
    refused = {name: found for name, found in findings().items() if isinstance(found, str) and not tested(name)}
    lines += [f"| {name} | {found} |" for name, found in refused.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render(), end="")
