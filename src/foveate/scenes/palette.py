"""The vocabulary of a scene: what can be drawn and therefore what can be asked."""

from __future__ import annotations

RGB = tuple[int, int, int]

COLORS: dict[str, RGB] = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 90, 220),
    "yellow": (245, 210, 40),
    "orange": (245, 130, 30),
    "purple": (140, 60, 180),
    "pink": (245, 140, 190),
    "cyan": (60, 200, 210),
}
COLOR_NAMES = list(COLORS)
SHAPES = ["circle", "square", "triangle", "star", "diamond", "hexagon"]
KEYS = [
    *("total", "tax", "date", "room", "seat", "gate", "price", "order", "table", "cash"),
    *("card", "code", "page", "unit", "zone", "tip", "flight", "weight", "score", "year"),
]
DIGITS = "0123456789"
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # without I and O, which read as 1 and 0
CHARACTERS = DIGITS + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_CHARACTERS = 3  # the longest label or value
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


def luminance(rgb: tuple[float, ...]) -> float:
    """Rec. 601 luma of an RGB triple, 0 to 255."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def readable_ink(rgb: tuple[float, ...]) -> RGB:
    """Near black on light grounds, near white on dark ones."""
    return (15, 15, 15) if luminance(rgb) > 115 else (250, 250, 250)
