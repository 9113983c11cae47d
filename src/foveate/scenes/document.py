"""White pages with fields and a table between wide margins."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from PIL import Image, ImageDraw, ImageFont

from . import draw, fonts
from .compose import pick_size
from .palette import KEYS, LETTERS, RGB
from .panel import distinct_values
from .scene import Box, Cell, Field, Scene
from .spec import SceneSpec


def compose_document(seed: str, spec: SceneSpec) -> tuple[Scene, Image.Image]:
    """Renders the page of `seed`; reproducible as `compose` is. Of `spec`, sizes, rows, fonts and noise count."""
    rng = Random(seed)
    width, height = pick_size(rng, spec)
    scene = Scene(seed, width, height)
    white, grey = rng.randint(240, 255), rng.randint(0, 60)
    image = Image.new("RGB", (width, height), (white, white, white))
    page = _Page(rng, image, scene, spec, (grey, grey, grey))
    page.write()
    return scene, draw.sensor_noise(rng, image, spec.noise)


class _Page:
    """Writes into an image and notes in its scene what stands where."""

    def __init__(self, rng: Random, image: Image.Image, scene: Scene, spec: SceneSpec, ink: RGB) -> None:
        self.rng, self.image, self.scene, self.ink = rng, image, scene, ink
        self.canvas = ImageDraw.Draw(image)
        self.size = rng.randint(*spec.font_px)
        self.font: ImageFont.FreeTypeFont = fonts.load(fonts.pick(rng), self.size)
        self.line = int(self.size * rng.uniform(1.45, 1.8))
        side = rng.uniform(0.1, 0.18)
        self.left, self.right = int(image.width * side), int(image.width * (1 - side))
        self.rows = rng.randint(*spec.rows), rng.randint(*spec.rows)

    def write(self) -> None:
        """A block of fields and, where there is room, a table below it."""
        rng, (rows, lines) = self.rng, self.rows
        room = (self.right - self.left - 2 * self.size) // (5 * self.size)  # no name of a column is wider than 5 sizes
        columns = rng.randint(1, max(1, min(3, room)))
        keys = rng.sample(KEYS, rows + columns)
        values = distinct_values(rng, rows + columns * lines)
        top = int(self.image.height * rng.uniform(0.08, 0.16))
        bottom = self.fields(top, keys[:rows], values[:rows])
        below = bottom + int(self.line * rng.uniform(0.8, 1.8))
        if below + self.line * (lines + 1) < self.image.height - 8:
            self.table(below, keys[rows:], values[rows:])

    def text(self, x: float, y: float, text: str) -> Box:
        box, glyphs = draw.text(self.canvas, (x, y), text, self.font, self.ink)
        self.scene.glyphs += glyphs
        return box

    def widest(self, texts: Iterable[str]) -> float:
        """Room that each of `texts` needs, px, with some space behind it."""
        return max(self.font.getlength(text) for text in texts) + 10

    def fields(self, top: int, keys: list[str], values: list[str]) -> int:
        """Key and value on a line each; returns where they end."""
        rng, share = self.rng, self.rng.uniform(0.35, 0.6)
        colon, ends = rng.random() < 0.6, rng.random() < 0.4
        captions = [key.capitalize() + (":" if colon else "") for key in keys]
        x = self.left + int(max(share * (self.right - self.left), self.widest(captions)))
        for i, (key, caption, value) in enumerate(zip(keys, captions, values, strict=True)):
            y = top + i * self.line
            key_box = self.text(self.left, y, caption)
            value_box = self.text(self.right - self.font.getlength(value) if ends else x, y, value)
            self.scene.fields.append(Field(key, value, key_box, value_box))
        return top + len(keys) * self.line

    def table(self, top: int, keys: list[str], values: list[str]) -> None:
        """A line of column names over lines that begin with a letter."""
        lines = len(values) // len(keys)
        names = self.rng.sample(LETTERS, lines)
        first = self.left + 2 * self.size
        pitch = (self.right - first) // len(keys)
        heads = [self.text(first + i * pitch, top, key.capitalize()) for i, key in enumerate(keys)]
        ruled = self.rng.random() < 0.5
        for row, name in enumerate(names):
            y = top + (row + 1) * self.line
            if ruled or row == 0:
                self.canvas.line([(self.left, y - 2), (self.right, y - 2)], fill=self.ink, width=1)
            name_box = self.text(self.left, y, name)
            for column, (key, head) in enumerate(zip(keys, heads, strict=True)):
                value = values[row * len(keys) + column]
                box = self.text(first + column * pitch, y, value)
                self.scene.cells.append(Cell(name, key, value, name_box, head, box))
