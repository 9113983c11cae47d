"""What stands in a prompt for a video, and what a model is told about its time."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
from torch import Tensor

from foveate.data.videos import Clip
from foveate.errors import InputError
from foveate.families.base import Family
from foveate.inference.video_processor import VideoProcessor


def replacement(processor: Any, clip: Clip, values: dict[str, Tensor], number: int) -> str:
    """The marker of the `number`-th video as often as it has tokens, between the times of its frames where a model
    reads them.

    Args:
        processor: has `family`, `video_processor`, `video_token` and `tokenizer`.
        values: what the video processor gave for all videos.

    Raises:
        InputError: a family whose tokens of a video are not known here.
    """
    token, video = processor.video_token, processor.video_processor
    if "video_grid_thw" not in values:
        return str(token * _tokens(processor.family, values["pixel_values_videos"][number]))
    grid = processor.family.incoming(values)["video"][number].grids[0]
    if video.kind != "Qwen3VLVideoProcessor":
        return str(token * grid.size)
    frame = f"<|vision_start|>{token * (grid.h * grid.w)}<|vision_end|>"
    return "".join(f"<{seconds:.1f} seconds>{frame}" for seconds in shown_at(clip, video))


def shown_at(clip: Clip, video: VideoProcessor) -> list[float]:
    """Seconds at which every temporal patch is shown: the middle of its first and last frame."""
    step = int(video.settings["temporal_patch_size"])
    seconds = np.array(clip.seconds)
    seconds = np.concatenate([seconds, np.repeat(seconds[-1:], -len(seconds) % step)]).reshape(-1, step)
    return [float(value) for value in (seconds[:, 0] + seconds[:, -1]) / 2]


def timing(family: Family, clips: list[Clip], video: VideoProcessor) -> dict[str, list[float]]:
    """What a model that tells time by positions is given: seconds per temporal patch of every video."""
    if "second_per_grid_ts" not in inspect.signature(type(family.parts.base).forward).parameters:
        return {}
    step = video.settings["temporal_patch_size"]
    return {"second_per_grid_ts": [step / (len(clip) / clip.total * (clip.fps or 24.0)) for clip in clips]}


def _tokens(family: Family, frames: Tensor) -> int:
    """Tokens of a video of `[T, 3, h, w]` frames, by how each family pools."""
    config: Any = family.config
    count, _, height, width = frames.shape
    vision = config.vision_config
    rows, columns = height // vision.patch_size, width // vision.patch_size
    if config.model_type == "llava_next_video":
        return rows * columns // 4 * count
    if config.model_type == "llava_onevision":
        return math.ceil(rows / 2) * math.ceil(columns / 2) * count + 1
    if config.model_type == "video_llava":
        return (rows * columns + 1) * count
    raise InputError(f"How many tokens a video has in {config.model_type} models is not known; install torchvision.")
