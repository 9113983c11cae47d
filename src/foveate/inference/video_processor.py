"""Pixels of videos as the models' own processors make them, where torchvision is missing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BatchFeature
from transformers.utils.hub import cached_file

from foveate.data.videos import Clip, FrameSampling
from foveate.errors import InputError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
SQUARE = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
DEFAULTS: dict[str, dict[str, Any]] = {
    "Qwen2VLVideoProcessor": {
        "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}, "patch_size": 14,
    },
    "Qwen3VLVideoProcessor": {
        "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768}, "patch_size": 16, "fps": 2,
        "image_mean": HALF, "image_std": HALF,
    },
    "LlavaNextVideoVideoProcessor": SQUARE,
    "VideoLlavaVideoProcessor": SQUARE,
    "LlavaOnevisionVideoProcessor": {"size": {"height": 384, "width": 384}},
}  # fmt: skip
"""What each processor does where the checkpoint says nothing."""
BY_IMAGES = {
    "Qwen2VL": "Qwen2VLVideoProcessor",
    "LlavaNextVideo": "LlavaNextVideoVideoProcessor",
    "LlavaOnevision": "LlavaOnevisionVideoProcessor",
    "VideoLlava": "VideoLlavaVideoProcessor",
}
"""Older checkpoints describe images and videos in one file, named after the images."""
MODES = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class VideoProcessor:
    """Resizes, scales and cuts frames as a transformers video processor of one kind.

    Attributes:
        kind: which one.
        settings: what the checkpoint says, over that kind's defaults.
    """

    kind: str
    settings: Mapping[str, Any]

    @classmethod
    def load(cls, source: str) -> VideoProcessor | None:
        """The one that a checkpoint describes, None if it describes none that is known here."""
        described = _described(source)
        kind = described.get("video_processor_type") or BY_IMAGES.get(
            str(described.get("image_processor_type", "")).removesuffix("Fast").removesuffix("ImageProcessor"), ""
        )
        return cls.of(kind, described) if kind in DEFAULTS else None

    @classmethod
    def of(cls, kind: str, described: Mapping[str, Any]) -> VideoProcessor:
        defaults: dict[str, Any] = {
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "resample": 3,
            "rescale_factor": 1 / 255,
        }
        defaults |= {"temporal_patch_size": 2, "merge_size": 2, **DEFAULTS[kind]}
        given = {name: value for name, value in described.items() if value is not None}
        limits = {"shortest_edge": given.pop("min_pixels", None), "longest_edge": given.pop("max_pixels", None)}
        found = defaults | given
        if in_patches(kind):
            found["size"] = dict(found["size"]) | {name: value for name, value in limits.items() if value is not None}
        return cls(kind, found)

    def to_dict(self) -> dict[str, Any]:
        """As a checkpoint's `video_preprocessor_config.json` describes it."""
        return dict(self.settings) | {"video_processor_type": self.kind}

    # -- which frames ------------------------------------------------------------------------------------

    def sampler(self, sampling: FrameSampling | None = None) -> Any:
        """Which frames to take: as the model's processor does; without a wish of the user as the checkpoint says."""
        wish = sampling or FrameSampling(
            self.settings.get("num_frames"), None if self.settings.get("num_frames") else self.settings.get("fps")
        )
        return {"Qwen2VLVideoProcessor": self._even_frames, "Qwen3VLVideoProcessor": self._end_to_end}.get(
            self.kind, lambda wish: wish
        )(wish)

    def _even_frames(self, wish: FrameSampling) -> Any:
        """Qwen2-VL: a number of frames that fills temporal patches."""

        def sample(total: int, fps: float) -> list[int]:
            step = self.settings["temporal_patch_size"]
            if wish.fps is None:
                count = round((wish.frames or 8) / step) * step
            else:
                most = min(self.settings.get("max_frames", 768), total) // step * step
                count = math.floor(min(max(total / fps * wish.fps, self.settings.get("min_frames", 4)), most, total))
                count = count // step * step
            count = min(max(count, 1), total)
            return [int(index) for index in torch.arange(0, total, total / count).int()]

        return sample

    def _end_to_end(self, wish: FrameSampling) -> Any:
        """Qwen3-VL: evenly from the first frame to the last."""

        def sample(total: int, fps: float) -> list[int]:
            count = wish.frames
            if count is None:
                least, most = self.settings.get("min_frames", 4), self.settings.get("max_frames", 768)
                count = min(max(int(total / fps * (wish.fps or 2)), least), most, total)
            return [int(index) for index in np.linspace(0, total - 1, min(count, total)).round()]

        return sample

    # -- pixels ------------------------------------------------------------------------------------------

    def __call__(self, clips: Sequence[Clip]) -> BatchFeature:
        """`pixel_values_videos` (patches of all videos, or `[videos, T, 3, h, w]`), and grids where patches need them.

        Raises:
            InputError: videos of several lengths or sizes for a model that takes a block of frames.
        """
        videos = [
            self._scaled(torch.from_numpy(np.ascontiguousarray(clip.frames)).permute(0, 3, 1, 2)) for clip in clips
        ]
        if not in_patches(self.kind):
            if len({video.shape for video in videos}) > 1:
                raise InputError("Videos of one batch need the same number of frames for this model; set --frames.")
            return BatchFeature({"pixel_values_videos": torch.stack(videos)})
        patches, grids = zip(*(self._patches(video) for video in videos), strict=True)
        return BatchFeature({"pixel_values_videos": torch.cat(patches), "video_grid_thw": torch.tensor(grids)})

    def _scaled(self, frames: Tensor) -> Tensor:
        """`[T, 3, h, w]` float32 of uint8 frames: resized as 8-bit values like torchvision, cropped, normalised."""
        given = self.settings
        if given.get("do_resize", True):
            size = self._size(frames)
            if size != tuple(frames.shape[-2:]):
                frames = resize(frames, size, MODES.get(given["resample"], "bicubic"))
        if given.get("do_center_crop"):
            frames = center_crop(frames, given["crop_size"]["height"], given["crop_size"]["width"])
        mean, std = (torch.tensor(given[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
        factor = given["rescale_factor"] if given.get("do_rescale", True) else 1.0
        if not given.get("do_normalize", True):
            return frames.float() * factor
        # as the library: the factor is folded into mean and deviation
        return (frames.float() - mean * (1 / factor)) / (std * (1 / factor))

    def _size(self, frames: Tensor) -> tuple[int, int]:
        given, (count, _, height, width) = self.settings, frames.shape
        size = given["size"]
        if in_patches(self.kind):
            step = given["patch_size"] * given["merge_size"]
            least, most = size["shortest_edge"], size["longest_edge"]
            if self.kind == "Qwen3VLVideoProcessor":
                return _whole_video_size(count, height, width, given["temporal_patch_size"], step, least, most)
            return _frame_size(height, width, step, least, most)
        if size.get("shortest_edge"):
            short = size["shortest_edge"]
            long = int(short * max(height, width) / min(height, width))
            return (short, long) if height <= width else (long, short)
        return size["height"], size["width"]

    def _patches(self, frames: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        given = self.settings
        step, patch, merge = given["temporal_patch_size"], given["patch_size"], given["merge_size"]
        if missing := -len(frames) % step:
            frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
        count, channels, height, width = frames.shape
        t, h, w = count // step, height // patch, width // patch
        cut = frames.reshape(t, step, channels, h // merge, merge, patch, w // merge, merge, patch)
        return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1), (t, h, w)


def in_patches(kind: str) -> bool:
    """Whether a processor gives patches with a grid rather than frames."""
    return kind.startswith("Qwen")


def resize(frames: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """uint8 `[T, 3, h, w]` at another size, antialiased."""
    # torch has an exact integer kernel for three interleaved channels; torchvision takes it too
    return F.interpolate(frames.contiguous(memory_format=torch.channels_last), size, mode=mode, antialias=True)


def center_crop(frames: Tensor, height: int, width: int) -> Tensor:
    """The middle of frames that are at least so large."""
    top, left = (round((have - want) / 2.0) for have, want in zip(frames.shape[-2:], (height, width), strict=True))
    return frames[..., top : top + height, left : left + width]


def _frame_size(height: int, width: int, step: int, least: int, most: int) -> tuple[int, int]:
    """(height, width) in whole steps whose product lies between `least` and `most`, of about the same shape."""
    h, w = (max(step, round(side / step) * step) for side in (height, width))
    if h * w > most:
        shrink = math.sqrt(height * width / most)
        return max(step, int(height / shrink / step) * step), max(step, int(width / shrink / step) * step)
    if h * w < least:
        grow = math.sqrt(least / (height * width))
        return math.ceil(height * grow / step) * step, math.ceil(width * grow / step) * step
    return h, w


def _whole_video_size(
    count: int, height: int, width: int, temporal: int, step: int, least: int, most: int
) -> tuple[int, int]:
    """The same for the product with the number of frames."""
    if height < step or width < step:
        scale = max(step / height, step / width)
        height, width = int(height * scale), int(width * scale)
    frames = round(count / temporal) * temporal
    h, w = (round(side / step) * step for side in (height, width))
    if frames * h * w > most:
        shrink = math.sqrt(count * height * width / most)
        return max(step, int(height / shrink / step) * step), max(step, int(width / shrink / step) * step)
    if frames * h * w < least:
        grow = math.sqrt(least / (count * height * width))
        return math.ceil(height * grow / step) * step, math.ceil(width * grow / step) * step
    return h, w


def _described(source: str) -> dict[str, Any]:
    """What a checkpoint says of videos: in a file of their own, in that of the processor, or in that of images."""
    for name in ("video_preprocessor_config.json", "processor_config.json", "preprocessor_config.json"):
        place = cached_file(
            source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_gated_repo=False
        )
        if place is None:
            continue
        found = json.loads(Path(place).read_text(encoding="utf-8"))
        if name == "processor_config.json":
            found = found.get("video_processor") or {}
        if found:
            return dict(found)
    return {}
