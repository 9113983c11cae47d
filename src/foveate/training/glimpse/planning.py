"""Before a run: what a step will need, told to the user, and whether activations are stored or computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.data.rows import Row
from foveate.training.glimpse.collate import Collator
from foveate.training.glimpse.model import GlimpseForTraining
from foveate.training.loading import extents
from foveate.training.memory import ROOM, bytes_of, estimate, free_memory
from foveate.training.processes import gathered, is_first
from foveate.training.rows import stderr

NAMES = ("activation_checkpointing", "gradient_checkpointing")
"""What transformers calls it, newer and older."""


def plan_memory(
    arguments: Any, said: Mapping[str, Any], model: GlimpseForTraining, collator: Collator, rows: Sequence[Row]
) -> None:
    """Print the estimate for the longest batch; turn checkpointing on if it would not fit and nothing was said.

    Args:
        arguments: of the trainer, changed here.
        said: which of them the user gave.
    """
    name = next(name for name in NAMES if hasattr(arguments, name))
    size = arguments.train_batch_size
    cost = estimate(model, size, _longest(collator, rows, size))
    free, held = free_memory(arguments.device), bytes_of(model, arguments.device)
    tight = free is not None and cost.total(checkpointed=False) - held > ROOM * free
    if not any(one in said for one in NAMES):
        setattr(arguments, name, model.objective.distillation > 0 and any(gathered(tight)))
    if is_first():
        stderr().print(cost.line(free, getattr(arguments, name)), markup=False, highlight=False)


def _longest(collator: Collator, rows: Sequence[Row], size: int) -> int:
    """Tokens of the longest row of the longest batch; of the first batch where lengths are not known."""
    known = extents(rows)
    places = list(range(min(size, len(rows))))
    if known is not None:
        places = sorted(range(len(rows)), key=known.__getitem__)[-size:]
    found: int = collator([rows[place] for place in places])["input_ids"].shape[1]
    return found
