"""Fonts that do not depend on the machine: four DejaVu subsets in the package and Pillow's own."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from random import Random

from PIL import ImageFont

_FOLDER = Path(__file__).parent / "fonts"
BUILTIN = "builtin"
NAMES = ["DejaVuSans-Bold", "DejaVuSans", "DejaVuSerif-Bold", "DejaVuSansMono-Bold", BUILTIN]


@lru_cache(maxsize=512)
def load(name: str, size: int) -> ImageFont.FreeTypeFont:
    """The font `name` (one of `NAMES`) at `size` pixels."""
    if name == BUILTIN:
        font = ImageFont.load_default(size=size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise OSError("Pillow was built without FreeType; install a Pillow wheel from PyPI")
        return font
    # The basic layout engine, because Raqm is not in every build of Pillow and kerns differently.
    return ImageFont.truetype(_FOLDER / f"{name}.ttf", size, layout_engine=ImageFont.Layout.BASIC)


def pick(rng: Random) -> str:
    """A font name; Pillow's own font weighs as much as two others."""
    return rng.choice([*NAMES, BUILTIN])
