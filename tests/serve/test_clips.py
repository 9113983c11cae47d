"""Videos of requests: within the operator's limits, and nothing that leads FFmpeg elsewhere."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av")

from foveate.data.decoding import DecodingLimits
from foveate.data.videos import FrameSampling, open_video
from foveate.errors import VideoError
from foveate.inference.batches import sampler
from foveate.serve.clips import ClipReader
from foveate.serve.options import MediaOptions, ServeOptions
from foveate.serve.problems import RequestError
from tests.clips import write_clip, write_sound
from tests.serve.live import MODEL, post, served, zoo_asker


def uri(file: Path) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(file.read_bytes()).decode()}"


def reader(**options: Any) -> ClipReader:
    return ClipReader(MediaOptions(**options), sampler(zoo_asker().processor))


def test_frames_are_limited(tmp_path: Path) -> None:
    source = uri(write_clip(tmp_path / "a.mp4", frames=60))
    assert len(reader(frames=4).open(source)) <= 4
    assert len(reader().open(source, FrameSampling(6))) == 6
    with pytest.raises(RequestError, match="8 frames were asked for, this server takes at most 4"):
        reader(frames=4).open(source, FrameSampling(8))


def test_what_is_refused(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4")
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:300])
    for source, options, why in (
        (uri(clip), {"megabytes": 0.0005}, "more than 0.0005 MB; send a smaller video"),
        (uri(clip), {"megapixels": 0.001}, "frames of 64 x 48 pixels, the limit is 0.001"),
        (uri(clip), {"seconds": 0}, "took more than 0 seconds"),
        (uri(tmp_path / "cut.mp4"), {}, "cannot be read as a video"),
        (uri(write_sound(tmp_path / "sound.mp4")), {}, "no video in it"),
        (uri(clip).replace("video/mp4", "image/png"), {}, "write a data URI"),
        ("file:///a.mp4", {}, "reads no files"),
        ("file:///b.mp4", {"folder": tmp_path}, "no such video"),
        ("/etc/passwd", {}, "write a data URI"),
    ):
        with pytest.raises(RequestError, match=why) as caught:
            reader(**options).open(source)
        assert str(caught.value).startswith("video_url: ")
        assert caught.value.code == "invalid_video"
    with pytest.raises(RequestError, match="takes no videos"):
        ClipReader(MediaOptions(), None).open(uri(clip))
    assert len(reader(folder=tmp_path).open("file:///a.mp4", FrameSampling(2))) == 2


def test_playlists_are_no_videos(tmp_path: Path) -> None:
    """They would have FFmpeg open whatever they name."""
    clip = write_clip(tmp_path / "secret.ts", codec="mpeg2video")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{clip}\n#EXT-X-ENDLIST\n"
    cues = f"ffconcat version 1.0\nfile {clip.name}\n"
    for text in (playlist, playlist.replace(str(clip), f"file://{clip}"), cues):
        (tmp_path / "list.mp4").write_text(text)
        for source in (text.encode(), tmp_path / "list.mp4"):
            with pytest.raises(VideoError, match="cannot be read as a video"):
                open_video(source)


def test_frames_may_not_outgrow_the_head(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match="megapixels"):
        open_video(clip, limits=DecodingLimits(pixels=64 * 48 - 1))
    assert len(open_video(clip, limits=DecodingLimits(pixels=64 * 48))) == 8


def test_a_video_is_answered(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4")
    part = {"type": "video_url", "video_url": {"url": uri(clip)}, "frames": 4}
    turn = {"role": "user", "content": [part, {"type": "text", "text": "What is this?"}]}
    request: dict[str, Any] = {"model": MODEL, "messages": [turn], "temperature": 0, "max_tokens": 6}
    asker = zoo_asker()
    with served(ServeOptions(), keep=1 / 3) as (address, _):
        reply = post(address, request).json()
        assert reply["choices"][0]["message"]["content"] is not None
        tokens = asker.inputs([[turn]])["input_ids"].shape[1]
        assert reply["usage"]["prompt_tokens"] == tokens
        both = post(address, request | {"messages": [turn | {"content": [part | {"fps": 1.0}, turn["content"][1]]}]})
        assert both.status_code == 400
        assert both.json()["error"]["message"] == "messages.0.content.0.video_url: give frames or fps, not both"
