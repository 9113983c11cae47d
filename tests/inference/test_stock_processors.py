"""Stock processors without torchvision: the image part of every family, and with it where it can be imported."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

import foveate
from foveate.errors import InputError, MissingExtraError
from foveate.families import adapt
from foveate.families.tables import ALWAYS_TESTED, NEEDS_TORCHVISION, TESTED
from foveate.inference.batches import encode
from foveate.inference.processor import load_processor
from foveate.inference.stock_processors import pil_image_processor
from tests.families.tiny import END, IMAGE, START, VIDEO, build
from tests.families.types import TABLE
from tests.inference.pairs import chat, picture
from tests.reference import Drop

assert TABLE
NAMED = {
    name: kinds
    for name in (*ALWAYS_TESTED, *TESTED)
    if isinstance(kinds := IMAGE_PROCESSOR_MAPPING_NAMES.get(name), dict)
}
"""Types whose processor transformers tells by the type."""


def processed(kind: Any) -> dict[str, Any]:
    settings = {"image_size": 448} if kind.__name__.startswith("Granite4") else {}
    return dict(kind(**settings)(picture(230, 170), return_tensors="pt"))


@pytest.mark.parametrize("name", sorted(name for name, kinds in NAMED.items() if "pil" in kinds))
def test_images_need_no_torchvision(name: str) -> None:
    kind = getattr(transformers, NAMED[name]["pil"])
    found = processed(kind)
    pixels = [value for value in found.values() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    assert pixels
    assert all(bool(value.isfinite().all()) for value in pixels)
    assert any(float(value.std()) > 0.05 for value in pixels)
    if find_spec("torchvision") is None:
        return
    other = processed(getattr(transformers, NAMED[name]["torchvision"]))
    for key in found:
        if isinstance(found[key], torch.Tensor):
            assert other[key].shape == found[key].shape
            assert (other[key].float() - found[key].float()).abs().mean() < 0.05  # another way to resize


def test_types_without_such_a_processor_are_named() -> None:
    assert {name for name, kinds in NAMED.items() if "pil" not in kinds} == set(NEEDS_TORCHVISION)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is there")
def test_what_needs_torchvision_says_so(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "Llama4ImageProcessor"}')
    with pytest.raises(MissingExtraError, match="Llama4ImageProcessor.*pip install torchvision"):
        pil_image_processor(str(tmp_path))


MARKS = {
    "internvl": {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "smolvlm": {"image_token": "<image>", "fake_image_token": "<fake>", "global_image_token": "<global-img>"},
}  # fmt: skip
IDS = {
    "<img>": START, "</img>": END, "<IMG_CONTEXT>": IMAGE, "<image>": IMAGE, "<video>": VIDEO, "<fake>": 100,
    "<global-img>": 101, "<end_of_utterance>": 102,
}  # fmt: skip
SETTINGS = {"internvl": {"image_seq_length": 16}, "smolvlm": {"image_seq_len": 4}}
TEMPLATES = {"internvl": "<IMG_CONTEXT>", "smolvlm": "<image>"}


def checkpoint(name: str, folder: Path) -> None:
    """A tokenizer, an image processor, settings and a template, as a checkpoint has them."""
    ids = {token: number for token, number in IDS.items() if token == TEMPLATES[name] or number != IMAGE}
    words = {f"w{number}": number for number in range(128) if number not in ids.values()} | ids
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w5"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="w0", extra_special_tokens=MARKS[name]
    )  # fmt: skip
    fast.chat_template = (
        "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}" + TEMPLATES[name]
        + "{% else %} {{ c.text }}{% endif %}{% endfor %}{% endfor %}"
    )  # fmt: skip
    fast.save_pretrained(folder)
    kind = transformers.GotOcr2ImageProcessorPil if name == "internvl" else transformers.SmolVLMImageProcessorPil
    sizes: dict[str, Any] = {"size": {"height": 112, "width": 112}, "min_patches": 1, "max_patches": 4}
    if name == "smolvlm":
        sizes = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}
    kind(**sizes).save_pretrained(folder)
    (folder / "processor_config.json").write_text(str(SETTINGS[name]).replace("'", '"'), encoding="utf-8")


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="the whole processor is used")
@pytest.mark.parametrize("name", sorted(MARKS))
def test_the_stock_processor_works_without_its_video_part(name: str, tmp_path: Path) -> None:
    """Its prompts with tiles, separators and all, and a pruned answer."""
    checkpoint(name, tmp_path)
    model = build(name)
    if name == "smolvlm" and find_spec("num2words") is None:
        with pytest.raises(MissingExtraError, match="num2words"):
            load_processor(str(tmp_path), adapt(model))
        return
    processor = load_processor(str(tmp_path), adapt(model))
    assert type(processor).__name__ == {"internvl": "InternVLProcessor", "smolvlm": "SmolVLMProcessor"}[name]
    inputs = encode(model, processor, [chat(picture(300, 150)), chat(picture(90, 90), text="w7 w8 w9")])
    with foveate.prune(model, Drop((0,), 0.5)) as trace:
        model.generate(**inputs, max_new_tokens=2)
    first, second = trace.last.groups
    assert (first.row, second.row) == (0, 1)
    assert len(first.grids) > 1
    assert int((inputs["input_ids"] == IMAGE).sum()) == len(first.columns) + len(second.columns)
    with pytest.raises(InputError, match="torchvision"):
        encode(model, processor, [[{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]])
