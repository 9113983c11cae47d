"""What a rendered image shows, as values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Shape:
    """A coloured shape with a number or a letter on it. `box` is pixel xyxy and holds the whole shape."""

    color: str
    shape: str
    label: str
    box: Box

    @property
    def center(self) -> tuple[float, float]:
        """Pixel (x, y) of the middle of the shape."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def name(self) -> str:
        """For example `red star`."""
        return f"{self.color} {self.shape}"

    @property
    def label_kind(self) -> str:
        """`number` or `letter`."""
        return "number" if self.label.isdigit() else "letter"


@dataclass(frozen=True)
class Field:
    """One line of a key/value panel, with the pixel boxes of its key, its value and both."""

    key: str
    value: str
    key_box: Box
    value_box: Box

    @property
    def box(self) -> Box:
        """Pixel xyxy around key and value."""
        k, v = self.key_box, self.value_box
        return min(k[0], v[0]), min(k[1], v[1]), max(k[2], v[2]), max(k[3], v[3])


@dataclass(frozen=True)
class Cell:
    """One value of a table, with the pixel boxes of its line's name, of its column's head and of itself."""

    row: str
    key: str
    value: str
    row_box: Box
    key_box: Box
    value_box: Box


@dataclass(frozen=True)
class Glyph:
    """One drawn character and the pixel position of its middle."""

    character: str
    x: float
    y: float


@dataclass
class Scene:
    """Everything an image shows. `seed` and the split's `SceneSpec` reproduce it (of a video, with its frame)."""

    seed: str
    width: int
    height: int
    shapes: list[Shape] = field(default_factory=list)
    fields: list[Field] = field(default_factory=list)
    glyphs: list[Glyph] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)

    def find(self, color: str | None = None, shape: str | None = None) -> list[Shape]:
        """Shapes of that colour and kind; `None` matches any."""
        return [s for s in self.shapes if color in (None, s.color) and shape in (None, s.shape)]

    def unique(self) -> Iterator[Shape]:
        """Shapes whose colour and kind name exactly one."""
        return (s for s in self.shapes if len(self.find(s.color, s.shape)) == 1)
