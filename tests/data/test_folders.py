"""Pictures and videos in a folder."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from foveate.cli.pictures import opened
from foveate.data.folders import pictures_among


def test_what_only_looks_like_a_video_is_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / ".hidden.png")
    (tmp_path / "c.ts").write_text("export const length = 188;", encoding="utf-8")
    (tmp_path / "d.jpg").mkdir()
    assert pictures_among(sorted(tmp_path.iterdir())) == [tmp_path / "a.png"]
    assert [one.size for one in opened([str(tmp_path)])] == [(4, 4)]
