"""Every method on every family and backend: keep=1.0 is the stock model bit for bit; less is a valid pruning.

Driven by the registries: a new method or family is tested here without an edit.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import foveate
from foveate.core.method import Method
from foveate.families import adapt
from foveate.methods import registry
from tests.reference import generate, masked_logits
from tests.tiny import FAMILIES, Tiny, make_tiny

BATCHES = {
    "one image": [[3, (4, 4), 5]],
    "padded batch": [[3, (4, 4), 5], [2, (4, 6), 3, (2, 4), 4], [7]],
}

cases = pytest.mark.parametrize(
    ("name", "family", "attention", "batch"),
    [(n, f, a, b) for n in registry() for f in sorted(FAMILIES) for a in ("eager", "sdpa") for b in BATCHES],
)


def configured(name: str, keep: float, tiny: Tiny) -> Method:
    """The method with this budget; one that cannot be made so says how in `example`."""
    kind = registry()[name]
    if hasattr(kind, "example"):
        return kind.example(keep, tiny.model)
    return kind(keep=keep)  # type: ignore[call-arg]


def run(tiny: Tiny, inputs: dict[str, Any], method: Method) -> tuple[torch.Tensor, torch.Tensor, foveate.Trace]:
    with foveate.prune(tiny.model, method) as trace:
        tokens, logits = generate(tiny.model, inputs, 4)
    return tokens, logits, trace


@cases
def test_keep_everything_is_the_stock_model(name: str, family: str, attention: str, batch: str) -> None:
    tiny = make_tiny(family, attention)
    inputs = tiny.batch(BATCHES[batch])
    stock_tokens, stock_logits = generate(tiny.model, inputs, 4)
    tokens, logits, trace = run(tiny, inputs, configured(name, 1.0, tiny))
    assert torch.equal(logits, stock_logits)
    assert torch.equal(tokens, stock_tokens)
    assert trace.keep_ratio == 1.0


@cases
def test_pruning_keeps_what_the_trace_says(name: str, family: str, attention: str, batch: str) -> None:
    tiny = make_tiny(family, attention)
    inputs = tiny.batch(BATCHES[batch])
    method = configured(name, 1 / 3, tiny)
    tokens, logits, trace = run(tiny, inputs, method)
    seen = trace.to_dict()
    assert torch.isfinite(logits).all()
    assert 0 < seen["keep_ratio"] < 1
    for row, traced in enumerate(seen["rows"]):
        for layer in traced["layers"]:
            kept = layer["positions"]
            assert kept == sorted(set(kept))
            assert (inputs["input_ids"][row, kept] == 90).all()
    in_tower = method.tower_stages(adapt(tiny.model).info)  # these have an oracle of their own
    if not in_tower and not any(row["merges"] for row in seen["rows"]):  # then dropping must equal masking
        compact = any(stage.compact_earlier for stage in method.stages(adapt(tiny.model).info))
        reference = torch.stack(masked_logits(tiny.model, inputs, seen, list(tokens.unbind(1)), compact), 1)
        assert (reference - logits).abs().max() < 1e-4


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("name", list(registry()))
def test_a_row_does_not_depend_on_its_neighbours(name: str, family: str) -> None:
    tiny = make_tiny(family)
    rows = BATCHES["padded batch"]
    method = configured(name, 1 / 3, tiny)
    together_tokens, together, trace = run(tiny, tiny.batch(rows), method)
    columns = trace.to_dict()["rows"]
    for number, row in enumerate(rows):
        tokens, logits, alone = run(tiny, tiny.batch([row]), method)
        assert (logits[0] - together[number]).abs().max() < 1e-4
        assert torch.equal(tokens[0], together_tokens[number])
        if alone.prefills:
            shift = columns[number]["padding"]
            own = [[p - shift for p in layer["positions"]] for layer in columns[number]["layers"]]
            assert own == [layer["positions"] for layer in alone.to_dict()["rows"][0]["layers"]]


@pytest.mark.parametrize("name", list(registry()))
def test_a_method_is_a_documented_frozen_dataclass(name: str) -> None:
    kind = registry()[name]
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert kind.__doc__
    assert "Args:" in kind.__doc__
