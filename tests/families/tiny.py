"""Tiny random models of any model type, and prompts made of random tokens and pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

LAYERS, VOCAB, IMAGE, VIDEO, START, END, BREAK, AUDIO = 6, 128, 120, 121, 122, 123, 124, 126
FILM, FILM_END = 116, 117
"""Layers of every language model, rows of its embedding, and the special tokens among these."""

Picture = tuple[list[int], dict[str, Tensor]]
"""What an image brings into a prompt: token ids, and tensors that are joined over all images."""

Maker = Callable[[int, int, torch.Generator], Picture]
"""Makes an image of (rows, columns) of tokens, where the type can have such."""

TABLE: dict[str, TinyType] = {}
"""All types by name; the files beside this one fill it."""


@dataclass(frozen=True)
class TinyType:
    """One entry of the table.

    Attributes:
        config: arguments of the type's configuration class, or a function that makes the configuration.
        image, video: makers of inputs.
        frames: steps in time of its videos.
        token_types: the argument that marks visual tokens, if the type needs one.
        kind: class of the model, where the automatic class does not know it.
        on_image_token: whether videos stand on the placeholder token of images.
        exact: whether dropping is masking; not for recurrent layers, in which a masked token still has been seen.
        beams: whether stock code can search with beams.
        joined_along: dimension along which inputs of several images are joined, where it is not the first.
        by_row: whether all images of a row come in one entry, filled up with empty ones to those of the longest row.
        change: applied to the model after it is built.
    """

    model_type: str
    config: Any
    image: Maker
    video: Maker | None = None
    frames: int = 2
    token_types: str | None = None
    kind: str | None = None
    on_image_token: bool = False
    exact: bool = True
    beams: bool = True
    joined_along: tuple[tuple[str, int], ...] = ()
    by_row: bool = False
    change: Callable[[nn.Module], None] | None = None

    def is_known(self) -> bool:
        known = (
            hasattr(transformers, self.kind)
            if self.kind
            else self.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        )
        return known and self.model_type in CONFIG_MAPPING

    def model_class(self) -> Any:
        name = self.kind or MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[self.model_type]
        return getattr(transformers, name if isinstance(name, str) else name[0])

    def make_config(self) -> Any:
        if callable(self.config):
            return self.config()
        return CONFIG_MAPPING[self.model_type](**self.config)

    def batch(self, rows: Sequence[Sequence[Any]], seed: int = 0) -> dict[str, Any]:
        """Inputs of a left-padded batch. A row is a list of parts: a number of text tokens, or ("image" | "video",
        rows, columns)."""
        made = [self._row(row, seed) for row in rows]
        width = max(len(ids) for ids, _ in made)
        ids = torch.zeros(len(made), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, (own, _) in enumerate(made):
            ids[number, width - len(own) :] = own
            mask[number, width - len(own) :] = 1
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        pictures = [picture for _, found in made for picture in (_entry(found) if self.by_row else found)]
        if self.by_row:
            pictures = _filled_up(pictures)
        for name in dict.fromkeys(name for picture in pictures for name in picture):
            found = [picture[name] for picture in pictures if name in picture]
            inputs[name] = torch.cat(found, dict(self.joined_along).get(name, 0))
        return inputs | self.types(ids)

    def types(self, ids: Tensor) -> dict[str, Tensor]:
        """Token types of these ids, if the type needs them."""
        if self.token_types is None:
            return {}
        kinds = (ids == IMAGE).long() + 2 * (ids == VIDEO).long()
        if self.on_image_token:
            inside = (ids == FILM).cumsum(1) > (ids == FILM_END).cumsum(1)
            kinds = torch.where(inside, 2 * kinds, kinds)
        if self.model_type == "molmo2":
            kinds = (ids == IMAGE).long()
        return {self.token_types: torch.zeros_like(kinds) if self.model_type == "paligemma" else kinds}

    def _row(self, parts: Sequence[Any], seed: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
        random = torch.Generator().manual_seed(seed)
        ids, pictures = [], []
        for part in parts:
            if isinstance(part, int):
                ids.append(torch.randint(5, 59, (part,), generator=random))
                continue
            maker = self.video if part[0] == "video" else self.image
            assert maker is not None
            tokens, tensors = maker(part[1], part[2], random)
            ids.append(torch.tensor(tokens))
            pictures.append(tensors)
        return torch.cat(ids), pictures


def _entry(pictures: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """All images of a row as one."""
    return [{name: torch.cat([picture[name] for picture in pictures], 1) for name in pictures[0]}] if pictures else []


def _filled_up(rows: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Entries of equal length, with zeros behind the images."""
    longest = max((value.shape[1] for row in rows for value in row.values()), default=0)
    return [
        {
            name: torch.cat([value, value.new_zeros(1, longest - value.shape[1], *value.shape[2:])], 1)
            for name, value in row.items()
        }
        for row in rows
    ]


