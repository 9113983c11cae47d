"""Pixels and frames of videos are those of the stock processors, whose own need torchvision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate.data.videos import Clip, FrameSampling
from foveate.errors import InputError
from foveate.inference.video_processor import DEFAULTS, VideoProcessor

FOLDER = Path(__file__).parents[1] / "golden" / "video"
CASES = json.loads((FOLDER / "cases.json").read_text())["cases"]


def noise(frames: int, height: int, width: int, seed: int = 0) -> Clip:
    values = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return Clip(values, tuple(range(frames)), frames, 10.0)


@pytest.mark.parametrize("case", [c for c in CASES if "shape" in c], ids=lambda c: c["name"])
def test_pixels_are_the_stock_ones(case: dict[str, Any]) -> None:
    """What the stock processors gave under torchvision 0.28; integer kernels, so the same on any x86."""
    found = VideoProcessor.of(case["kind"], case["settings"])([noise(*case["frames"], seed=case["seed"])])
    pixels = found["pixel_values_videos"]
    assert list(pixels.shape) == case["shape"]
    wanted = torch.from_numpy(np.load(FOLDER / "pixels.npz")[case["name"]])
    assert torch.allclose(pixels.flatten()[:: case["step"]], wanted, atol=2 / 255 / 0.26)
    assert (pixels.flatten()[:: case["step"]] == wanted).float().mean() > 0.99
    assert (found["video_grid_thw"].tolist() if case["grid"] else None) == case["grid"]


@pytest.mark.parametrize("case", [c for c in CASES if "samples" in c], ids=lambda c: c["name"])
def test_frames_are_the_stock_ones(case: dict[str, Any]) -> None:
    for sample in case["samples"]:
        take = VideoProcessor.of(case["kind"], {}).sampler(FrameSampling(**sample["wish"]))
        assert take(sample["total"], sample["fps"]) == sample["indices"]


@pytest.mark.parametrize("kind", DEFAULTS)
@pytest.mark.parametrize(
    "wish", [None, FrameSampling(frames=1), FrameSampling(frames=3), FrameSampling(fps=0.01), FrameSampling(fps=100)]
)
def test_any_wish_gives_frames_that_exist(kind: str, wish: FrameSampling | None) -> None:
    for total in (1, 2, 5, 400):
        frames = VideoProcessor.of(kind, {}).sampler(wish)(total, 25.0)
        assert frames == sorted(set(frames))
        assert 0 <= frames[0] <= frames[-1] < total


def test_what_a_checkpoint_says(tmp_path: Path) -> None:
    assert VideoProcessor.load(str(tmp_path)) is None
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "Qwen2VLImageProcessor", "max_pixels": 50176, "patch_size": 14})
    )
    old = VideoProcessor.load(str(tmp_path))
    assert old is not None
    assert (old.kind, old.settings["size"]["longest_edge"]) == ("Qwen2VLVideoProcessor", 50176)
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(old.to_dict() | {"merge_size": 4}))
    new = VideoProcessor.load(str(tmp_path))
    assert new is not None
    assert new.settings["merge_size"] == 4
    (tmp_path / "video_preprocessor_config.json").write_text(
        json.dumps({"video_processor_type": "OtherVideoProcessor"})
    )
    assert VideoProcessor.load(str(tmp_path)) is None


def test_blocks_of_frames_need_one_length() -> None:
    processor = VideoProcessor.of("LlavaOnevisionVideoProcessor", {})
    with pytest.raises(InputError, match="same number of frames"):
        processor([noise(2, 20, 20), noise(3, 20, 20)])
