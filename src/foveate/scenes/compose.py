"""From a seed to a picture and the description of what it shows."""

from __future__ import annotations

from random import Random

from PIL import Image, ImageDraw

from . import draw, fonts
from .palette import COLOR_NAMES, COLORS, LETTERS, SHAPES, readable_ink
from .panel import add_panel
from .scene import Box, Glyph, Scene, Shape
from .spec import SceneSpec


def compose(seed: str, spec: SceneSpec) -> tuple[Scene, Image.Image]:
    """Renders the scene of `seed`: the same bits in every process with the same Pillow and numpy.

    Returns the description and an RGB image of its width and height.
    """
    rng = Random(seed)  # Python hashes string seeds with SHA-512: the same on every machine
    (width, height), *_ = rng.choices([s for s, _ in spec.sizes], [w for _, w in spec.sizes])
    scene = Scene(seed, width, height)
    image = draw.background(rng, width, height, spec.clutter)
    taken: list[Box] = []
    if rng.random() < spec.panel_share and (box := add_panel(rng, image, scene, spec)):
        taken.append(box)
    _add_shapes(rng, image, scene, spec, taken)
    return scene, draw.sensor_noise(rng, image, spec.noise)


def _add_shapes(rng: Random, image: Image.Image, scene: Scene, spec: SceneSpec, taken: list[Box]) -> None:
    wanted = rng.randint(*spec.shapes)
    # A theme repeats a colour and a kind, so that counts above one are common.
    theme = rng.choice(COLOR_NAMES), rng.choice(SHAPES)
    labels = {f.value for f in scene.fields}
    for _ in range(60):
        if len(scene.shapes) == wanted:
            return
        size = rng.randint(*spec.shape_px)
        reach = size // 2 + int(size * 0.14) + 1
        if 2 * reach + 2 >= min(scene.width, scene.height):
            continue
        x, y = (
            rng.randint(reach + 1, scene.width - reach - 1),
            rng.randint(reach + 1, scene.height - reach - 1),
        )
        box = (x - reach, y - reach, x + reach, y + reach)
        if any(_touch(box, other) for other in taken):
            continue
        taken.append(box)
        color, kind = _kind(rng, theme)
        shape = Shape(color, kind, _fresh_label(rng, labels), box)
        _draw_shape(rng, image, scene, shape, size)
        scene.shapes.append(shape)


def _kind(rng: Random, theme: tuple[str, str]) -> tuple[str, str]:
    color, kind = rng.choice(COLOR_NAMES), rng.choice(SHAPES)
    u = rng.random()
    if u < 0.25:
        return theme[0], kind
    if u < 0.5:
        return color, theme[1]
    return theme if u < 0.6 else (color, kind)


def _fresh_label(rng: Random, used: set[str]) -> str:
    while True:
        label = str(rng.randint(1, 99)) if rng.random() < 0.6 else rng.choice(LETTERS)
        if label not in used:
            used.add(label)
            return label


def _touch(a: Box, b: Box, margin: int = 3) -> bool:
    apart_x = a[2] + margin <= b[0] or b[2] + margin <= a[0]
    apart_y = a[3] + margin <= b[1] or b[3] + margin <= a[1]
    return not (apart_x or apart_y)


def _draw_shape(rng: Random, image: Image.Image, scene: Scene, shape: Shape, size: int) -> None:
    canvas = ImageDraw.Draw(image)
    cx, cy = shape.center
    rgb = draw.jitter(rng, COLORS[shape.color], 18)
    edge = rng.choice([None, (20, 20, 20), (245, 245, 245)])
    canvas.polygon(draw.outline(shape.shape, cx, cy, size, rng.uniform(-0.2, 0.2)), fill=rgb, outline=edge)
    height = int(size * rng.uniform(0.40, 0.5)) + (3 if len(shape.label) == 1 else 0)
    font = fonts.load(fonts.pick(rng), height)
    cy += size * 0.08 if shape.shape == "triangle" else 0
    canvas.text((cx, cy), shape.label, font=font, fill=readable_ink(rgb), anchor="mm")
    left = cx - font.getlength(shape.label) / 2
    for i, character in enumerate(shape.label):
        middle = left + font.getlength(shape.label[:i]) + font.getlength(character) / 2
        scene.glyphs.append(Glyph(character, middle, cy))
