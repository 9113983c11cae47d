"""The private methods of other libraries' trainers that ours override: a release that renames one must not pass."""

from __future__ import annotations

import inspect

import pytest
from transformers import Trainer
from trl import GRPOTrainer

from foveate.training.glimpse.trainer import GlimpseTrainer
from foveate.training.plus.trainer import PlusTrainer

OURS = {GlimpseTrainer: {"_metrics"}, PlusTrainer: {"_load_policy"}}


@pytest.mark.parametrize(("ours", "theirs"), [(GlimpseTrainer, Trainer), (PlusTrainer, GRPOTrainer)])
def test_what_is_overridden_is_there(ours: type, theirs: type) -> None:
    private = {n for n, f in vars(ours).items() if inspect.isfunction(f) and n.startswith("_") and n[1] != "_"}
    overridden = private - OURS[ours]
    assert len(overridden) >= 3
    assert not [name for name in overridden if not inspect.isfunction(getattr(theirs, name, None))]
