"""The scheduler on every kind of decoder: rows share batches where their caches allow it, and answer as alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
from foveate.core.method import Method
from foveate.engine.planning import plan_columns
from foveate.serve.generation import Event, Generation, Piece
from foveate.serve.sampling import Sampling
from foveate.serve.scheduler import Scheduler
from tests.families.test_types import model_of, names
from tests.reference import Drop
from tests.serve.test_scheduler import Numbers

ROWS: list[list[Any]] = [
    [6, ("image", 2, 3), 5], [2, ("image", 3, 2), 4, ("image", 2, 2), 3], [11], [3, ("image", 2, 3), 9],
]  # fmt: skip
METHODS: list[Method | None] = [Drop((0, 3), 0.5), Drop((2,), 0.5), None, None, Drop((0,), 0.4)]


@pytest.mark.parametrize("name", names())
def test_answers_are_those_of_generate(name: str) -> None:
    model, entry = model_of(name)
    requests, heard, wanted = [], [], []
    for number in range(8):
        inputs, method, new = entry.batch([ROWS[number % 4]]), METHODS[number % 5], 2 + number % 5
        events: list[Event] = []
        columns = plan_columns(model, method, inputs)
        requests.append(Generation(inputs, method, Sampling(), new, events.append, columns=columns))
        heard.append(events)
        with torch.inference_mode(), foveate.prune(model, method):
            ids = model.generate(**inputs, max_new_tokens=new, do_sample=False)
        wanted.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    scheduler = Scheduler(model, Numbers(), rows=6)
    for request in requests:
        scheduler.submit(request)
    scheduler.start()
    scheduler.close(120)
    failed = [event for events in heard for event in events if not isinstance(event, Piece) and hasattr(event, "error")]
    assert not failed
    found = [[int(word) for word in events[-1].whole.split()] for events in heard if isinstance(events[-1], Piece)]
    assert found == wanted
