"""Training batches: rendered scenes or pages with questions, dense labels and evidence, all of one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.scenes import DOCUMENT_TYPES, TYPES, Question, Scene, SceneSpec, ask, compose, compose_document, name_image
from foveate.scenes.labels import CELL, box_cells, dense, local_characters, scaled, text_cells
from recipes.zoo.config import BatchConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class Batch:
    """Scenes of one size.

    Attributes:
        pixels: normalised `[B, H, W, 3]`.
        objects: dense labels `[B, rows, columns, classes]`.
        characters: `[B, rows, columns, 3]`.
        scenes: what the images show.
        scale: from a scene's pixels to pixels of label cells.
        types: what can be asked.
    """

    pixels: Tensor
    objects: Tensor
    characters: Tensor
    scenes: list[Scene]
    scale: tuple[float, float]
    types: Sequence[str] = tuple(TYPES)


def normalise(images: Sequence[Image.Image]) -> Tensor:
    """Equally large RGB images -> `[B, H, W, 3]`, as the stock processors normalise them."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).float() / 255
    return (pixels - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)


def render(first: int, config: BatchConfig, token: int = CELL) -> Batch:
    """Training scenes `first`, `first + 1`, ... for a model whose visual tokens are `token` pixels wide."""
    spec = SceneSpec(
        sizes=((config.size, 1.0),), shapes=config.shapes, rows=config.rows, panel_share=config.panel_share
    )
    pages = config.shows == "documents"
    draw, name = (compose_document, "train-document") if pages else (compose, "train")
    drawn = [draw(f"{name}:{first + i}", spec) for i in range(config.images)]
    scenes, images = [scene for scene, _ in drawn], [image for _, image in drawn]
    width, height = config.size
    if config.fit:
        images = [image.resize((config.fit, config.fit), Image.Resampling.BICUBIC) for image in images]
        width = height = config.fit
    scale = width / config.size[0] * CELL / token, height / config.size[1] * CELL / token
    return Batch(
        normalise(images),
        torch.from_numpy(np.stack([dense(scene, scale) for scene in scenes])),
        torch.from_numpy(np.stack([local_characters(s.glyphs, s.width, s.height, scale) for s in scenes])),
        scenes,
        scale,
        DOCUMENT_TYPES if pages else TYPES,
    )


def choose(questions: Sequence[Question], rng: Random, k: int, weights: Mapping[str, float]) -> list[Question]:
    """K of the questions without replacement, by weight of their type; repeated where there are fewer."""
    ranked = sorted(questions, key=lambda q: -(rng.random() ** (1.0 / weights.get(q.type, 1.0))))
    return [ranked[i % len(ranked)] for i in range(k)]


@dataclass
class Asked:
    """K questions for each prompt of `images_per_prompt` images.

    `evidence` `[B, K, S, V]` marks the cells of up to S places the answer is read off; `places` `[B, K]`
    counts them.
    """

    questions: list[list[Question]]
    texts: list[list[tuple[str, str]]]
    evidence: Tensor
    places: Tensor


def question(batch: Batch, first: int, k: int, per_prompt: int, weights: Mapping[str, float]) -> Asked:
    """Asks K questions a prompt; with several images each question names the one it is about."""
    grid = batch.objects.shape[1:3]
    cells = grid[0] * grid[1]
    prompts = len(batch.scenes) // per_prompt
    asked = Asked([], [], torch.zeros(prompts, k, 8, cells * per_prompt), torch.zeros(prompts, k))
    for b in range(prompts):
        rng = Random(f"ask:{first + b * per_prompt}")
        shown = batch.scenes[b * per_prompt : (b + 1) * per_prompt]
        chosen = [choose(ask(scene, rng, batch.types), rng, k, weights) for scene in shown]
        which = [rng.randrange(per_prompt) for _ in range(k)]
        questions = [chosen[image][i] for i, image in enumerate(which)]
        asked.questions.append(questions)
        texts = [
            q.text if per_prompt == 1 else name_image(q.text, image) for q, image in zip(questions, which, strict=True)
        ]
        asked.texts.append([(text, q.answer) for text, q in zip(texts, questions, strict=True)])
        for i, (q, image) in enumerate(zip(questions, which, strict=True)):
            asked.places[b, i] = min(8, len(q.targets))
            for place, box in enumerate(q.targets[:8]):
                find = text_cells if q.type in ("read_field", "field_of") else box_cells
                for row, column in find(scaled(box, batch.scale), (grid[0], grid[1])):
                    asked.evidence[b, i, place, image * cells + row * grid[1] + column] = 1
    return asked
