"""Pages of random characters: what the tower learns to read on before it sees scenes."""

from __future__ import annotations

import string
from random import Random

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from foveate.scenes import Glyph, draw, fonts
from foveate.scenes.labels import CELL, local_characters
from foveate.scenes.palette import COLOR_NAMES, COLORS, DIGITS, RGB, readable_ink
from recipes.zoo.batches import normalise

_ALPHABET = DIGITS * 3 + string.ascii_letters
SIDE = 112


def render_pages(first: int, n: int, token: int = CELL) -> tuple[Tensor, Tensor]:
    """`n` pages of 112 px -> pixels `[n, 112, 112, 3]`, characters `[n, 112 / token, 112 / token, 3]`."""
    pages = [_page(Random(f"page:{first + i}")) for i in range(n)]
    scale = CELL / token, CELL / token
    labels = [local_characters(glyphs, SIDE, SIDE, scale) for _, glyphs in pages]
    return normalise([image for image, _ in pages]), torch.from_numpy(np.stack(labels))


def _page(rng: Random) -> tuple[Image.Image, list[Glyph]]:
    ground, ink = _colors(rng)
    image = Image.new("RGB", (SIDE, SIDE), ground)
    canvas = ImageDraw.Draw(image)
    size = rng.randint(15, 34)
    font = fonts.load(fonts.pick(rng), size)
    glyphs: list[Glyph] = []
    y = rng.uniform(-4, 12)
    while y + size * 0.6 < SIDE:
        x = rng.uniform(-4, 12)
        while x < SIDE:
            word = "".join(rng.choices(_ALPHABET, k=rng.randint(1, 5)))
            glyphs += draw.text(canvas, (x, y), word, font, ink)[1]
            x += font.getlength(word) + size * rng.uniform(0.3, 0.9)
        y += size * rng.uniform(1.15, 1.8)
    return draw.sensor_noise(rng, image, 9.0), glyphs


def _colors(rng: Random) -> tuple[RGB, RGB]:
    """Ground and ink: paper in half of the pages, else a shape's colour or any."""
    if rng.random() < 0.5:
        grey, dark = rng.randint(200, 255), rng.randint(0, 70)
        return draw.jitter(rng, (grey, grey, grey), 12), draw.jitter(rng, (dark, dark, dark), 10)
    anything = (rng.randint(30, 220), rng.randint(30, 220), rng.randint(30, 220))
    ground = draw.jitter(rng, COLORS[rng.choice(COLOR_NAMES)], 18) if rng.random() < 0.7 else anything
    return ground, readable_ink(ground)
