"""Pictures as the stock image processors of six layouts cut them, for tiny models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from foveate.families import adapt
from tests.families.tiny import BREAK, END, IMAGE, START, build
from tests.families.types import TABLE


def processor(name: str, **settings: Any) -> Callable[[Image.Image], dict[str, Tensor]]:
    kind = getattr(transformers, f"{name}ImageProcessorPil")
    mean = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}

    def run(picture: Image.Image) -> dict[str, Tensor]:
        return dict(kind(**{**mean, **settings})(picture, return_tensors="pt"))

    return run


PINS = [[112, 112], [56, 112], [112, 168], [168, 112]]
"""How LLaVA-NeXT may cut pictures here."""


@cache
def model_for(name: str) -> Any:
    """A tiny model, for pictures of any aspect ratio."""
    model = copy.deepcopy(build(name))
    if name in ("llava_next", "llava_onevision"):
        model.config.image_grid_pinpoints = PINS
    return model


def stitched(picture: Image.Image) -> tuple[list[int], dict[str, Tensor]]:
    """LLaVA-NeXT: a thumbnail and tiles in one run."""
    cut = processor("LlavaNext", size={"shortest_edge": 56}, crop_size=56, image_grid_pinpoints=PINS)
    pixels = cut(picture)
    (shape,) = adapt(model_for("llava_next")).incoming(pixels)["image"]
    return [START, *[IMAGE] * shape.size, END], pixels


def tiles_and_thumbnail(picture: Image.Image) -> tuple[list[int], dict[str, Tensor]]:
    """InternVL: tiles of one size in one run, the thumbnail last."""
    cut = processor("GotOcr2", size={"height": 112, "width": 112}, crop_to_patches=True, min_patches=1, max_patches=6)
    pixels = cut(picture)
    pixels.pop("num_patches", None)
    return [START, *[IMAGE] * (16 * len(pixels["pixel_values"])), END], pixels


def tiles_apart(picture: Image.Image) -> tuple[list[int], dict[str, Tensor]]:
    """Idefics 3: a run for each tile, behind a token that names its place; the whole picture last."""
    cut = processor(
        "Idefics3", size={"longest_edge": 168}, max_image_size={"longest_edge": 56}, return_row_col_info=True
    )
    pixels = cut(picture)
    rows, columns = (int(pixels.pop(name)[0][0]) for name in ("rows", "cols"))
    ids = []
    for row in range(rows):
        for column in range(columns):
            ids += [BREAK, 60 + 10 * row + column, *[IMAGE] * 4]
        ids.append(90)  # a line break
    return [*ids, BREAK, 91, *[IMAGE] * 4, BREAK], pixels


def squares(picture: Image.Image) -> tuple[list[int], dict[str, Tensor]]:
    """Gemma 3: one size whatever the aspect ratio."""
    pixels = processor("Gemma3", size={"height": 56, "width": 56})(picture)
    pixels.pop("num_crops", None)
    return [START, *[IMAGE] * 16, END], pixels


def windows(picture: Image.Image) -> tuple[list[int], dict[str, Tensor]]:
    """Qwen 2.5: patches in rows of two by two, attention in windows."""
    cut = processor("Qwen2VL", patch_size=14, merge_size=2, size={"shortest_edge": 28 * 28, "longest_edge": 336 * 224})
    pixels = cut(picture)
    return [START, *[IMAGE] * (int(pixels["image_grid_thw"].prod()) // 4), END], pixels


def anyres(picture: Image.Image) -> tuple[list[int], dict[str, Tensor]]:
    """OneVision: as LLaVA-NeXT, with more ways to cut."""
    cut = processor("LlavaOnevision", size={"height": 56, "width": 56}, image_grid_pinpoints=PINS)
    pixels = cut(picture)
    pixels.pop("batch_num_images", None)
    (shape,) = adapt(model_for("llava_onevision")).incoming(pixels)["image"]
    return [START, *[IMAGE] * shape.size, END], pixels


def rows(picture: Image.Image) -> tuple[list[int], dict[str, Tensor]]:
    """Pixtral: a run for each row."""
    pixels = processor("Pixtral", size={"longest_edge": 112}, patch_size=14)(picture)
    height, width = (int(n) // 14 for n in pixels["image_sizes"][0])
    return [START, *[t for _ in range(height) for t in (*[IMAGE] * width, BREAK)][:-1], END], pixels


LAYOUTS = {
    "llava_next": stitched, "internvl": tiles_and_thumbnail, "idefics3": tiles_apart, "gemma3": squares,
    "qwen2_5_vl": windows, "llava_pixtral": rows, "llava_onevision": anyres,
}  # fmt: skip


def prompt(name: str, picture: Image.Image) -> dict[str, Any]:
    """A picture between some text, as a model of this type is given it."""
    ids, pixels = LAYOUTS[name](picture)
    joined = torch.tensor([[7, 8, 9, *ids, 11, 12, 13]])
    return {"input_ids": joined, "attention_mask": torch.ones_like(joined), **pixels, **TABLE[name].types(joined)}
