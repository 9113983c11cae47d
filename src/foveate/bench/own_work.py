"""What a method computes itself: operations of a prefill under it, less those of one that is given its choices.

Matrix products only, as `torch.utils.flop_counter` counts them: sorting, distances and elementwise arithmetic are in
the milliseconds, not here, and of the attention of an added probe token what the counter knows of the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foveate.bench.flops import countable
from foveate.core.method import Method
from foveate.engine.attach import prune
from foveate.engine.replay import Replay, row_choices
from foveate.families import adapt
from foveate.trace.records import PrefillTrace


def own_flops(model: Any, inputs: dict[str, Tensor], method: Method | None) -> int:
    """Operations of reading and choosing in one prefill, all rows together; 0 for the unpruned model.

    Two prefills run: one under the method, one that repeats what it chose. The difference is exact, also for work
    inside the model's own modules, such as a probe token.
    """
    if method is None:
        return 0
    chosen, trace = _prefill(model, inputs, method)
    if not any(group.steps for group in trace.groups):
        return 0
    given, _ = _prefill(model, inputs, Replay(rows=row_choices(trace, method, adapt(model).info)))
    return chosen - given


def _prefill(model: Any, inputs: dict[str, Tensor], method: Method) -> tuple[int, PrefillTrace]:
    counter = FlopCounterMode(display=False)
    with prune(model, method) as trace, torch.no_grad(), countable(model), counter:
        model.generate(**inputs, max_new_tokens=1, min_new_tokens=1, do_sample=False, num_beams=1)
    return counter.get_total_flops(), trace.last
