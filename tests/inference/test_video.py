"""Questions about videos: from a file to an answer, pruned and not, alone and in batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveate import zoo
from foveate.data.videos import Clip, FrameSampling, open_video
from foveate.errors import InputError
from foveate.inference.answer import Asker
from foveate.inference.pictures import picture
from foveate.inference.processor import ImageTextProcessor
from foveate.inference.video_processor import VideoProcessor
from foveate.inference.video_prompts import replacement, shown_at
from foveate.methods import ViTCoP
from foveate.trace.contact import contact_sheet
from foveate.trace.overlay import KEPT
from tests.cli.run import foveate
from tests.clips import write_clip


@pytest.fixture(scope="module")
def asker() -> Asker:
    return Asker.load(zoo.DEFAULT, 4)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("video") / "a.mp4", size=(112, 84))


def turn(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}]


def test_a_video_part_becomes_its_tokens(asker: Asker, clip: Path) -> None:
    inputs = asker.inputs([turn({"type": "video", "video": str(clip), "frames": 4})])
    tokens = int((inputs["input_ids"] == asker.model.config.video_token_id).sum())
    assert inputs["video_grid_thw"].tolist() == [[2, 8, 10]]
    assert tokens == 2 * 4 * 5
    assert int((inputs["mm_token_type_ids"] == 2).sum()) == tokens
    assert inputs["second_per_grid_ts"].tolist() == pytest.approx([2 / (4 / 30 * 10)])


def test_images_and_videos_in_a_padded_batch_answer_as_alone(asker: Asker, clip: Path) -> None:
    image = {"type": "image", "image": Image.new("RGB", (112, 112), "red")}
    video = {"type": "video", "path": str(clip), "frames": 4}
    chats = [turn(video, image), turn(image), turn(video, video), turn({"type": "video", "video": str(clip), "fps": 1})]
    for method in (None, ViTCoP(keep=0.5)):
        together = [answer.tokens for answer in asker.ask(chats, method)]
        assert together == [asker.ask([chat], method)[0].tokens for chat in chats]


def test_keep_everything_is_the_stock_model(asker: Asker, clip: Path) -> None:
    inputs = asker.inputs([turn({"type": "video", "video": str(clip), "frames": 6})])
    stock = asker.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    answer = asker.answer(inputs, ViTCoP(keep=1.0))[0]
    assert list(answer.tokens) == stock[0, inputs["input_ids"].shape[1] :].tolist()
    assert answer.prefill.keep_ratio == 1.0


def test_a_clip_among_images_of_a_question(asker: Asker, clip: Path) -> None:
    opened = open_video(clip, FrameSampling(frames=4))
    one = asker.questions([([opened], "What is it?")])
    other = asker.inputs([turn({"type": "video", "video": str(clip), "frames": 4})])
    assert torch.equal(one["pixel_values_videos"], other["pixel_values_videos"])
    assert torch.equal(one["input_ids"], other["input_ids"])


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "video", "video": "https://a.b/c.mp4"}, "on the network"),
        ({"type": "video", "video": "x", "path": "y"}, "one video"),
        ({"type": "video"}, "0 video"),
        ({"type": "input_audio", "input_audio": {}}, "only images, videos and text"),
    ],
)
def test_parts_that_cannot_be_asked(part: dict[str, Any], words: str, asker: Asker) -> None:
    with pytest.raises(InputError, match=words):
        asker.inputs([turn(part)])


def test_strangers_name_no_files(asker: Asker, clip: Path) -> None:
    with pytest.raises(InputError, match="not read from files"):
        asker.inputs([turn({"type": "video", "video": str(clip)})], local=False)


def test_a_model_without_videos_says_so(clip: Path) -> None:
    with pytest.raises(InputError, match="takes no videos"):
        Asker.load("foveate/scenes-llava", 4).inputs([turn({"type": "video", "video": str(clip)})])


def test_saved_and_loaded_again(asker: Asker, tmp_path: Path) -> None:
    assert isinstance(asker.processor, ImageTextProcessor)
    assert "video_preprocessor_config.json" in {Path(name).name for name in asker.processor.save_pretrained(tmp_path)}
    again = VideoProcessor.load(str(tmp_path))
    assert again is not None
    assert again.kind == asker.processor.video_processor.kind
    assert json.loads(json.dumps(again.to_dict()))["merge_size"] == 2


def test_frames_carry_their_time_where_a_model_reads_it(asker: Asker) -> None:
    clip = Clip(np.zeros((5, 64, 64, 3), np.uint8), (0, 10, 20, 30, 40), 50, 10.0)
    video = VideoProcessor.of("Qwen3VLVideoProcessor", {})
    assert shown_at(clip, video) == [0.5, 2.5, 4.0]
    processor = ImageTextProcessor(
        asker.processor.image_processor, asker.processor.tokenizer, asker.processor.family, None, video
    )
    values = {"video_grid_thw": torch.tensor([[3, 4, 4]]), "pixel_values_videos": torch.zeros(48, 1)}
    text = replacement(processor, clip, values, 0)
    frame = "<|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
    assert text == f"<0.5 seconds>{frame}<2.5 seconds>{frame}<4.0 seconds>{frame}"


def test_the_contact_sheet_shows_each_step_in_time(asker: Asker, clip: Path) -> None:
    opened = open_video(clip, FrameSampling(frames=8))
    trace = asker.answer(asker.questions([([opened], "What is it?")]), ViTCoP(keep=0.3))[0].prefill
    page = picture(opened, trace)
    frames = [opened.image(number) for number in range(8)]
    assert np.array_equal(np.asarray(page), np.asarray(contact_sheet(frames, trace, seconds=opened.seconds)))
    pixels = np.asarray(page)
    framed = (np.abs(pixels.astype(int) - KEPT).sum(-1) < 12).any()
    assert page.width <= 1500
    assert framed
    with pytest.raises(InputError, match="4 steps in time"):
        contact_sheet(frames[:3], trace)


def test_ask_about_a_video(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept.png"
    done = foveate("ask", clip, "What is it?", "--frames", "4", "--overlay", out, "--compare")
    assert done.returncode == 0, done.stderr
    assert "time to first token ms" in done.stdout
    assert out.stat().st_size > 1000
    assert foveate("ask", clip, "What?", "--frames", "2", "--fps", "1").returncode == 1
    nothing = foveate("ask", tmp_path / "no.mp4", "What?")
    assert "There is no video file" in nothing.stderr
    assert "none was given" in foveate("ask", out, "What?", "--frames", "2").stderr


def test_bench_and_eval_take_videos(clip: Path, tmp_path: Path) -> None:
    options = ["--video", clip, "--frames", "4", "--no-memory", "--repeats", "1", "--warmup", "0", "--new-tokens", "2"]
    done = foveate("bench", *options)
    assert done.returncode == 0, done.stderr
    assert "4 frames of 112 x 84 px" in done.stdout.replace("\n", " ")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"video": str(clip), "question": "What?", "answer": "a", "frames": 4}) + "\n")
    done = foveate("eval", "--data", rows, "--method", "random", "--keep", "0.5", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").is_dir()
