"""What a batch of rollouts is pruned by, and the TRL form of our data and processors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from foveate.core.method import Method
from foveate.data.rows import Rows
from foveate.errors import ConfigurationError, DataError
from foveate.glimpse.module import GlimpseModule
from foveate.training.evidence import EvidenceBoxes, RowwiseGlimpse

Prune = Literal["boxes", "glimpse", "none"]
"""`boxes`: evidence boxes (as published); rows without boxes fall to the module, if there is one. `glimpse`: the
module. `none`: nothing is pruned, for comparison."""


def check_kind(kind: str) -> None:
    """Raise `ConfigurationError` unless `kind` is one of `Prune`."""
    if kind not in get_args(Prune):
        raise ConfigurationError(f"prune={kind!r}: choose from {', '.join(get_args(Prune))}")


@dataclass(frozen=True)
class Pruning:
    """How rollouts are pruned.

    Args:
        kind: see `Prune`.
        layer: K, 0-based; pruning follows this layer (boxes).
        module: the glimpse module, where one is needed.
    """

    kind: Prune
    layer: int
    module: GlimpseModule | None = None

    def __post_init__(self) -> None:
        check_kind(self.kind)
        if self.kind == "glimpse" and self.module is None:
            raise ConfigurationError("pruning by a glimpse module needs one: give --module")
        if self.module is not None and self.layer != self.module.config.reduce_layer:
            raise ConfigurationError(
                f"layer={self.layer}, but the module prunes after layer {self.module.config.reduce_layer}; leave the "
                "layer away, or the module"
            )

    def method(self, samples: Sequence[Mapping[str, Any]], thresholds: Sequence[float] | None) -> Method | None:
        """The method for a batch of rows of the dataset (completions of one prompt stand in adjacent rows).

        Raises:
            DataError: a row without boxes, and no module to fall back on.
        """
        if self.kind == "none":
            return None
        boxes = [sample["boxes"] for sample in samples] if self.kind == "boxes" else None
        if boxes is not None and all(own is not None for own in boxes):
            return EvidenceBoxes(boxes, self.layer)
        if self.module is None:
            row = next(sample["row"] for sample in samples if sample["boxes"] is None)
            raise DataError(f"row {row} has no evidence boxes; give them, or a --module that decides such rows")
        return RowwiseGlimpse(self.module, boxes=boxes, thresholds=thresholds)


def dataset(examples: Rows, system: str | None) -> Any:
    """A `datasets.Dataset` whose rows are read (images decoded, scenes rendered) when they are used."""
    import datasets

    def read(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        rows = {number: examples[number] for number in batch["number"]}
        images = {number: row.load_images() for number, row in rows.items()}  # once for all completions of a group
        found = [rows[number] for number in batch["number"]]
        turn = [] if system is None else [{"role": "system", "content": system}]
        return {
            "prompt": [[*turn, {"role": "user", "content": example.question}] for example in found],
            "images": [images[number] for number in batch["number"]],
            "question": [example.question for example in found],
            "answer": [example.answer for example in found],
            "boxes": [example.boxes for example in found],
            "row": [example.number for example in found],
        }

    return datasets.Dataset.from_dict({"number": list(range(len(examples)))}).with_transform(read)
