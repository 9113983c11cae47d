"""Pictures side by side with titles and a caption."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

WIDEST = 1500
"""Pixels across, at most."""


def sheet(pictures: Sequence[tuple[str, Image.Image]], caption: str, widest: int = WIDEST) -> Image.Image:
    """Pictures of one width under their titles, a caption below, at most `widest` pixels across.

    Args:
        pictures: title and picture; lines of a title are broken where they would not fit.
    """
    gap = 12
    width = min(max(picture.width for _, picture in pictures), (widest - gap * (len(pictures) + 1)) // len(pictures))
    across = width * len(pictures) + gap * (len(pictures) + 1)
    size = max(14, min(22, width // 22))
    font = ImageFont.load_default(size=size)
    title_lines = [_wrap(title, font, width) for title, _ in pictures]
    line = round(size * 1.35)
    top = gap + line * max(len(lines) for lines in title_lines)
    scaled = [picture.resize((width, round(picture.height * width / picture.width))) for _, picture in pictures]
    below = _wrap(caption, font, across - 2 * gap) if caption else []
    bottom = top + max(picture.height for picture in scaled)
    page = Image.new("RGB", (across, bottom + gap + line * len(below) + gap), "white")
    draw = ImageDraw.Draw(page)
    for number, (lines, picture) in enumerate(zip(title_lines, scaled, strict=True)):
        left = gap + number * (width + gap)
        for row, text in enumerate(lines):
            draw.text((left, gap // 2 + row * line), text, fill="black", font=font)
        page.paste(picture, (left, top))
    for row, text in enumerate(below):
        draw.text((gap, bottom + gap + row * line), text, fill="black", font=font)
    return page


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The text's lines, broken so that they fit."""
    each = max(1.0, font.getlength("n"))
    return [part for line in text.splitlines() for part in textwrap.wrap(line, max(8, int(width / each))) or [""]]
