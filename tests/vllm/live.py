"""vLLM's engine with the plugin, and the same requests through the transformers engine."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

import foveate
from foveate.plugins.vllm.settings import KEEP, Settings

TOKENS = 8
CHUNK = 64
"""Tokens that an engine reads at a time."""


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        prompt: with placeholders.
        images: as many as it has placeholders.
        keep: its own, None: the server's.
    """

    prompt: str
    images: Sequence[Image.Image] = ()
    keep: float | None = None

    def for_vllm(self, others: dict[str, Any], name: str | None = None) -> dict[str, Any]:
        """With other settings that only vLLM is told, and a name for all images."""
        own = ({} if self.keep is None else {KEEP: self.keep}) | others
        images = {"image": list(self.images)} if self.images else {}
        found: dict[str, Any] = {"prompt": self.prompt, "multi_modal_data": images}
        if name is not None:
            found["multi_modal_uuids"] = {"image": [name] * len(self.images)}
        return found | ({"mm_processor_kwargs": own} if own else {})


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of coloured blocks."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)[:height, :width])


@dataclass
class Engine:
    """A running vLLM engine."""

    llm: LLM
    cached: list[int] = field(default_factory=list)

    def answer(self, requests: Sequence[Asked], uuids: str | None = None, **others: Any) -> list[list[int]]:
        """Tokens of every answer; requests run together.

        Args:
            uuids: what the requests call their images.
            others: what they say in `mm_processor_kwargs` besides a keep.
        """
        sampling = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
        found = self.llm.generate([one.for_vllm(others, uuids) for one in requests], sampling, use_tqdm=False)
        self.cached = [one.num_cached_tokens or 0 for one in found]
        self.lengths = [len(one.prompt_token_ids or ()) for one in found]
        return [list(one.outputs[0].token_ids) for one in found]


@contextmanager
def engine(folder: Path, settings: dict[str, Any] | None, **options: Any) -> Iterator[Engine]:
    """One that reads prompts in pieces and remembers their beginnings."""
    given: dict[str, Any] = {
        "dtype": "float32", "enforce_eager": True, "max_model_len": 1000, "max_num_seqs": 4,
        "max_num_batched_tokens": CHUNK,
        "enable_prefix_caching": True, "enable_chunked_prefill": True, "block_size": 32, "seed": 0,
        "limit_mm_per_prompt": {"image": 2}, "hf_overrides": {} if settings is None else {"foveate": settings},
        "disable_log_stats": True,
    }  # fmt: skip
    llm = LLM(str(folder), **given | options)
    try:
        yield Engine(llm)
    finally:
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def offline(folder: Path, settings: dict[str, Any] | None, requests: Sequence[Asked]) -> list[list[int]]:
    """Answers of the transformers engine, one request at a time."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    found = []
    for one in requests:
        method = None if settings is None else Settings.of(settings).chosen(one.keep)
        images = {"images": list(one.images)} if one.images else {}
        inputs = processor(text=[one.prompt], **images, return_tensors="pt")
        with torch.no_grad(), foveate.prune(model, method):
            out = model.generate(**inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
        found.append(out[0, inputs["input_ids"].shape[1] :].tolist())
    return found
