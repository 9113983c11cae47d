"""What a batch asks about."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from foveate.batch.manifest import Manifest
from foveate.data.rows import Row


def test_a_folder_may_hold_videos(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "b.mp4").write_bytes(b"opened later")
    (tmp_path / "c.ts").write_text("export const length = 188;", encoding="utf-8")
    rows = [Manifest.open(tmp_path, "What is it?").read(index) for index in range(2)]
    assert [(len(row.images), len(row.videos)) for row in rows if isinstance(row, Row)] == [(1, 0), (0, 1)]
