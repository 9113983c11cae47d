"""Receipt-like panels: a few lines of key and value on paper."""

from __future__ import annotations

from random import Random

from PIL import Image, ImageDraw, ImageFont

from . import draw, fonts
from .palette import KEYS, LETTERS, RGB
from .scene import Box, Field, Scene
from .spec import SceneSpec


def add_panel(rng: Random, image: Image.Image, scene: Scene, spec: SceneSpec) -> Box | None:
    """Draws a panel into `image` and its fields into `scene`; returns its box, `None` where it does not fit."""
    keys = rng.sample(KEYS, rng.randint(*spec.rows))
    values = distinct_values(rng, len(keys))
    size = rng.randint(*spec.font_px)
    font = fonts.load(fonts.pick(rng), size)
    line = int(size * rng.uniform(1.35, 1.7))
    capital, colon = rng.random() < 0.5, rng.random() < 0.6
    captions = [(k.capitalize() if capital else k) + (":" if colon else "") for k in keys]
    key_width = max(font.getlength(c) for c in captions)
    value_width = max(font.getlength(v) for v in values)
    gap = rng.randint(8, 26)
    width, height = int(key_width + value_width + gap + 16), line * len(keys) + 12
    if width > image.width - 2 or height > image.height - 2:
        return None
    left, top = rng.randint(1, image.width - width - 1), rng.randint(1, image.height - height - 1)
    ink = _paper(rng, image, (left, top, left + width, top + height))
    right_aligned = rng.random() < 0.5
    for i, (key, caption, value) in enumerate(zip(keys, captions, values, strict=True)):
        y = top + 6 + i * line
        x = left + 8 + key_width + gap
        if right_aligned:
            x = left + width - 8 - font.getlength(value)
        _add_row(image, scene, (key, caption, value), (left + 8, x, y), font, ink)
    return left, top, left + width, top + height


def _add_row(
    image: Image.Image,
    scene: Scene,
    words: tuple[str, str, str],
    at: tuple[float, float, float],
    font: ImageFont.FreeTypeFont,
    ink: RGB,
) -> None:
    key, caption, value = words
    key_x, value_x, y = at
    canvas = ImageDraw.Draw(image)
    key_box, key_glyphs = draw.text(canvas, (key_x, y), caption, font, ink)
    value_box, value_glyphs = draw.text(canvas, (value_x, y), value, font, ink)
    scene.fields.append(Field(key, value, key_box, value_box))
    scene.glyphs += key_glyphs + value_glyphs


def _paper(rng: Random, image: Image.Image, box: Box) -> RGB:
    """Draws the paper, returns the ink."""
    white, grey = rng.randint(225, 255), rng.randint(0, 70)
    ink = (grey, grey, grey)
    paper = (white, white, white - rng.randint(0, 25))
    ImageDraw.Draw(image).rectangle(box, fill=paper, outline=ink if rng.random() < 0.5 else None)
    return ink


def distinct_values(rng: Random, n: int) -> list[str]:
    """Different short numbers, some with a letter before them."""
    values: list[str] = []
    while len(values) < n:
        numeric = rng.random() < 0.85
        value = str(rng.randint(10, 999)) if numeric else rng.choice(LETTERS) + str(rng.randint(1, 99))
        if value not in values:
            values.append(value)
    return values
