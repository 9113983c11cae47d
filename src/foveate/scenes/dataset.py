"""Scenes as a Hugging Face dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .splits import load

if TYPE_CHECKING:
    from datasets import Dataset


def to_dataset(split: str, n: int, start: int = 0) -> Dataset:
    """`n` samples with columns images, question, answer, type, need, boxes, asked, seed (extra: `foveate[train]`).

    `images` is a list of PIL images, `boxes` a list of pixel xyxy in `images[asked]`.
    """
    from datasets import Dataset, Features, Image, List, Value

    text = Value("string")
    features = Features(
        images=List(Image()),
        question=text,
        answer=text,
        type=text,
        need=text,
        boxes=List(List(Value("float32"))),
        asked=Value("int32"),
        seed=text,
    )

    def rows(split: str, n: int, start: int) -> Iterator[dict[str, Any]]:
        for sample in load(split, n, start):
            record = sample.record()
            record.pop("scenes")
            yield record | {"images": list(sample.images)}

    return Dataset.from_generator(rows, features=features, gen_kwargs={"split": split, "n": n, "start": start})