def add(model_type: str, config: Any, image: Maker, name: str = "", **more: Any) -> None:
    """An entry of the table, if the installed transformers has the type."""
    entry = TinyType(model_type, config, image, **more)
    if entry.is_known():
        TABLE[name or model_type] = entry


def build(name: str, attention: str = "sdpa") -> Any:
    """The one model of a type and attention backend in this process."""
    return _build(name, attention)


@cache
def _build(name: str, attention: str) -> Any:
    """A model of the type with spread weights, so that attention is not uniform; it never decodes a placeholder."""
    entry = TABLE[name]
    torch.manual_seed(0)
    model = entry.model_class()(entry.make_config()).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, weight.shape[-1] ** -0.5 if "proj" in key or "qkv" in key else 0.3)
            elif "A_log" in key:
                weight.uniform_(0, 1)
            if not torch.isfinite(weight).all():
                weight.zero_()
        for buffer in model.buffers():
            if buffer.is_floating_point() and not torch.isfinite(buffer).all():
                buffer.zero_()
        head = model.get_output_embeddings()
        if head is not None:
            head.weight[59:] = 0
    settings = model.generation_config
    settings.eos_token_id, settings.pad_token_id, settings.cache_implementation = None, 0, None
    model.set_attn_implementation(attention)
    if entry.change is not None:
        entry.change(model)
    return model


# -- parts of configurations


def text(**more: Any) -> dict[str, Any]:
    """A tiny language model."""
    return {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 512, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": None, **more,
    }  # fmt: skip


def tower(size: int = 56, patch: int = 14, **more: Any) -> dict[str, Any]:
    """A tiny vision transformer for square images."""
    return {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2,
        "image_size": size, "patch_size": patch, **more,
    }  # fmt: skip


CLIP = {"model_type": "clip_vision_model", **tower()}
SIGLIP = {"model_type": "siglip_vision_model", **tower()}
LLAMA = {"model_type": "llama", **text()}
QWEN2 = {"model_type": "qwen2", **text()}
IMAGE_IDS = {"image_token_index": IMAGE, "image_token_id": IMAGE}
BOTH_IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO}


# -- parts of inputs


def run(n: int, start: int = START, end: int = END, token: int = IMAGE) -> list[int]:
    """`n` placeholders between two special tokens."""
    return [start, *[token] * n, end]


def noise(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=random)


def square(tokens: int, size: int = 56) -> Maker:
    """Images of one size."""

    def make(h: int, w: int, random: torch.Generator) -> Picture:
        return run(tokens), {"pixel_values": noise(random, 1, 3, size, size)}

    return make


def patches(values: int, merge: int = 2, **shape: Any) -> Maker:
    """Images as rows of patches with a grid."""

    def make(h: int, w: int, random: torch.Generator) -> Picture:
        pixels = noise(random, merge**2 * h * w, values).reshape(merge**2 * h * w, *shape.get("patch", (values,)))
        return run(h * w), {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, merge * h, merge * w]])}

    return make


def clip_of_patches(values: int, stamps: bool, merge: int = 2, frames: int = 2) -> Maker:
    """Videos as rows of patches with a grid, in one run or in a run per frame with time stamps between."""

    def make(h: int, w: int, random: torch.Generator) -> Picture:
        ids = run(frames * h * w, token=VIDEO)
        if stamps:
            ids = [t for frame in range(frames) for t in (30 + frame, 31, *run(h * w, token=VIDEO))]
        pixels = noise(random, frames * merge**2 * h * w, values)
        return ids, {
            "pixel_values_videos": pixels,
            "video_grid_thw": torch.tensor([[frames, merge * h, merge * w]]),
        }

    return make
