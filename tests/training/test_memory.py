"""What is decided by the estimate of what a step needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from foveate.training.glimpse import planning
from foveate.training.glimpse.model import GlimpseForTraining
from foveate.training.glimpse.run import GlimpseSettings, train

from .runs import DISTILL, FAST


def test_a_step_that_would_not_fit_is_checkpointed(
    settings: GlimpseSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Unless the user said otherwise; the estimate is told in any case."""
    enabled: list[str] = []
    monkeypatch.setattr(
        GlimpseForTraining, "activation_checkpointing_enable", lambda self, *_, **__: enabled.append("yes")
    )
    one = FAST | {"max_steps": 1, "save_steps": 1}
    for number, (free, arguments, expected) in enumerate(
        ((10**15, one, 0), (1, one, 1), (1, one | {"activation_checkpointing": False}, 0), (None, one, 0))
    ):
        monkeypatch.setattr(planning, "free_memory", lambda _, free=free: free)
        enabled.clear()
        train(replace(settings, objective=DISTILL, out=tmp_path / str(number), arguments=arguments))
        assert len(enabled) == expected, (free, arguments)
        told = " ".join(capsys.readouterr().err.split())
        assert "memory, estimated: weights" in told
        assert ("not checkpointed" in told) is not bool(expected)
