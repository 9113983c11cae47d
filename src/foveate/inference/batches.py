"""Conversations in one left-padded batch of model inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.video_utils import VideoMetadata

from foveate.data.videos import Clip, FrameSampling, open_video
from foveate.errors import FoveateError, InputError
from foveate.families import adapt
from foveate.families.base import Family
from foveate.inference.chats import open_chat, user
from foveate.inference.placeholders import check_chat, placeholders
from foveate.inference.processor import REFUSALS, ImageTextProcessor
from foveate.inference.video_processor import DEFAULTS as KINDS
from foveate.inference.video_processor import VideoProcessor


def build_batch(model: Any, processor: Any, rows: Sequence[tuple[Sequence[Any], str]]) -> dict[str, Tensor]:
    """Model inputs for one user turn per row, `(images, question)`, on the model's device and in its dtype. A `Clip`
    among the images is a video."""
    return encode(model, processor, [[user(question, images)] for images, question in rows])


def encode(
    model: Any, processor: Any, chats: Sequence[Any], remote: bool = False, local: bool = True
) -> dict[str, Tensor]:
    """Model inputs of whole conversations, padded on the left, on the model's device and in its dtype.

    Args and errors: as `prepared`.
    """
    found = prepared(adapt(model), processor, chats, remote, local)
    return {name: value.to(model.device, in_dtype(value, model.dtype)) for name, value in found.items()}


def in_dtype(value: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a model of this dtype takes an input: what is no fraction stays as it is."""
    return dtype if value.is_floating_point() else value.dtype


def prepared(
    family: Family, processor: Any, chats: Sequence[Any], remote: bool = False, local: bool = True
) -> dict[str, Tensor]:
    """Model inputs of whole conversations as the processor makes them, padded on the left, on the CPU.

    Every processor gets opened pictures, so that they look alike whichever it is.

    Args:
        remote, local: where pictures may come from, see `open_chat`.

    Raises:
        InputError: a conversation that the processor cannot prepare, or text in which the model would see an image.
        ImageError: a picture that cannot be opened.
    """
    if not chats:
        raise InputError("There is no conversation to prepare.")
    marks = placeholders(family, processor.tokenizer)
    opened = [open_chat(chat, remote, local, sampler(processor)) for chat in chats]
    for chat in opened:
        check_chat(chat, marks)
    ready, about_videos = (opened, {}) if isinstance(processor, ImageTextProcessor) else as_arrays(opened)
    try:
        inputs = processor.apply_chat_template(
            ready,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": len(opened) > 1} | about_videos,
        )
    except FoveateError:
        raise
    except REFUSALS as error:
        raise InputError(f"The processor cannot prepare the conversation: {error}") from error
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def sampler(processor: Any) -> Any:
    """Which frames of a video a processor takes, from a `FrameSampling` or None; None for one that takes no videos."""
    if isinstance(processor, ImageTextProcessor):
        return processor.sampler
    stock = getattr(processor, "video_processor", None)
    if stock is None:
        return None
    kind = type(stock).__name__
    if kind in KINDS:
        return VideoProcessor.of(kind, stock.to_dict()).sampler
    return lambda wish: wish or FrameSampling(getattr(stock, "num_frames", None))


def sampled(processor: Any, source: Any, wish: FrameSampling | None) -> Clip:
    """A video with the frames that a processor would take.

    Raises:
        InputError: the processor takes no videos.
        VideoError: the video cannot be opened.
    """
    take = sampler(processor)
    if take is None:
        raise InputError("This model takes no videos, or needs torchvision to prepare them.")
    return open_video(source, take(wish))


def as_arrays(chats: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The conversations as a stock processor takes them, with options that say what the frames of videos are."""
    metadata: list[VideoMetadata] = []

    def part(given: Any) -> Any:
        clip = given.get("video") if isinstance(given, dict) else None
        if not isinstance(clip, Clip):
            return given
        metadata.append(VideoMetadata(clip.total, fps=clip.fps, width=clip.size[0], height=clip.size[1],
                                      frames_indices=list(clip.indices)))  # fmt: skip
        return given | {"video": torch.from_numpy(clip.frames).permute(0, 3, 1, 2)}

    ready = [
        [m | {"content": [part(p) for p in m["content"]]} if isinstance(m["content"], list) else m for m in chat]
        for chat in chats
    ]
    return ready, {"video_metadata": metadata, "do_sample_frames": False} if metadata else {}
