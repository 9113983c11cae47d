"""Gradients through merges, and what a method may choose."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveate.core.selection import Merge, Selection, mix, pack, resolve
from foveate.errors import ConfigurationError
from foveate.maths.bipartite import bipartite_merge
from foveate.maths.copruning import select_and_merge
from foveate.maths.similarity import merge_into, unit
from foveate.methods.downsample import pool
from foveate.methods.prumerge import add_neighbours
from tests.core.test_values import dense, selections


def check_gradient(selection: Selection) -> None:
    x = torch.randn(selection.n, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(selection.apply, x)
    torch.testing.assert_close(
        torch.autograd.functional.jacobian(lambda column: selection.apply(column[:, None])[:, 0], x[:, 0].detach()),
        dense(selection).double(),
    )


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_gradient_is_that_of_the_weighted_sums(data: st.DataObject) -> None:
    first = data.draw(selections())
    check_gradient(first)
    check_gradient(first.then(data.draw(selections(len(first)))))


@given(data=st.data(), rows=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_a_packed_batch_has_the_gradient_of_its_rows(data: st.DataObject, rows: int) -> None:
    n = data.draw(st.integers(1, 8))
    chosen = [data.draw(selections(n)) for _ in range(rows)]
    x = torch.randn(rows, n, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(pack(chosen).apply, x)


def test_the_mean_of_four_tokens() -> None:
    x = torch.arange(4.0).requires_grad_()
    pool(torch.zeros(4, dtype=torch.long), 1).apply(x[:, None]).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.25] * 4


def merging(n: int) -> dict[str, Selection]:
    """What every builder of merges makes of `n` tokens."""
    random = torch.Generator().manual_seed(n)
    keys, attention = torch.randn(n, 5, generator=random), torch.rand(n, generator=random)
    labels = torch.randint(0, 3, (n,), generator=random)
    kept, owner = torch.arange(0, n, 3), torch.randint(0, 2, (len(range(1, n, 3)),), generator=random)
    return {
        "bipartite": bipartite_merge(keys, max(1, n // 3)),
        "copruning": select_and_merge(attention, labels, max(1, n // 2), add_target=False),
        "copruning, few": select_and_merge(attention, labels, 2, add_target=False),
        "copruning, target added": select_and_merge(attention, labels, max(1, n // 2), add_target=True),
        "merge into": merge_into(n, kept, kept[:2], torch.arange(1, n, 3), owner),
        "merge into, target added": merge_into(n, kept, kept[:2], torch.arange(1, n, 3), owner, add_target=True),
        "pool": pool(torch.arange(n) * 4 // n, 4),
        "prumerge": add_neighbours(unit(keys), attention, kept, 2),
    }


@pytest.mark.parametrize("n", [7, 12, 25])
@pytest.mark.parametrize("name", list(merging(9)))
def test_every_builder_writes_every_target_once(name: str, n: int) -> None:
    found = merging(n)[name]
    assert found.merge is not None
    assert len(found.merge.target.unique()) == len(found.merge.target)
    assert resolve([found], [n], name) == [found]
    check_gradient(found)


def test_half_precision_sums_in_float32() -> None:
    n = 4096
    merge = Merge(torch.zeros(1).long(), torch.zeros(n).long(), torch.arange(n), torch.full((n,), 1 / n))
    x = torch.full((n, 1), 1.0, dtype=torch.bfloat16)
    assert mix(x[:1], x, merge).item() == 1.0  # a running sum in bfloat16 stops at 256 / 4096


# -- what a method may choose ------------------------------------------------------------------------------


@dataclass
class Bad:
    choice: object
    message: str


def merged(target: list[int], segment: list[int], source: list[int]) -> Selection:
    merge = Merge(torch.tensor(target), torch.tensor(segment), torch.tensor(source), torch.ones(len(source)))
    return Selection(6, torch.tensor([0, 2, 5]), merge)


BAD = {
    "unsorted": Bad(torch.tensor([3, 1]), "unsorted or repeated"),
    "repeated": Bad(torch.tensor([1, 1]), "unsorted or repeated"),
    "negative": Bad(torch.tensor([-1, 2]), "from -1 to 2"),
    "too large": Bad(torch.tensor([2, 6]), "from 2 to 6"),
    "too large in the middle": Bad(torch.tensor([2, 9, 3]), "from 2 to 9"),
    "too many": Bad(torch.arange(7), "7 indices"),
    "int32": Bad(torch.tensor([1, 2], dtype=torch.int32), "int32 indices"),
    "floats": Bad(torch.tensor([1.0, 2.0]), "float32 indices"),
    "two dimensions": Bad(torch.tensor([[1, 2]]), r"shape \[1, 2\]"),
    "short mask": Bad(torch.ones(5, dtype=torch.bool), "a mask of shape"),
    "a list": Bad([1, 2], "a list"),
    "None": Bad(None, "a NoneType"),
    "selection of others": Bad(Selection(5, torch.tensor([1])), "from 5 tokens"),
    "selection unsorted": Bad(Selection(6, torch.tensor([2, 1])), "unsorted"),
    "merge target": Bad(merged([3], [0], [1]), "targets outside 0..2"),
    "merge target twice": Bad(merged([1, 1], [0, 1], [1, 2]), "target twice"),
    "merge segment": Bad(merged([1], [1], [1]), "segments outside 0..0"),
    "merge source": Bad(merged([1], [0], [6]), "sources outside 0..5"),
    "merge lengths": Bad(
        Selection(6, torch.tensor([1]), Merge(*(torch.tensor(x) for x in ([0], [0], [0, 1], [1.0])))),
        "do not fit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_a_choice_that_cannot_be_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match=BAD[name].message) as raised:
        resolve([BAD[name].choice], [6], "my_method")  # type: ignore[list-item]
    assert "my_method" in str(raised.value)


def test_every_form_of_a_choice_is_the_same_selection() -> None:
    mask = torch.tensor([True, False, True, False])
    forms: list[Selection | Tensor] = [mask, torch.tensor([0, 2]), Selection(4, torch.tensor([0, 2]))]
    for found in resolve(forms, [4, 4, 4], "x"):
        assert found.n == 4
        assert found.index.tolist() == [0, 2]
    nothing = torch.zeros(0, dtype=torch.long)
    assert [len(s) for s in resolve([nothing, mask & False, Selection.everything(3)], [4, 4, 3], "x")] == [0, 0, 3]
