"""`queries` of a method reaches the tap that it reads."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import foveate
from foveate.core.method import Method
from foveate.core.view import ModelInfo, Tap
from foveate.errors import ConfigurationError
from foveate.methods import FasterVLM, registry
from tests.tiny import make_tiny

QWEN = ModelInfo("qwen2_5_vl", 28, 32, False, 16)
READERS = [
    kind
    for kind in registry().values()
    if kind.taps is not Method.taps and not hasattr(kind, "example") and "module" not in kind.__dataclass_fields__
    and any(tap.kind == "received" for tap in kind(keep=0.5).taps(QWEN))
]  # fmt: skip


def test_there_are_readers() -> None:
    assert {"fastervlm", "hiprune", "prumerge", "visionzip", "vispruner", "vitcop", "vscan"} <= {
        k.name for k in READERS
    }


@pytest.mark.parametrize("kind", READERS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("queries", [7, None])
def test_every_method_that_reads_received_attention_says_of_how_many(kind: type[Method], queries: int | None) -> None:
    assert "queries" in {field.name for field in dataclasses.fields(kind)}
    received = [tap for tap in kind(keep=0.5, queries=queries).taps(QWEN) if tap.kind == "received"]  # type: ignore[call-arg]
    assert received
    assert all(tap.queries == queries for tap in received)
    assert all(tap.queries == Tap.queries for tap in kind(keep=0.5).taps(QWEN) if tap.kind == "received")


def test_fewer_queries_choose_other_tokens() -> None:
    tiny = make_tiny("qwen2_5_vl")
    inputs = tiny.batch([[4, (6, 6), 5]])

    def kept(queries: int | None) -> list[int]:
        with foveate.prune(tiny.model, FasterVLM(keep=1 / 3, queries=queries)) as trace, torch.no_grad():
            tiny.model(**inputs)
        return trace.last.groups[0].alive_at(0).tolist()

    assert kept(None) == kept(4096) != kept(1)


@pytest.mark.parametrize("queries", [0, -1])
def test_no_queries_are_refused(queries: int) -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        FasterVLM(queries=queries).taps(QWEN)
