"""One question, or a batch of them, to one model under one method: the way that everything a user runs goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from foveate.core.method import Method
from foveate.engine import attach as engine
from foveate.errors import InputError
from foveate.families import adapt
from foveate.inference.batches import encode
from foveate.inference.chats import user
from foveate.inference.loading import load
from foveate.inference.placeholders import check_text, placeholders
from foveate.inference.pruning import Choice, resolve
from foveate.inference.streaming import Stream
from foveate.trace.html import render
from foveate.trace.records import PrefillTrace
from foveate.trace.trace import Trace

GREEDY = {"do_sample": False, "num_beams": 1}
Stop = Literal["end", "length", "stop string"]


@dataclass(frozen=True)
class Answer:
    """What the model said to one row of a batch.

    Attributes:
        text: without special tokens and surrounding space, cut before the first stop string.
        tokens: ids of the generated tokens, the end token included, padding not.
        stop: why it ends: the model ended it, the limit of new tokens did, or a stop string.
        row: which row of the batch, and of the trace, it answers.
        trace: of this call only; other calls, threads and methods write to their own.
    """

    text: str
    tokens: tuple[int, ...]
    stop: Stop
    row: int
    trace: Trace

    @property
    def prefill(self) -> PrefillTrace:
        """How the prompt was read: all rows of the batch, of which this is `row`."""
        return self.trace.last

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of this row's unpruned prompt."""
        return sum(group.shown for group in self.prefill.groups if group.row == self.row)

    @property
    def kept_tokens(self) -> float:
        """Visual tokens of this row alive, on average over the decoder layers."""
        alive = self.prefill.alive_per_layer(self.row)
        return sum(alive) / max(1, len(alive))

    @property
    def left_tokens(self) -> int:
        """Visual tokens of this row that the last decoder layer reads: what is left after all stages."""
        alive = self.prefill.alive_per_layer(self.row)
        return alive[-1] if alive else self.visual_tokens

    def _repr_html_(self) -> str:
        """Text and trace, as notebooks show them."""
        return render(self.prefill, f"{self.text} ({self.stop})", self.row)


def context_length(model: Any) -> int:
    """Tokens that a model reads at most; a number beyond all prompts if it does not say."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31)


@dataclass(frozen=True)
class Asker:
    """A model with its processor, and how it is to answer.

    Args:
        model: stock transformers model.
        processor: its processor.
        max_new_tokens: longest answer.
        stop: strings that end an answer; they are no part of it.
        options: further arguments of `generate`; greedy decoding unless they say otherwise.
    """

    model: Any
    processor: Any
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path_or_id: str | Path, max_new_tokens: int = 64, **placement: Any) -> Self:
        """An asker of a checkpoint; `placement` as in `loading.load`."""
        return cls(*load(path_or_id, **placement), max_new_tokens=max_new_tokens)

    # -- asking ------------------------------------------------------------------------------------------

    def inputs(self, chats: Sequence[Any], remote: bool = False, local: bool = True) -> dict[str, Tensor]:
        """Model inputs of whole conversations, padded on the left.

        Args:
            chats: each a list of messages (several turns, several images each: see `chats.open_chat`).
            remote: whether pictures may come from http(s) addresses.
            local: whether they may come from files.

        Raises:
            InputError, ImageError: what cannot be prepared.
        """
        return encode(self.model, self.processor, chats, remote=remote, local=local)

    def check_text(self, text: str, name: str) -> None:
        """Refuse text that goes to the model past `inputs` (a continuation) if the model would see an image in it.

        Raises:
            InputError: naming the text, and the placeholder in it.
        """
        check_text(text, placeholders(adapt(self.model), self.processor.tokenizer), name)

    def questions(self, rows: Sequence[tuple[Sequence[Any], str]]) -> dict[str, Tensor]:
        """Model inputs of one user turn per row, `(images, question)`."""
        return self.inputs([[user(question, images)] for images, question in rows])

    def answer(self, inputs: Mapping[str, Any], method: Choice = None, **options: Any) -> list[Answer]:
        """Answers to prepared inputs, in the order of the rows (several per row for `num_return_sequences`).

        Args:
            method: what prunes the prompt: a method, or its text (`vitcop:keep=1/9`); None: nothing.
            options: of `generate`, for this call.
        """
        given = self._options(options)
        ids, trace = generate(self.model, inputs, resolve(self.model, method), **given)
        new = ids[:, inputs["input_ids"].shape[1] :].tolist()
        each = max(1, len(new) // max(1, inputs["input_ids"].shape[0]))
        return [self._read(tokens, number // each, trace, given) for number, tokens in enumerate(new)]

    def ask(self, chats: Sequence[Any], method: Choice = None) -> list[Answer]:
        """Prepare and answer a batch of conversations."""
        return self.answer(self.inputs(chats), method)

    def stream(self, inputs: Mapping[str, Any], method: Choice = None, **options: Any) -> Stream[Answer]:
        """One answer, piece by piece: iterate for text, then read `.answer`. Leaving the loop stops the model."""
        if inputs["input_ids"].shape[0] != 1:
            raise InputError("One row at a time can be streamed; ask the others in streams of their own.")
        tokenizer = self.processor.tokenizer
        return Stream(lambda **more: self.answer(inputs, method, **options, **more)[0], tokenizer, self.stop)

    # -- how ---------------------------------------------------------------------------------------------

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        found = {"max_new_tokens": self.max_new_tokens, **GREEDY, **self.options, **given}
        if self.stop:
            found |= {"stop_strings": list(self.stop), "tokenizer": self.processor.tokenizer}
        return found

    def _read(self, tokens: list[int], row: int, trace: Trace, given: Mapping[str, Any]) -> Answer:
        config, limit = self.model.generation_config, given.get("max_new_tokens")
        ends = _ids(given.get("eos_token_id", config.eos_token_id))
        pads = _ids(given.get("pad_token_id", config.pad_token_id)) - ends
        stop: Stop
        last = next((n for n, token in enumerate(tokens) if token in ends), None)
        if last is not None:
            tokens, stop = tokens[: last + 1], "end"
        else:  # rows that a stop string ended are padded to the longest
            while tokens and tokens[-1] in pads and len(tokens) > 1:
                tokens = tokens[:-1]
            stop = "length" if limit is None or len(tokens) >= limit else "stop string"
        text = self.processor.tokenizer.decode(tokens, skip_special_tokens=True)
        short = cut(text, self.stop)
        return Answer(short.strip(), tuple(tokens), "stop string" if short != text else stop, row, trace)


@torch.inference_mode()
def generate(model: Any, inputs: Mapping[str, Any], method: Method | None, **options: Any) -> tuple[Tensor, Trace]:
    """Token ids `[rows, prompt + new]` under a method, and the trace of this call.

    Args:
        options: of the model's own `generate`; greedy decoding unless they say otherwise.
    """
    with engine.prune(model, method) as trace:
        ids: Tensor = model.generate(**inputs, **(GREEDY | options))
    return ids, trace


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    places = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


def _ids(value: Any) -> set[int]:
    return set() if value is None else {value} if isinstance(value, int) else set(value)
