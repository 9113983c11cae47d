"""Model and prompt of a measurement, from names and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.bench.job import Job
from foveate.errors import ConfigurationError
from foveate.families import presets, prompts


@dataclass(frozen=True)
class Subject:
    """What is measured: a model, a prompt, and what the prompt is in words."""

    model: Any
    inputs: dict[str, Tensor]
    prompt: str


def prepare(job: Job, device: str | None = None) -> Subject:
    """Load or build the model and make its prompt.

    Raises:
        ConfigurationError: a preset with an image (it has no tokenizer), or an unknown dtype.
    """
    if job.image is not None and job.tokens is not None:
        raise ConfigurationError("Give --image or --tokens, not both.")
    if job.model in presets.PRESETS:
        if job.image is not None:
            raise ConfigurationError(f"{job.model} has random weights and no tokenizer; give --tokens, not --image.")
        where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        tokens = job.tokens or presets.PRESETS[job.model].tokens
        model = presets.build(job.model, tokens, _dtype(job.dtype, where), where, job.attention, job.seed)
        return _random(model, tokens, job)
    from foveate.inference.loading import load

    dtype = None if job.dtype == "auto" else _dtype(job.dtype, "")
    model, processor = load(job.model, dtype=dtype, device=device, attn_implementation=job.attention)
    if job.image is None:
        return _random(model, job.tokens or prompts.default_tokens(model), job)
    from foveate.data.images import open_image
    from foveate.inference.batches import build_batch

    image = open_image(job.image)
    inputs = build_batch(model, processor, [([image], job.question)] * job.batch)
    return Subject(model, inputs, f"{job.image} ({image.width} x {image.height} px) and {job.question!r}")


def _random(model: Any, tokens: int, job: Job) -> Subject:
    inputs = prompts.random_prompt(model, tokens, job.batch, seed=job.seed)
    words = f"random: one image of {tokens} visual tokens and {prompts.TEXT_TOKENS} text tokens per row"
    return Subject(model, inputs, words)


def _dtype(name: str, device: str) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigurationError(f"--dtype {name}: write float32, bfloat16 or float16.")
    return found
