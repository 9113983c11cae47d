"""Examples -> batches: prompts through the model's own chat template, image processor and tokenizer.

Text is tokenized here and not by the model's processor, because training must know where the answer starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.data.boxes import Box
from foveate.data.rows import Row
from foveate.errors import DataError
from foveate.families.base import Family
from foveate.families.layout import ImageShape
from foveate.training.evidence import touched
from foveate.training.losses import IGNORE


@dataclass
class Collator:
    """Makes batches for `GlimpseForTraining.forward`. Rows are padded on the left.

    Attributes:
        family: adapter of the base model.
        processor: its processor (`foveate.inference.loading.load`).
        system: system message; None leaves it to the chat template.
        with_boxes: also make `ref_masks`.
    """

    family: Family
    processor: Any
    system: str | None = None
    with_boxes: bool = True

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def __call__(self, examples: Sequence[Row]) -> dict[str, Any]:
        """Model inputs with `labels` on the answers and, if asked for, `ref_masks` (a list, [N_b] bool each)."""
        return self._batch(examples, answered=True)

    def prompts(self, examples: Sequence[Row]) -> dict[str, Tensor]:
        """Model inputs without answers, ready for `generate`."""
        return self._batch(examples, answered=False)

    def _batch(self, examples: Sequence[Row], answered: bool) -> dict[str, Any]:
        rows, pixels, masks = [], list[dict[str, Tensor]](), list[Tensor]()
        for example in examples:
            images = example.load_images()
            encoded = dict(self.processor.image_processor(images=images, return_tensors="pt"))
            shapes = self.family.incoming(encoded)["image"]
            rows.append(self._tokens(example, [shape.size for shape in shapes], answered))
            pixels.append(encoded)
            if self.with_boxes and answered:
                masks.append(self._masks(example, [image.size for image in images], shapes))
        batch: dict[str, Any] = self._pad(rows, answered)
        names = [name for name in ("pixel_values", "image_grid_thw", "image_sizes") if name in pixels[0]]
        batch |= {name: _joined([torch.as_tensor(p[name]) for p in pixels]) for name in names}
        if masks:
            batch["ref_masks"] = masks
        return batch

    def _tokens(self, example: Row, counts: Sequence[int], answered: bool) -> tuple[list[int], list[int]]:
        """Token ids of prompt and answer."""
        prompt, answer = self._texts(example)
        image_id = self.family.token_ids["image"]
        pieces = prompt.split(self.tokenizer.convert_ids_to_tokens(image_id))
        if len(pieces) != len(counts) + 1:
            raise DataError(
                f"{example.where}: the prompt has {len(pieces) - 1} image placeholders for {len(counts)} "
                "images; remove placeholders from the question and the system message"
            )
        ids = self._ids(pieces[0], first=True)
        for count, piece in zip(counts, pieces[1:], strict=True):
            ids += [image_id] * count + self._ids(piece)
        return ids, self._answer_ids(answer) if answered else []

    def _answer_ids(self, text: str) -> list[int]:
        """The answer up to the end-of-sequence token, with which generation ends too.

        What templates put after it (Qwen: a newline) belongs to no answer; some put nothing.
        """
        end = self.tokenizer.eos_token_id
        ids = self._ids(text)
        return ids[: ids.index(end) + 1] if end in ids else [*self._ids(text.rstrip()), end]

    def _ids(self, text: str, first: bool = False) -> list[int]:
        """Ids of a piece of the prompt; only the first may get a begin-of-sequence token."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        bos = self.tokenizer.bos_token_id
        wanted = first and bos is not None and self.tokenizer("")["input_ids"][:1] == [bos]
        return [bos, *ids] if wanted and ids[:1] != [bos] else ids

    def _texts(self, example: Row) -> tuple[str, str]:
        content = [{"type": "image"}] * len(example.images) + _text(example.question)
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": _text(self.system)})
        reply = {"role": "assistant", "content": _text(example.answer or "")}
        prompt = self._render(messages, True)
        whole = self._render([*messages, reply], False)
        # A template that rewrites earlier turns cannot tell where the answer starts.
        return prompt, whole[len(prompt) :] if whole.startswith(prompt) else example.answer or ""

    def _render(self, messages: list[dict[str, Any]], prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            chat_template=getattr(self.processor, "chat_template", None),
            tokenize=False,
            add_generation_prompt=prompt,
        )

    def _pad(self, rows: Sequence[tuple[list[int], list[int]]], answered: bool) -> dict[str, Tensor]:
        length = max(len(prompt) + len(answer) for prompt, answer in rows)
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        ids = torch.full((len(rows), length), pad)
        labels = torch.full_like(ids, IGNORE)
        for i, (prompt, answer) in enumerate(rows):
            ids[i, length - len(prompt) - len(answer) :] = torch.tensor(prompt + answer)
            labels[i, length - len(answer) :] = torch.tensor(answer, dtype=torch.long)
        used = torch.tensor([len(prompt) + len(answer) for prompt, answer in rows])
        mask = (torch.arange(length) >= length - used[:, None]).long()
        batch = {"input_ids": ids, "attention_mask": mask}
        if self.family.wants_token_types:
            batch["mm_token_type_ids"] = (ids == self.family.token_ids["image"]).long()
        return batch | {"labels": labels} if answered else batch

    def _masks(self, example: Row, sizes: Sequence[tuple[int, int]], shapes: Sequence[ImageShape]) -> Tensor:
        """Evidence mask [N] of one example, all its images one after the other, all grids of each."""
        assert example.boxes is not None
        parts = list[Tensor]()
        for boxes, size, shape in zip(example.boxes, sizes, shapes, strict=True):
            parts += touched(self._seen(boxes, size), shape.grids, shape.across)
        return torch.cat(parts)

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


def _text(text: str) -> list[dict[str, str]]:
    """Message content; some templates take lists of parts only."""
    return [{"type": "text", "text": text}]


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Inputs of all examples; those in tiles are filled up to the longest."""
    if tensors[0].dim() < 5:
        return torch.cat(list(tensors))
    longest = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([pad(tensor, (0, 0, 0, 0, 0, 0, 0, longest - tensor.shape[1])) for tensor in tensors])
