"""Model and prompt of a measurement, from names and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate import zoo
from foveate.bench.job import Job
from foveate.data.images import open_image
from foveate.data.videos import FrameSampling, check_video
from foveate.errors import ConfigurationError
from foveate.families import presets, prompts
from foveate.inference.answer import Asker
from foveate.inference.batches import sampled
from foveate.inference.placement import check_attention, choose_device, parse_dtype


@dataclass(frozen=True)
class Workload:
    """What is measured: a model, a prompt, and what the prompt is in words."""

    model: Any
    inputs: dict[str, Tensor]
    prompt: str


def prepare(job: Job, device: str | None = None) -> Workload:
    """Load or build the model and make its prompt.

    Raises:
        ConfigurationError: a preset with an image (it has no tokenizer), or an unknown dtype or model.
    """
    if sum(given is not None for given in (job.image, job.video, job.tokens)) > 1:
        raise ConfigurationError("Give --image, --video or --tokens, not more than one of them.")
    if job.frames is not None and job.video is None:
        raise ConfigurationError("--frames is about --video, which was not given.")
    if job.model in presets.PRESETS:
        if job.image is not None or job.video is not None:
            raise ConfigurationError(
                f"{job.model} has random weights and no tokenizer; give --tokens, not --image or --video."
            )
        return _random(_preset(job, device), job.tokens or presets.PRESETS[job.model].tokens, job)
    if "/" not in job.model and not Path(job.model).exists():
        raise ConfigurationError(
            f"There is no model {job.model!r}: give a folder, a Hub id (owner/name), one of the zoo "
            f"({', '.join(zoo.names())}) or a preset with random weights ({', '.join(presets.PRESETS)})."
        )
    image = None if job.image is None else open_image(job.image)  # before anything takes time
    wish = FrameSampling(job.frames) if job.frames else None
    if job.video is not None:
        check_video(job.video)
    dtype = None if job.dtype == "auto" else job.dtype
    asker = Asker.load(job.model, job.new_tokens, dtype=dtype, device=device, attn_implementation=job.attention)
    if job.video is not None:
        return _film(asker, job, job.video, wish)
    if image is None:
        return _random(asker.model, job.tokens or prompts.default_tokens(asker.model), job)
    inputs = asker.questions([([image], job.question)] * job.batch)
    return Workload(asker.model, inputs, f"{job.image} ({image.width} x {image.height} px) and {job.question!r}")


def _film(asker: Asker, job: Job, video: str, wish: FrameSampling | None) -> Workload:
    clip = sampled(asker.processor, video, wish)
    inputs = asker.questions([([clip], job.question)] * job.batch)
    words = f"{video} ({len(clip)} frames of {clip.size[0]} x {clip.size[1]} px) and {job.question!r}"
    return Workload(asker.model, inputs, words)


def _random(model: Any, tokens: int, job: Job) -> Workload:
    inputs = prompts.random_prompt(model, tokens, job.batch, seed=job.seed)
    words = f"random: one image of {tokens} visual tokens and {prompts.TEXT_TOKENS} text tokens per row"
    return Workload(model, inputs, words)


def _preset(job: Job, device: str | None) -> Any:
    where = choose_device(device)
    dtype = parse_dtype(job.dtype)
    if not isinstance(dtype, torch.dtype):
        dtype = torch.float32 if where == "cpu" else torch.bfloat16
    check_attention(job.attention, where, dtype)
    return presets.build(job.model, job.tokens, dtype, where, job.attention, job.seed)
