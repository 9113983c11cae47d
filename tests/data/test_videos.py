"""Videos: the frames asked for, whatever the container, and clear words for what is none."""

from __future__ import annotations

import base64
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.data import decoding
from foveate.data.reading import read_rows
from foveate.data.rows import Rules
from foveate.data.videos import Clip, FrameSampling, check_video, is_video, open_video
from foveate.errors import ConfigurationError, DataError, MissingExtraError, VideoError
from tests.clips import shade, write_clip, write_sound

QUESTIONS = Rules(box_format=None, needs_boxes=False, opens_images=False, takes_videos=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("videos") / "a.mp4")


def greys(found: Clip) -> list[int]:
    return [round(float(frame.mean())) for frame in found.frames]


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "mkv"), ("mpeg4", "avi"), ("libvpx", "webm")])
def test_frames_of_any_container(codec: str, suffix: str, tmp_path: Path) -> None:
    found = open_video(write_clip(tmp_path / f"a.{suffix}", codec=codec), FrameSampling(frames=4))
    assert (found.indices, found.total, found.fps, found.size) == ((0, 7, 15, 22), 30, 10.0, (64, 48))
    assert greys(found) == pytest.approx([shade(index, 30) for index in found.indices], abs=6)
    assert found.seconds == pytest.approx((0.0, 0.7, 1.5, 2.2))


def test_frames_a_second_and_every_frame_of_a_short_video(clip: Path) -> None:
    assert open_video(clip, FrameSampling(fps=2)).indices == (0, 5, 10, 15, 20, 25)
    assert len(open_video(clip, FrameSampling(frames=500))) == 30
    assert len(open_video(clip)) == 8


@pytest.mark.parametrize("source", ["bytes", "data uri", "relative"])
def test_sources(source: str, clip: Path) -> None:
    data = clip.read_bytes()
    given = {
        "bytes": data,
        "data uri": f"data:video/mp4;base64,{base64.b64encode(data).decode()}",
        "relative": clip.name,
    }
    found = open_video(given[source], FrameSampling(frames=3), folder=clip.parent)
    assert np.array_equal(found.frames, open_video(clip, FrameSampling(frames=3)).frames)


def test_a_long_video_is_searched_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "long.mp4", frames=2400, fps=1)  # forty minutes
    counted = []
    real = decoding._number
    monkeypatch.setattr(decoding, "_number", lambda *args: counted.append(1) or real(*args))
    found = open_video(path, FrameSampling(frames=4))
    assert found.indices == (0, 600, 1200, 1800)
    assert greys(found) == pytest.approx([shade(index, 2400) for index in found.indices], abs=6)
    assert 0 < len(counted) < 1000


def test_large_frames_are_scaled_while_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "large.mp4", frames=6, size=(1280, 720))
    monkeypatch.setattr(decoding, "MAX_FRAME_PIXELS", 320 * 180)
    tracemalloc.start()
    found = open_video(path, FrameSampling(frames=6))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.size == (320, 180)
    assert peak < 6 * 320 * 180 * 3 * 4


def test_frames_as_pictures_and_arrays() -> None:
    frames = [Image.new("RGB", (20, 10), (n, n, n)) for n in range(3)]
    found = open_video(frames)
    assert (found.indices, found.fps, greys(found)) == ((0, 1, 2), None, [0, 1, 2])
    assert np.array_equal(open_video(found.frames).frames, found.frames)
    assert open_video(found) is found


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("missing", "no video file"), ("empty", "cannot be read as a video"), ("text", "cannot be read as a video"),
        ("sound", "has no video in it"), ("half", "cannot be read as a video"), ("address", "does not fetch"),
        ("number", "must be a path"), ("none", "no frames"), ("sizes", "several"), ("floats", "uint8"),
    ],
)  # fmt: skip
def test_what_is_no_video_is_named(what: str, words: str, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello")
    data = clip.read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) // 2])
    given = {
        "missing": tmp_path / "no.mp4", "empty": tmp_path / "empty.mp4", "text": tmp_path / "text.mp4",
        "sound": write_sound(tmp_path / "sound.mp4"), "half": tmp_path / "half.mp4", "address": "https://a.b/c.mp4",
        "number": 3, "none": [], "sizes": [Image.new("RGB", (9, 9)), Image.new("RGB", (8, 8))],
        "floats": np.zeros((2, 4, 4, 3)),
    }  # fmt: skip
    with pytest.raises(VideoError, match=words):
        open_video(given[what])


def test_a_video_that_ends_too_soon_is_named(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", frames=200, codec="mpeg4", size=(320, 240))
    data = path.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(VideoError, match=r"cut off|cannot be read"):
        open_video(tmp_path / "cut.mkv", FrameSampling(frames=40))


def test_absurd_lengths_are_refused(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_SECONDS", 2)
    with pytest.raises(VideoError, match="hours long"):
        open_video(clip)


@pytest.mark.parametrize("wish", [{"frames": 0}, {"fps": 0}, {"frames": 2, "fps": 1}, {"frames": 10**6}])
def test_wishes_that_make_no_sense(wish: dict) -> None:
    with pytest.raises(ConfigurationError):
        FrameSampling(**wish)


def test_without_pyav_the_extra_is_named(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"foveate\[video\]"):
        open_video(clip)


def test_rows_of_videos(clip: Path) -> None:
    table = clip.parent / "rows.jsonl"
    rows = [
        {"video": clip.name, "question": "What?", "answer": "a", "frames": 3},
        {"videos": [clip.name, clip.name], "question": "Which?", "answer": "b", "fps": 1},
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_rows(table, QUESTIONS)
    assert [len(found) for found in first.load_media()] == [3]
    assert [len(found) for found in second.load_media()] == [3, 3]
    assert first.id != second.id
    with pytest.raises(DataError, match="videos cannot be used here"):
        read_rows(table, Rules(box_format=None, needs_boxes=False))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"video": "no.mp4"}, "no video file"), ({"video": 3}, "neither a path"), ({"frames": 2}, "and no video"),
        ({"video": "a.mp4", "frames": "many"}, "frames='many'"),
        ({"video": "a.mp4", "frames": 2, "fps": 1}, "not both"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used(row: dict, words: str, clip: Path) -> None:
    table = clip.parent / "bad.jsonl"
    table.write_text(json.dumps({"question": "What?", "answer": "a"} | row) + "\n")
    with pytest.raises(DataError, match=words):
        read_rows(table, QUESTIONS)[0].load_media()


def test_a_transport_stream_is_told_from_typescript(tmp_path: Path) -> None:
    """Both end in `.ts`."""
    stream = write_clip(tmp_path / "a.ts", codec="mpeg2video")
    (tmp_path / "b.ts").write_text("G" * 188 + "export const length = 1;", encoding="utf-8")
    assert is_video(stream)
    assert is_video("a.ts", tmp_path)
    assert not is_video(tmp_path / "b.ts")
    assert not is_video("a.ts")


def test_a_check_decodes_one_frame(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    read = decoding._frames
    monkeypatch.setattr(decoding, "_frames", lambda c, s, wanted, *a: decoded.append(wanted) or read(c, s, wanted, *a))
    check_video(clip)
    assert decoded == [[0]]
    with pytest.raises(VideoError, match="no video file"):
        check_video("missing.mp4")
