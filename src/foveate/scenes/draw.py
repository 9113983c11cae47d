"""Pixels: backgrounds, polygons, text with the positions of its characters, sensor noise."""

from __future__ import annotations

import math
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .palette import RGB
from .scene import Box, Glyph

Point = tuple[float, float]


def background(rng: Random, width: int, height: int, clutter: tuple[int, int]) -> Image.Image:
    """A soft random texture with stray lines and dots, `[height, width]` RGB."""
    noise = np.random.default_rng(rng.getrandbits(32))
    base = noise.uniform(60, 235) + noise.uniform(-25, 25, 3)
    n = int(noise.integers(3, 10))
    coarse = base + noise.normal(0, noise.uniform(2, 16), (n, n, 1)) + noise.normal(0, 5, (n, n, 3))
    tiles = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    image = tiles.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(*clutter)):
        _stray_mark(rng, draw, width, height, jitter(rng, tuple(base), 45))
    return image


def _stray_mark(rng: Random, draw: ImageDraw.ImageDraw, width: int, height: int, color: RGB) -> None:
    x, y = rng.randint(0, width), rng.randint(0, height)
    if rng.random() < 0.6:
        end = x + rng.randint(-150, 150), y + rng.randint(-150, 150)
        draw.line([(x, y), end], fill=color, width=rng.randint(1, 3))
    else:
        size = rng.randint(3, 10)
        draw.ellipse([x, y, x + size, y + size], fill=color)


def jitter(rng: Random, rgb: tuple[float, ...], amount: int) -> RGB:
    """`rgb` with each channel moved by up to `amount`."""
    r, g, b = (int(min(255, max(0, c + rng.randint(-amount, amount)))) for c in rgb)
    return r, g, b


def sensor_noise(rng: Random, image: Image.Image, sigma: float) -> Image.Image:
    """Grey Gaussian noise of a random strength up to `sigma`, on seven images of ten."""
    if rng.random() >= 0.7:
        return image
    noise = np.random.default_rng(rng.getrandbits(32))
    pixels = np.asarray(image).astype(np.float32)
    grain = noise.standard_normal(pixels.shape[:2], dtype=np.float32) * np.float32(rng.uniform(1, sigma))
    return Image.fromarray(np.clip(pixels + grain[..., None], 0, 255).astype(np.uint8))


def outline(kind: str, cx: float, cy: float, size: float, turn: float) -> list[Point]:
    """Corners of a polygon about `size` pixels wide, turned by `turn` radians; a circle has 48."""
    half = size / 2
    if kind == "diamond":
        return [(cx + x * half * 1.1, cy + y * half * 1.1) for x, y in ((0, -1), (0.72, 0), (0, 1), (-0.72, 0))]
    if kind == "star":
        radii = [half * (1.25 if i % 2 == 0 else 0.62) for i in range(10)]
        return _ring(cx, cy, radii, turn - math.pi / 2)
    if kind == "triangle":
        return _ring(cx, cy + half * 0.18, [half * 1.25] * 3, turn - math.pi / 2)
    if kind == "square":
        return _ring(cx, cy, [half * 1.12] * 4, turn + math.pi / 4)
    if kind == "hexagon":
        return _ring(cx, cy, [half * 1.06] * 6, turn)
    return _ring(cx, cy, [half] * 48, turn)


def _ring(cx: float, cy: float, radii: list[float], start: float) -> list[Point]:
    step = 2 * math.pi / len(radii)
    return [(cx + r * math.cos(start + i * step), cy + r * math.sin(start + i * step)) for i, r in enumerate(radii)]


def text(
    draw: ImageDraw.ImageDraw, at: Point, string: str, font: ImageFont.FreeTypeFont, ink: RGB
) -> tuple[Box, list[Glyph]]:
    """Draws `string` with its top left pen position `at`; returns its box and its letters and digits."""
    x, y = at
    draw.text(at, string, font=font, fill=ink)
    glyphs = []
    for i, character in enumerate(string):
        if character.isalnum():
            left = x + font.getlength(string[:i])
            x0, y0, x1, y1 = font.getbbox(character)
            glyphs.append(Glyph(character, left + (x0 + x1) / 2, y + (y0 + y1) / 2))
    x0, y0, x1, y1 = font.getbbox(string)
    return (x + x0, y + y0, x + x1, y + y1), glyphs
