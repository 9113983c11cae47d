"""Writes samples as PNG files, JSON lines and a contact sheet."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

from foveate.errors import FoveateError

from . import fonts
from .splits import Sample, Split

_TILE, _CAPTION, _COLUMNS, _MOST = 240, 44, 5, 60


class ExportError(FoveateError, OSError):
    """The output folder cannot be written or holds something else.

    Remedy: choose a new or empty folder.
    """


def export(split: Split, out: Path, on_sample: Callable[[], None] = lambda: None) -> None:
    """Writes `images/`, `samples.jsonl` and `sheet.png` (the first 60 samples) into the new folder `out`.

    The folder appears under its name only when it is complete. An earlier export there is replaced.

    Raises:
        ExportError: `out` exists and is no export of ours, or cannot be written.
    """
    if out.exists() and not _is_ours(out):
        raise ExportError(f"{out} exists and holds other files; choose an empty or new --out folder")
    partial = out.with_name(out.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "images").mkdir(parents=True)
        tiles: list[Image.Image] = []
        with (partial / "samples.jsonl").open("w") as lines:
            for index, sample in zip(split.indices, split, strict=True):
                lines.write(json.dumps(_write(sample, index, partial)) + "\n")
                if len(tiles) < _MOST:
                    tiles.append(_tile(sample))
                on_sample()
        if tiles:
            _sheet(tiles).save(partial / "sheet.png")
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    except OSError as error:
        raise ExportError(f"cannot write {out}: {error}") from error


def _is_ours(out: Path) -> bool:
    """Whether `out` is empty or an earlier export and nothing else: it may be deleted."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else {out.name}
    return not names or ("samples.jsonl" in names and names <= {"images", "samples.jsonl", "sheet.png"})


def _write(sample: Sample, index: int, folder: Path) -> dict[str, object]:
    names = []
    for i, image in enumerate(sample.images):
        names.append(f"images/{index:05d}" + (f"-{i + 1}" if len(sample.images) > 1 else "") + ".png")
        image.save(folder / names[-1])
    # `image` is the one asked about; readers of single-image data need no other column.
    return {"image": names[sample.asked], "images": names, **sample.record()}


def _tile(sample: Sample) -> Image.Image:
    """The asked image with its evidence boxes, question and answer."""
    picture = sample.image.copy()
    draw = ImageDraw.Draw(picture)
    for box in sample.boxes:
        draw.rectangle(box, outline=(255, 0, 80), width=2)
    picture.thumbnail((_TILE, _TILE))
    tile = Image.new("RGB", (_TILE, _TILE + _CAPTION), "white")
    tile.paste(picture, ((_TILE - picture.width) // 2, (_TILE - picture.height) // 2))
    caption = ImageDraw.Draw(tile)
    font = fonts.load("DejaVuSans", 11)
    for line, text in enumerate([sample.question, f"{sample.answer}   ({sample.type})"]):
        caption.text((4, _TILE + 5 + 18 * line), text, font=font, fill="black")
    return tile


def _sheet(tiles: list[Image.Image]) -> Image.Image:
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    width, height = _TILE + 8, _TILE + _CAPTION + 8
    sheet = Image.new("RGB", (columns * width, rows * height), (225, 225, 225))
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * width + 4, i // columns * height + 4))
    return sheet
