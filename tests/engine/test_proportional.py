"""Proportional attention: the logits of a survivor are larger by the log of how many tokens it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import foveate
from foveate.engine.kept import Kept, join_kept
from foveate.errors import ConfigurationError
from foveate.maths.similarity import closest
from foveate.methods import DivPrune, ViTCoPDiverse, make
from foveate.trace.records import PrefillTrace
from tests.reference import Drop, check_dropping_is_masking, generate, weights
from tests.tiny import FAMILIES, LAYERS, make_tiny

ROWS = [[3, (4, 4), 5], [2, (4, 6), 3, (2, 4), 4], [7]]


def check(family: str, attention: str, rows: list[Any], method: foveate.Method, steps: int = 4) -> PrefillTrace:
    return check_dropping_is_masking(family, attention, rows, method, steps)[0]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]], ids=["padded", "one"])
@pytest.mark.parametrize("layers", [(0,), (2,), (0, 2, 5)])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_dropping_is_masking_with_the_weight_of_what_a_survivor_stands_for(
    family: str, layers: tuple[int, ...], rows: list[Any], attention: str
) -> None:
    prefill = check(family, attention, rows, Drop(layers, proportional=True))
    last = weights([prefill], torch.Size([len(rows), prefill.length]))(LAYERS)
    for group in prefill.groups:  # nobody is lost
        alive = group.columns[group.steps[-1].alive]
        assert last[group.row, alive].exp().sum().item() == pytest.approx(len(group.visible))
        assert last.max() > 0


part = st.one_of(st.integers(1, 6), st.tuples(st.sampled_from([2, 4]), st.sampled_from([2, 4, 6])))
row = st.lists(part, min_size=1, max_size=4).map(lambda parts: [2, *parts, (2, 4), 3])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    attention=st.sampled_from(["eager", "sdpa"]),
    rows=st.lists(row, min_size=1, max_size=3),
    layers=st.sets(st.integers(0, LAYERS - 1), min_size=1, max_size=3).map(lambda s: tuple(sorted(s))),
    keep=st.sampled_from([0.1, 0.3, 0.7]),
)
def test_any_case(family: str, attention: str, rows: list[Any], layers: tuple[int, ...], keep: float) -> None:
    check(family, attention, rows, Drop(layers, keep, proportional=True), steps=3)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_real_methods(family: str) -> None:
    check(family, "sdpa", ROWS, DivPrune(0.4, proportional=True))
    check(family, "sdpa", ROWS, ViTCoPDiverse(0.5, proportional=True))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_layers_before_the_stage_are_not_weighed(family: str) -> None:
    """Prompts read everything there, so that nothing stands for anything; decoding reads what compaction left."""
    tiny = make_tiny(family, "sdpa")
    inputs = tiny.batch(ROWS)
    with foveate.prune(tiny.model, Drop((2,), compact=True, proportional=True)):
        cache = tiny.model(**inputs, use_cache=True).past_key_values
    held = [cache.held(layer) for layer in range(LAYERS)]
    assert [kept.bias is None for kept in held] == [True, True] + [False] * (LAYERS - 2)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_compaction_keeps_the_weights_of_earlier_stages(family: str) -> None:
    tiny = make_tiny(family, "sdpa")
    with foveate.prune(tiny.model, Drop((1, 3), compact=True, proportional=True)):
        cache = tiny.model(**tiny.batch(ROWS), use_cache=True).past_key_values
    first, early, late = (cache.held(layer) for layer in (0, 1, 3))
    assert torch.equal(early.index, late.index)
    assert first.bias is None
    assert early.bias.max() > 0  # what its layer was given; less than behind the later stage
    assert (early.bias <= late.bias).all()
    assert early.bias.sum() < late.bias.sum()


def test_nothing_left_stands_for_nothing() -> None:
    class Nothing(Drop):
        def select(self, view: Any) -> Tensor:
            return torch.zeros(len(view), dtype=torch.bool)

    tiny = make_tiny("llava", "sdpa")
    with foveate.prune(tiny.model, Nothing((2,), proportional=True)) as trace, torch.no_grad():
        logits = tiny.model(**tiny.batch(ROWS)).logits
    assert logits[:, -1].isfinite().all()
    assert trace.last.to_dict()["alive_per_layer"][-1] == 0


@pytest.mark.parametrize("value", ["no", "false", 1, 0.5])
def test_it_is_on_or_off(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="true or false"):
        DivPrune(0.5, proportional=value)


def test_methods_of_the_tower_have_no_attention_to_weigh() -> None:
    with pytest.raises(ConfigurationError, match="vision tower"):
        make("tower_filter", keep=0.5, proportional=True)


def test_a_row_does_not_depend_on_the_batch() -> None:
    tiny = make_tiny("qwen2_5_vl", "sdpa")
    method = Drop((0, 2), proportional=True)
    with foveate.prune(tiny.model, method):
        _, together = generate(tiny.model, tiny.batch(ROWS), 3)
        for number, row in enumerate(ROWS):
            _, alone = generate(tiny.model, tiny.batch([row]), 3)
            assert torch.allclose(alone[0], together[number], atol=1e-5)


def test_everything_kept_is_untouched() -> None:
    tiny = make_tiny("llava", "sdpa")
    inputs = tiny.batch(ROWS)
    _, stock = generate(tiny.model, inputs, 3)
    with foveate.prune(tiny.model, DivPrune(1.0, proportional=True)):
        _, found = generate(tiny.model, inputs, 3)
    assert torch.equal(stock, found)


def test_a_later_turn_goes_on_with_the_weights() -> None:
    """Text behind a pruned prompt, read in one call and token by token."""
    tiny = make_tiny("llava", "sdpa")
    inputs = tiny.batch([ROWS[0]])
    more = torch.tensor([[5, 6, 7]])

    def read(parts: list[Tensor]) -> Tensor:
        with foveate.prune(tiny.model, Drop((0, 2), proportional=True)), torch.no_grad():
            cache = tiny.model(**inputs, use_cache=True).past_key_values
        with foveate.prune(tiny.model, None), torch.no_grad():  # nothing new is pruned; what was stays weighed
            for part in parts:
                logits = tiny.model(input_ids=part, past_key_values=cache, use_cache=True).logits
        return logits[:, -1]

    assert torch.allclose(read([more]), read(list(more.split(1, dim=1))), atol=1e-5)


def test_asked_of_a_backend_without_additive_masks_it_is_refused_and_recommended_it_is_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = make_tiny("llava", "sdpa")
    config: Any = tiny.model.model.language_model.config
    monkeypatch.setattr(config, "_attn_implementation_internal", "flash_attention_2")  # other tests share the model
    with pytest.raises(ConfigurationError, match="sdpa"):
        foveate.prune(tiny.model, DivPrune(0.5, proportional=True)).__enter__()

    class Recommends(DivPrune):
        def weighs(self, info: Any) -> bool:
            return self.proportional is not False

    with foveate.prune(tiny.model, Recommends(0.5)) as trace:
        assert any("not proportional" in note for note in trace.notes)
    with foveate.prune(tiny.model, Recommends(0.5, proportional=False)) as trace:
        assert not any("proportional" in note for note in trace.notes)


def test_the_weights_follow_the_columns_of_a_cache() -> None:
    kept = Kept(torch.tensor([[-1, 0, 2, 5], [0, 1, 3, 5]]), 6, True, torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7]]))
    assert torch.equal(kept.full_bias(8), torch.tensor([[0.0, 1, 2, 3, 0, 0], [4, 5, 6, 7, 0, 0]]))
    columns, shorter = kept.cropped(3)
    assert shorter is not None
    assert shorter.bias is not None
    assert torch.equal(shorter.bias, kept.bias.gather(1, columns))  # type: ignore[union-attr]
    assert torch.equal(kept.with_rows(lambda rows: rows[[1]]).bias, kept.bias[[1]])  # type: ignore[index]
    whole = Kept(torch.tensor([[0, 2]]), 3, False)
    joined = join_kept([kept, whole, None], [[5, 6], [3], [2]], [6, 3, 2])
    assert joined is not None
    assert joined.bias is not None
    assert joined.bias.tolist() == [[0, 0, 2, 3], [4, 5, 6, 7], [0] * 4, [0] * 4]  # the first row has five real tokens
    last = torch.tensor([[-1, -1, -1, 5]] * 2)
    lead, trimmed = Kept(last, 6, True, kept.bias).trimmed(0)
    assert lead == 3
    assert trimmed is not None
    assert torch.equal(trimmed.bias, kept.bias[:, 3:])  # type: ignore[index]


def test_closest_by_hand() -> None:
    x = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0, 5], [float("nan"), 0]])
    assert closest(x, torch.tensor([0, 3])).tolist() == [0, 0, 1, 1, 0]
    assert closest(x[[0, 0, 0]], torch.tensor([1, 2])).tolist() == [0, 0, 1]  # equals: each kept one is its own
