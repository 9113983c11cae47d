"""Prompts as the stock chat template writes them, cut into one shared prefix and K question blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from recipes.zoo.tokenizer import IMAGE, SYSTEM, VIDEO

IGNORE = -100
Pair = tuple[str, str]


@dataclass(frozen=True)
class PromptLayout:
    """Where things stand in a prompt of equally large images.

    Attributes:
        ids: prefix tokens `[Lp]`, image placeholders expanded.
        visual: which of them are image or video tokens, bool `[Lp]`.
        positions: M-RoPE positions of prefix and blocks `[3, Lp + K * Lq]`.
    """

    ids: Tensor
    visual: Tensor
    positions: Tensor

    def flat_positions(self, blocks: int, length: int) -> Tensor:
        """One-dimensional positions `[1, Lp + K * Lq]`: every block continues the prefix."""
        prefix = len(self.ids)
        question = prefix + torch.arange(length)
        return torch.cat([torch.arange(prefix), question.repeat(blocks)])[None]


class Prompts:
    """Encodes questions; remembers what it has encoded."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        self.image, self.video = tokenizer.convert_tokens_to_ids([IMAGE, VIDEO])
        self.start = self._ids(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n")
        self.open, self.close = self._ids("<|vision_start|>"), self._ids("<|vision_end|>")
        self.turn = self._ids("<|im_end|>\n<|im_start|>assistant\n")
        self.end = self._ids("<|im_end|>")
        self._known: dict[str, list[int]] = {}

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def _cached(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._ids(text)
        return self._known[text]

    def blocks(self, pairs: Sequence[Sequence[Pair]]) -> tuple[Tensor, Tensor]:
        """Questions and answers, K for each prompt -> ids and next-token labels, both `[B, K, Lq]`.

        Labels are `IGNORE` but where the answer and its end are predicted.
        """
        rows = []
        for pair_list in pairs:
            for question, answer in pair_list:
                asked = self._cached(question) + self.turn
                rows.append((asked, self._ids(answer) + self.end))
        length = max(len(asked) + len(said) for asked, said in rows) - 1
        ids = torch.full((len(rows), length), self.pad)
        labels = torch.full((len(rows), length), IGNORE)
        for i, (asked, said) in enumerate(rows):
            tokens = torch.tensor(asked + said)
            ids[i, : len(tokens) - 1] = tokens[:-1]
            labels[i, len(asked) - 1 : len(tokens) - 1] = tokens[len(asked) :]
        shape = (len(pairs), -1, length)
        return ids.view(shape), labels.view(shape)

    def layout(
        self, images: int, rows: int, columns: int, blocks: int, length: int, times: Sequence[int] = ()
    ) -> PromptLayout:
        """Layout of `images` images of `rows x columns` tokens and `blocks` blocks of `length`.

        With `times`, instead of the images: one video of so many steps in time, at these temporal positions.
        """
        ids: list[int] = list(self.start)
        parts = [torch.arange(len(ids)).expand(3, -1)]
        position, token = len(ids), self.video if times else self.image
        steps = torch.tensor(times or [0])
        for _ in range(1 if times else images):
            ids += self.open + [token] * (len(steps) * rows * columns) + self.close
            parts.append(torch.full((3, 1), position))
            origin = position + 1
            grid = torch.meshgrid(steps, torch.arange(rows), torch.arange(columns), indexing="ij")
            parts.append(origin + torch.stack(grid).flatten(1))
            position = origin + max(rows, columns)
            parts.append(torch.full((3, 1), position))
            position += 1
        question = position + torch.arange(length)
        parts.append(question.repeat(blocks).expand(3, -1))
        prefix = torch.tensor(ids)
        return PromptLayout(prefix, prefix == token, torch.cat(parts, 1))
