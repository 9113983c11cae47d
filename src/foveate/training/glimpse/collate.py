"""Examples -> batches: prompts as inference prepares them, by whichever processor the model has, and answers behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.data.boxes import Box
from foveate.data.rows import Row
from foveate.data.videos import Clip
from foveate.errors import DataError, FoveateError
from foveate.families.base import Family
from foveate.inference.batches import in_dtype, prepared
from foveate.inference.chats import assistant, user
from foveate.training.evidence import ImageBoxes
from foveate.training.losses import IGNORE


@dataclass
class Collator:
    """Makes batches for `GlimpseForTraining.forward`, on the CPU. Prompts are padded on their left, answers on their
    right.

    Attributes:
        family: adapter of the base model.
        processor: its processor (`foveate.inference.loading.load`).
        system: system message; None leaves it to the chat template.
        with_boxes: also give the evidence boxes.
    """

    family: Family
    processor: Any
    system: str | None = None
    with_boxes: bool = True

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def __call__(self, examples: Sequence[Row]) -> dict[str, Any]:
        """Model inputs with `labels` on the answers and, if asked for, `boxes`: normalised, of each image of each row,
        relative to what the model sees of it."""
        media = [example.load_media() for example in examples]
        batch: dict[str, Any] = self._prompts(examples, media)
        answers = [self._answer(example, own) for example, own in zip(examples, media, strict=True)]
        batch |= _followed(batch, answers)
        if self.with_boxes:
            batch["boxes"] = [self._boxes(example, own) for example, own in zip(examples, media, strict=True)]
        return batch

    def prompts(self, examples: Sequence[Row]) -> dict[str, Tensor]:
        """Model inputs without answers, ready for `generate`."""
        return self._prompts(examples, [example.load_media() for example in examples])

    def _prompts(self, examples: Sequence[Row], media: Sequence[Sequence[Any]]) -> dict[str, Tensor]:
        chats = [self._chat(example, own) for example, own in zip(examples, media, strict=True)]
        try:
            found = prepared(self.family, self.processor, chats)
        except FoveateError as error:
            for example, chat in zip(examples, chats, strict=True):
                self._check(example, chat)
            raise error
        base: Any = self.family.parts.base
        return {name: value.to(in_dtype(value, base.dtype)) for name, value in found.items()}

    def _check(self, example: Row, chat: list[dict[str, Any]]) -> None:
        """Say which row it was that could not be prepared."""
        try:
            prepared(self.family, self.processor, [chat])
        except FoveateError as error:
            raise DataError(f"{example.where}: {error}") from error

    def _chat(self, example: Row, media: Sequence[Any]) -> list[dict[str, Any]]:
        turn = [] if self.system is None else [{"role": "system", "content": [{"type": "text", "text": self.system}]}]
        return [*turn, user(example.question, media)]

    def _answer(self, example: Row, media: Sequence[Any]) -> list[int]:
        """The answer's tokens up to the end-of-sequence token, with which generation ends too.

        What templates put after it (Qwen: a newline) belongs to no answer; some put nothing.
        """
        chat, answer = self._chat(example, media), example.answer or ""
        prompt, whole = self._render(chat, True), self._render([*chat, assistant(answer)], False)
        # A template that rewrites earlier turns cannot tell where the answer starts.
        text = whole[len(prompt) :] if whole.startswith(prompt) else answer
        end = self.tokenizer.eos_token_id
        ids = self._ids(text)
        return ids[: ids.index(end) + 1] if end in ids else [*self._ids(text.rstrip()), end]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return ids

    def _render(self, chat: list[dict[str, Any]], prompt: bool) -> str:
        found: str = self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
        return found

    def _boxes(self, example: Row, media: Sequence[Any]) -> ImageBoxes:
        """Boxes of each image of a row."""
        if example.boxes is None or any(isinstance(one, Clip) for one in media):
            raise DataError(f"{example.where}: evidence boxes lie in images, and it has none or videos")
        return [self._seen(boxes, image.size) for boxes, image in zip(example.boxes, media, strict=True)]

    def _seen(self, boxes: Sequence[Box], size: tuple[int, int]) -> list[Box]:
        """Boxes relative to what the model sees, where the image processor crops the centre."""
        processor = self.processor.image_processor
        if not getattr(processor, "do_center_crop", False):
            return list(boxes)
        edge = processor.size["shortest_edge"] / min(size)
        crop = (processor.crop_size["width"], processor.crop_size["height"])
        (sx, ox), (sy, oy) = ((side * edge / c, (side * edge - c) / 2 / c) for side, c in zip(size, crop, strict=True))
        moved = [(x0 * sx - ox, y0 * sy - oy, x1 * sx - ox, y1 * sy - oy) for x0, y0, x1, y1 in boxes]
        inside = [box for box in moved if box[0] < 1 and box[1] < 1 and box[2] > 0 and box[3] > 0]
        return [tuple(min(max(v, 0.0), 1.0) for v in box) for box in inside]


def _followed(prompts: dict[str, Tensor], answers: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """What runs along the prompts, with answers behind, and the labels."""
    ids = prompts["input_ids"]
    longest = max(map(len, answers))
    behind = ids.new_zeros(len(answers), longest)
    real = torch.zeros_like(behind)
    for row, answer in enumerate(answers):
        behind[row, : len(answer)] = torch.tensor(answer)
        real[row, : len(answer)] = 1
    found = {
        name: F.pad(value, (0, longest))
        for name, value in prompts.items()
        if value.shape == ids.shape and not value.is_floating_point()
    }
    labels = torch.cat([torch.full_like(ids, IGNORE), behind.masked_fill(real == 0, IGNORE)], 1)
    mask = torch.cat([prompts.get("attention_mask", torch.ones_like(ids)), real], 1)
    return {**found, "input_ids": torch.cat([ids, behind], 1), "attention_mask": mask, "labels": labels}
