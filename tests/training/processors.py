"""Stock processors for the tiny model types, with a tokenizer of single letters."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import transformers
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from foveate.families import adapt
from foveate.inference.processor import ImageTextProcessor
from foveate.inference.video_processor import VideoProcessor
from tests.families.tiny import BREAK, END, IMAGE, START, VIDEO, VOCAB, build
from tests.families.types import *  # noqa: F403 - fills the table

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% elif part.type == 'video' %}<|vision_start|><video><|vision_end|>{% else %}IMAGE{% endif %}{% endfor %}"
    "{% if m.role == 'assistant' %}<eos>{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
SPECIAL = {
    "<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3, "<image>": IMAGE, "<video>": VIDEO, "<|vision_start|>": START,
    "<|vision_end|>": END, "[IMG_BREAK]": BREAK, "[IMG_END]": 118, "<global-img>": 117,
    "<fake_token_around_image>": 116,
}  # fmt: skip


def tokenizer() -> Any:
    """Letters and digits as tokens, placeholders where tiny models have them."""
    letters = dict(zip(string.ascii_lowercase + string.digits + " .?:<>\n", range(5, 59), strict=False))
    known = letters | SPECIAL
    unused = iter(n for n in range(VOCAB) if n not in known.values())
    places = {f"<row_{row}_col_{column}>": next(unused) for row in (1, 2, 3) for column in (1, 2, 3)}
    model = Tokenizer(WordLevel(known | places, unk_token="<unk>"))
    model.normalizer, model.pre_tokenizer = Lowercase(), Split(Regex(r"[\s\S]"), "isolated")
    found = PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    found.add_special_tokens({"additional_special_tokens": [*list(SPECIAL)[4:], *places]})
    return found


def images(kind: str, size: Any, **more: Any) -> Any:
    return getattr(transformers, f"{kind}ImageProcessorPil")(size=size, **more)


def _standing_in(name: str, pictures: Any, videos: VideoProcessor | None) -> Any:
    template = TEMPLATE.replace("IMAGE", "<|vision_start|><image><|vision_end|>")
    return ImageTextProcessor(pictures, tokenizer(), adapt(build(name)), template, videos)


def _stock(kind: str, pictures: Any, **more: Any) -> Any:
    template = TEMPLATE.replace("IMAGE", "<image_placeholder>" if kind == "DeepseekVL" else "<image>")
    return getattr(transformers, f"{kind}Processor")(pictures, tokenizer(), chat_template=template, **more)


SQUARE = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
QWEN = {"shortest_edge": 56 * 56, "longest_edge": 128 * 128}
CLIP = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}

PROCESSORS: dict[str, Callable[[], Any]] = {
    "llava": lambda: _stock("Llava", images("CLIP", **SQUARE), **CLIP),
    "llava_next": lambda: _stock("LlavaNext", images("LlavaNext", **SQUARE, image_grid_pinpoints=[[112, 112]]), **CLIP),
    "idefics3": lambda: _stock("Idefics3", images("Idefics3", {"longest_edge": 112},
                                                  max_image_size={"longest_edge": 56}), image_seq_len=4),
    "qwen2_5_vl": lambda: _standing_in("qwen2_5_vl", images("Qwen2VL", QWEN), VideoProcessor.of(
        "Qwen2VLVideoProcessor", {"size": QWEN, "num_frames": 4})),
    "qwen3_vl": lambda: _standing_in("qwen3_vl", images("Qwen2VL", QWEN, patch_size=16), VideoProcessor.of(
        "Qwen3VLVideoProcessor", {"size": QWEN, "num_frames": 4})),
    "glm4v": lambda: _standing_in("glm4v", images("Glm4v", QWEN), None),
}  # fmt: skip
"""Of every kind one: a square, tiles with newlines, a run a tile, windows, deep features, GLM's."""
