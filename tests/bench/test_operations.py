"""The counter of operations and waits, and what it holds methods to."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

import foveate
from foveate.bench.operations import Counts, counting
from foveate.core.method import Method
from foveate.families.presets import build
from foveate.families.prompts import random_prompt
from foveate.methods import Random, ViTCoP

PUBLISHED: dict[str, Any] = {"saliency": "received", "shallow": "key_norm", "deep": "key_norm"}


def test_operations_are_counted() -> None:
    x = torch.ones(3)
    with counting() as counts:
        x + x.view(1, 3)[0] * 2
    assert counts == Counts(operations=2, views=2)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.unique(),
        lambda x: x.tolist(),
        lambda x: torch.repeat_interleave(x, x.long()),
    ],
)
def test_what_needs_values_waits_once(call: Any) -> None:
    x = torch.ones(3)
    with counting() as counts:
        call(x)
    assert counts.waits == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.to(x.device),
        lambda x: x.topk(2).indices,
        lambda x: torch.where(x > 0, x, 0),
        lambda x: x.index_fill_(0, torch.tensor([1]), 2.0),
        lambda x: torch.arange(3).tolist(),
        lambda x: torch.repeat_interleave(x, 2),
    ],
)
def test_what_does_not_need_them_does_not(call: Any) -> None:
    x = torch.ones(3)
    with counting() as counts:
        call(x)
    assert counts.waits == 0


def test_what_was_copied_to_the_host_is_read_for_nothing() -> None:
    x = torch.ones(3)
    with counting() as counts:
        copied = x.cpu() * 2
        copied.tolist(), bool(copied.any())
        assert counts.waits == 1
        copied.to(x.device).tolist()
    assert counts.waits == 2


def prefill(model: Any, inputs: dict[str, torch.Tensor], method: Method | None, stock: bool = False) -> Counts:
    with nullcontext() if stock else foveate.prune(model, method), torch.no_grad(), counting() as counts:
        model(**inputs, use_cache=True, logits_to_keep=1)
    return counts


@pytest.mark.parametrize(
    ("method", "operations", "waits"),
    [
        (None, 5, 0),
        (Random(keep=1 / 9), 15, 0),
        (ViTCoP(keep=1 / 9, **PUBLISHED), 140, 1),
        (ViTCoP(keep=1 / 9, saliency="mix", shallow="diversity", deep="diversity"), 140, 4),
    ],
    ids=["none", "random", "vitcop", "diverse"],
)
def test_a_prefill_issues_few_more_operations_than_stock_code(
    method: Method | None, operations: int, waits: int
) -> None:
    model = build("mid-llava", 144)
    inputs = random_prompt(model, 144)
    stock, own = prefill(model, inputs, None, stock=True), prefill(model, inputs, method)
    assert own.operations - stock.operations <= operations
    assert own.waits - stock.waits <= waits
