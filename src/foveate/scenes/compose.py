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
    width, height = pick_size(rng, spec)
    scene = Scene(seed, width, height)
    image = draw.background(rng, width, height, spec.clutter)
    taken: list[Box] = []
    if rng.random() < spec.panel_share and (box := add_panel(rng, image, scene, spec)):
        taken.append(box)
    _add_shapes(rng, image, scene, spec, taken)
    return scene, draw.sensor_noise(rng, image, spec.noise)


def pick_size(rng: Random, spec: SceneSpec) -> tuple[int, int]:
    """(width, height) of an image, px."""
    (size, *_) = rng.choices([s for s, _ in spec.sizes], [w for _, w in spec.sizes])
    return size


def _add_shapes(rng: Random, image: Image.Image, scene: Scene, spec: SceneSpec, taken: list[Box]) -> None:
    wanted = rng.randint(*spec.shapes)
    theme = pick_theme(rng)
    labels = {f.value for f in scene.fields}
    for _ in range(60):
        if len(scene.shapes) == wanted:
            return
        size = rng.randint(*spec.shape_px)
        if 2 * reach_of(size) + 2 >= min(scene.width, scene.height):
            continue
        box = place(rng, scene.width, scene.height, size)
        if any(touch(box, other) for other in taken):
            continue
        taken.append(box)
        color, kind = pick_kind(rng, theme)
        add_shape(rng, image, scene, Shape(color, kind, fresh_label(rng, labels), box), size)


def reach_of(size: int) -> int:
    """Half the side of the box around a shape of that size, px: star tips and tilted corners reach out."""
    return size // 2 + int(size * 0.14) + 1


def place(rng: Random, width: int, height: int, size: int) -> Box:
    """Box of a shape somewhere within the image."""
    reach = reach_of(size)
    x, y = rng.randint(reach + 1, width - reach - 1), rng.randint(reach + 1, height - reach - 1)
    return x - reach, y - reach, x + reach, y + reach


def pick_theme(rng: Random) -> tuple[str, str]:
    """A colour and a kind that the scene repeats, so that counts above one are common."""
    return rng.choice(COLOR_NAMES), rng.choice(SHAPES)


def pick_kind(rng: Random, theme: tuple[str, str]) -> tuple[str, str]:
    """Colour and kind of a shape, often the theme's."""
    color, kind = rng.choice(COLOR_NAMES), rng.choice(SHAPES)
    u = rng.random()
    if u < 0.25:
        return theme[0], kind
    if u < 0.5:
        return color, theme[1]
    return theme if u < 0.6 else (color, kind)


def fresh_label(rng: Random, used: set[str]) -> str:
    """A number or letter that is not in `used`, and now is."""
    while True:
        label = str(rng.randint(1, 99)) if rng.random() < 0.6 else rng.choice(LETTERS)
        if label not in used:
            used.add(label)
            return label


def touch(a: Box, b: Box, margin: int = 3) -> bool:
    """Whether two boxes come closer than `margin` px."""
    apart_x = a[2] + margin <= b[0] or b[2] + margin <= a[0]
    apart_y = a[3] + margin <= b[1] or b[3] + margin <= a[1]
    return not (apart_x or apart_y)


def add_shape(rng: Random, image: Image.Image, scene: Scene, shape: Shape, size: int) -> None:
    """Draws `shape` into `image` and adds it and its characters to `scene`; `rng` picks its looks."""
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
    scene.shapes.append(shape)
