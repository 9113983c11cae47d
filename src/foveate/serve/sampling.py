"""The next token of one row, whatever its neighbours do."""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from foveate.errors import ConfigurationError
from foveate.inference.schemas import JsonSchema

UNSUPPORTED = (
    "no_repeat_ngram_size", "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "sequence_bias", "min_length", "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens",
    "begin_suppress_tokens", "guidance_scale", "exponential_decay_length_penalty", "watermarking_config",
)  # fmt: skip
"""Settings of a checkpoint's `generation_config` that change greedy answers and that the server does not honour."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy.

    Attributes:
        seed: None: another one every time.
        penalty: repetition penalty of the checkpoint's `generation_config`.
        top_k: the same; only where tokens are drawn.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    penalty: float = 1.0
    top_k: int = 0


def check_generation(model: Any) -> tuple[float, int]:
    """Repetition penalty and top-k of the checkpoint, as `generate` would take them.

    Raises:
        ConfigurationError: it asks for something that would change answers and is not offered here.
    """
    config = model.generation_config
    set_ = [name for name in UNSUPPORTED if getattr(config, name, None)]
    if set_:
        raise ConfigurationError(
            f"The checkpoint's generation_config sets {', '.join(set_)}, which the server does not honour; answers "
            "would differ from generate's. Remove it from generation_config.json."
        )
    top_k = getattr(config, "top_k", None) or 0
    return float(getattr(config, "repetition_penalty", None) or 1.0), int(top_k)


class Sampler:
    """Chooses the tokens of one row, by transformers' own processors.

    Args:
        how: see `Sampling`.
        number: of this answer among those of its request; each draws on its own.
        prompt: `[n]` token ids, for the repetition penalty.
        schema: that the answer follows.
    """

    def __init__(
        self, how: Sampling, number: int = 0, prompt: Tensor | None = None, schema: JsonSchema | None = None
    ) -> None:
        self.greedy = how.temperature == 0
        self._json = None if schema is None else schema.row()
        self._processors = LogitsProcessorList()
        self._seen: Tensor | None = None
        if how.penalty != 1.0:
            self._processors.append(RepetitionPenaltyLogitsProcessor(how.penalty))
            self._seen = torch.empty(0, dtype=torch.long) if prompt is None else prompt.cpu()
        if self.greedy:
            return
        if how.temperature != 1.0:
            self._processors.append(TemperatureLogitsWarper(how.temperature))
        if how.top_k:
            self._processors.append(TopKLogitsWarper(how.top_k))
        if how.top_p < 1.0:
            self._processors.append(TopPLogitsWarper(how.top_p))
        seed = secrets.randbits(63) if how.seed is None else random.Random(f"{how.seed} {number}").getrandbits(63)
        self._random = torch.Generator().manual_seed(seed)

    def choose(self, logits: Tensor) -> int:
        """The next token.

        Args:
            logits: `[V]` of this row.
        """
        scores = logits[None].float()
        if self._json is not None:
            scores = self._json.allow(scores[0])[None]
        if len(self._processors):
            seen = self._seen if self._seen is not None else torch.empty(0, dtype=torch.long)
            scores = self._processors(seen[None].to(scores.device), scores)
        if self.greedy:
            token = int(scores[0].argmax())
        else:  # drawn on the host: a seed gives the same on every device
            token = int(torch.multinomial(scores[0].softmax(-1).cpu(), 1, generator=self._random))
        if self._json is not None:
            self._json.take(token)
        if self._seen is not None:
            self._seen = torch.cat([self._seen, torch.tensor([token])])
        return token
