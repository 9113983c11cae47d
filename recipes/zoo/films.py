"""Training batches of videos, with questions about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.scenes import SceneSpec, ask_video
from foveate.scenes.labels import CELL, IGNORE, box_cells, dense
from foveate.scenes.moving import STEP, WAYS, Film, compose_moving
from foveate.scenes.splits import SPECS, VIDEO_FPS, VIDEO_FRAMES
from recipes.zoo.batches import Asked, choose, normalise
from recipes.zoo.config import BatchConfig

TOKENS_PER_SECOND = 4  # of the zoo's Qwen2.5-VL: how fast temporal positions run


@dataclass
class FilmBatch:
    """Videos of one size and length.

    Attributes:
        pixels: normalised pairs of frames `[B * steps, H, W, 3 * 2]`.
        films: what the videos show, in all their frames.
        times: temporal position of every step.
        objects: dense labels of the first frame of every pair `[B * steps, rows, columns, classes]`.
        ways: which way what a token shows moves, 0 still, else counted from 1 in `WAYS`: `[B * steps, rows, columns]`.
    """

    pixels: Tensor
    films: list[Film]
    times: list[int]
    objects: Tensor
    ways: Tensor


def render_films(first: int, config: BatchConfig) -> FilmBatch:
    """Training videos `first`, `first + 1`, ..., as long as the split's; of each, evenly spaced frames."""
    spec = SceneSpec(((config.size, 1.0),), config.shapes, panel_share=0.0, shape_px=SPECS["video"].shape_px)
    taken = [number * VIDEO_FRAMES // config.frames for number in range(config.frames)]
    films = [compose_moving(f"train-video:{first + i}", spec, VIDEO_FRAMES) for i in range(config.images)]
    frames = normalise([film.images[t] for film in films for t in taken])
    pairs = frames.view(-1, STEP, *frames.shape[1:]).permute(0, 2, 3, 4, 1).flatten(-2)
    interval = TOKENS_PER_SECOND * STEP / (config.frames / VIDEO_FRAMES * VIDEO_FPS)
    times = [int(step * interval) for step in range(config.frames // STEP)]
    seen = [(film, t) for film in films for t in taken[::STEP]]
    objects = np.stack([dense(film.scenes[t]) for film, t in seen])
    ways = np.stack([label_ways(film, t) for film, t in seen])
    return FilmBatch(pairs, films, times, torch.from_numpy(objects), torch.from_numpy(ways))


def label_ways(film: Film, frame: int) -> NDArray[np.int16]:
    """`[rows, columns]`: `IGNORE` where nothing is."""
    scene = film.scenes[frame]
    grid = scene.height // CELL, scene.width // CELL
    out = np.full(grid, IGNORE, np.int16)
    for mover in film.movers:
        if shape := mover.frames[frame]:
            for cell in box_cells(shape.box, grid):
                out[cell] = 1 + list(WAYS).index(mover.way) if mover.way else 0
    return out


def question_films(batch: FilmBatch, first: int, k: int, weights: Mapping[str, float]) -> Asked:
    """Asks K questions a video; their evidence is not marked."""
    asked = Asked([], [], torch.zeros(len(batch.films), k, 0, 0), torch.zeros(len(batch.films), k))
    for i, film in enumerate(batch.films):
        rng = Random(f"ask:{first + i}")
        questions = choose([found.question for found in ask_video(film, rng)], rng, k, weights)
        asked.questions.append(questions)
        asked.texts.append([(q.text, q.answer) for q in questions])
    return asked
