"""GlimpsePrune in every form of `generate`; its numbers are checked against the official ones elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import foveate
from foveate.core.view import ModelInfo, View
from foveate.errors import BudgetError, CheckpointError, ConfigurationError
from foveate.glimpse import GlimpseModule
from foveate.methods import Compose, GlimpsePrune, Random
from tests.engine.test_multiturn import follow_up, union
from tests.reference import generate, masked_logits
from tests.tiny import Tiny, make_tiny

MODULE = GlimpseModule.for_model(make_tiny("qwen2_5_vl").model).eval()


@dataclass(frozen=True, eq=False)
class Fixed(GlimpsePrune):
    """With given logits in place of the module's."""

    logit: Tensor = field(kw_only=True)

    def logits(self, view: View) -> Tensor:
        return self.logit


ROWS = [[3, (4, 4), 5], [2, (4, 6), 3, (2, 4), 4], [7]]


def method(tiny: Tiny, keep: float = 0.4) -> GlimpsePrune:
    return GlimpsePrune.example(keep, tiny.model)


def test_without_a_cache_the_first_token_is_the_same(tiny: Tiny) -> None:
    inputs = tiny.batch(ROWS)
    with foveate.prune(tiny.model, method(tiny)), torch.no_grad():
        cached = tiny.model(**inputs, use_cache=True).logits[:, -1]
        free = tiny.model(**inputs, use_cache=False).logits[:, -1]
    assert torch.allclose(cached, free, atol=1e-4)


def test_beams_score_what_they_say(tiny: Tiny) -> None:
    inputs = tiny.batch(ROWS[:1])
    with foveate.prune(tiny.model, method(tiny)) as trace:
        out = tiny.model.generate(
            **inputs, max_new_tokens=4, num_beams=3, do_sample=False, output_scores=True,
            return_dict_in_generate=True, length_penalty=0.0,
        )  # fmt: skip
    seen = trace.to_dict()
    seen["rows"] = seen["rows"][:1]
    tokens = out.sequences[:, -4:]
    logits = masked_logits(tiny.model, inputs, seen, list(tokens.unbind(1)), compact=True)
    scores = sum(x.log_softmax(-1).gather(1, tokens[:, i : i + 1])[:, 0] for i, x in enumerate(logits))
    assert torch.allclose(scores, out.sequences_scores, atol=1e-3)


def test_an_image_of_a_later_turn(tiny: Tiny) -> None:
    first = tiny.batch([[3, (4, 4), 5]])
    with foveate.prune(tiny.model, method(tiny)) as trace:
        one = tiny.model.generate(**first, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        inputs = follow_up(tiny, first, one, [[4, (4, 6), 3]])
        two = tiny.model.generate(
            **inputs, max_new_tokens=2, do_sample=False, return_dict_in_generate=True,
            past_key_values=one.past_key_values,
        )  # fmt: skip
    cache = two.past_key_values
    kept = union(trace.prefills[0].to_dict(), trace.prefills[1].to_dict())["rows"][0]["kept"]
    visual = int((inputs["input_ids"] == 90).sum())
    assert 0 < len(kept) < visual
    lengths = {cache.physical_length(layer) for layer in range(len(cache))}
    assert lengths == {cache.get_seq_length() - visual + len(kept)}


def test_backends_agree() -> None:
    for family in ("llava", "qwen2_5_vl"):
        found = []
        for attention in ("eager", "sdpa"):
            tiny = make_tiny(family, attention)
            with foveate.prune(tiny.model, method(tiny)):
                found.append(generate(tiny.model, tiny.batch(ROWS), 4)[1])
        assert torch.allclose(*found, atol=1e-4)


def test_a_module_for_another_model_is_refused(tiny_qwen: Tiny, tiny_llava: Tiny) -> None:
    with pytest.raises(ConfigurationError, match="llava"), foveate.prune(tiny_qwen.model, method(tiny_llava)):
        pass
    with pytest.raises(CheckpointError):
        GlimpsePrune("/nowhere/at/all")
    with pytest.raises(ConfigurationError, match="anchors"):
        GlimpsePrune(GlimpseModule.for_model(tiny_qwen.model), anchors=("middle",))


def test_background_fills_up_with_what_differs_most(tiny: Tiny) -> None:
    inputs, module = tiny.batch(ROWS[:1]), method(tiny).module
    kept = []
    for background in (0, 3, 0.25, 100):
        with foveate.prune(
            tiny.model, GlimpsePrune(module, 0.3, max_keep=0.2, min_keep=1, background=background)
        ) as trace:
            generate(tiny.model, inputs, 2)
        kept.append(set(trace.last.groups[0].alive_at(trace.last.layers).tolist()))
    alone, three, quarter, everything = kept
    assert alone < three
    assert alone < quarter
    assert [len(three) - len(alone), len(quarter) - len(alone), len(everything)] == [3, 4, 16]


def test_background_of_nothing_starts_at_the_likeliest(tiny: Tiny) -> None:
    inputs, module = tiny.batch(ROWS[:1]), method(tiny).module
    likeliest = GlimpsePrune(module, 0.0, max_keep=1)
    nothing = GlimpsePrune(module, threshold=0.999999, min_keep=0, background=1)
    found = []
    for one in (likeliest, nothing):
        with foveate.prune(tiny.model, one) as trace:
            generate(tiny.model, inputs, 2)
        found.append(trace.last.groups[0].alive_at(trace.last.layers).tolist())
    assert found[0] == found[1]


def test_background_may_belong_to_the_module(tiny: Tiny) -> None:
    module = GlimpseModule.for_model(tiny.model, background=0.25)
    assert GlimpsePrune(module).parameters()["background"] == 0.25
    assert GlimpsePrune(module, background=3).parameters()["background"] == 3
    assert "background" not in GlimpsePrune(module, background=0).parameters()


@pytest.mark.parametrize("background", [-1, 1.5])
def test_a_background_that_is_no_budget(tiny: Tiny, background: float) -> None:
    with pytest.raises(BudgetError):
        GlimpsePrune(method(tiny).module, background=background)


def kept(tiny: Tiny, one: GlimpsePrune) -> list[int]:
    with foveate.prune(tiny.model, one) as trace:
        generate(tiny.model, tiny.batch(ROWS[:1]), 2)
    found: list[int] = trace.last.groups[0].alive_at(trace.last.layers).tolist()
    return found


def plainly(features: Tensor, chance: Tensor, spread: float, count: int) -> list[int]:
    """Weighted max-min choice, one token after the other."""
    x = torch.nn.functional.normalize(features.double(), dim=1)
    worth, chosen = (chance + spread * chance.mean()).double(), [int(chance.argmax())]
    while len(chosen) < count:
        gain = worth * (1 - (x @ x[chosen].T).amax(1))
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
    return sorted(chosen)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 60), spread=st.floats(0, 10),
    portion=st.floats(0.05, 1), background=st.one_of(st.integers(0, 9), st.floats(0.01, 1)),
)  # fmt: skip
def test_a_spread_shares_the_budget(seed: int, n: int, spread: float, portion: float, background: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    features, logits = torch.randn(n, 8, generator=draw), 3 * torch.randn(n, generator=draw)
    one = Fixed(MODULE, min_keep=1, background=background, spread=spread, portion=portion, logit=logits)
    memo: dict[str, Any] = {}
    assert one.select(View.of(features, memo=memo)).is_identity
    mask = one.select(View.of(torch.randn(n, 8), layer=5, memo=memo))
    marked = max(1, int((logits > 0).sum()))
    wanted = portion * marked + (background * n if isinstance(background, float) else background)
    count = int(mask.sum())
    assert max(1, math.floor(wanted - 1e-6)) <= count <= max(1, math.floor(wanted + 1e-6)) or count == n <= wanted
    assert mask.nonzero().squeeze(1).tolist() == plainly(features, logits.sigmoid(), spread, count)


def test_a_spread_compares_what_enters_the_model(tiny: Tiny) -> None:
    module = method(tiny).module
    alone = kept(tiny, GlimpsePrune(module, 0.3, max_keep=0.2, min_keep=1))
    more = kept(tiny, GlimpsePrune(module, 0.3, max_keep=0.2, min_keep=1, background=3, spread=0.5))
    assert len(more) == len(alone) + 3
    fewer = kept(tiny, GlimpsePrune(module, 0.3, max_keep=1.0, min_keep=1, spread=0.5, portion=0.5))
    everything = kept(tiny, GlimpsePrune(module, 0.3, max_keep=1.0, min_keep=1))
    assert len(fewer) == max(1, len(everything) // 2)


def test_corners_stay_with_a_spread(tiny: Tiny) -> None:
    module = method(tiny).module
    found = kept(tiny, GlimpsePrune(module, 0.999999, min_keep=0, anchors=("tl", "br"), spread=1, background=2))
    assert {0, 15} < set(found)
    assert len(found) == 4


def test_a_spread_may_belong_to_the_module(tiny: Tiny) -> None:
    module = GlimpseModule.for_model(tiny.model, background=0.25, spread=3, portion=0.5)
    assert {"spread": 3, "portion": 0.5}.items() <= GlimpsePrune(module).parameters().items()
    assert GlimpsePrune(module, spread=2, portion=1.0).parameters()["portion"] == 1
    assert len(GlimpsePrune(module).stages(ModelInfo(tiny.family, module.config.num_hidden_layers))) == 2
    with pytest.raises(ConfigurationError, match="portion"):
        GlimpseModule.for_model(tiny.model, portion=0.5)


def test_a_spread_with_nothing_to_keep(tiny: Tiny) -> None:
    assert not kept(tiny, GlimpsePrune(method(tiny).module, 0.999999, min_keep=0, spread=1))


@pytest.mark.parametrize(
    "wrong", [{"spread": -1}, {"spread": float("inf")}, {"portion": 0.5}, {"spread": 1, "portion": 0}]
)
def test_a_spread_that_is_none(tiny: Tiny, wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        GlimpsePrune(method(tiny).module, **wrong)


def test_a_spread_of_every_frame(tiny: Tiny) -> None:
    inputs = tiny.batch([[3, (4, 4), 2, (2, 4), 5]])
    frames = GlimpsePrune(method(tiny).module, 0.999999, min_keep=0, background=2, spread=1, per="frame")
    with foveate.prune(tiny.model, frames) as trace:
        generate(tiny.model, inputs, 2)
    assert [len(group.alive_at(trace.last.layers)) for group in trace.last.groups] == [2, 2]


def test_a_spread_over_all_images_of_a_prompt(tiny: Tiny) -> None:
    one = GlimpsePrune(method(tiny).module, 0.999999, min_keep=0, background=5, spread=1)
    with foveate.prune(tiny.model, one) as trace:
        generate(tiny.model, tiny.batch(ROWS), 2)
    left: dict[int, int] = {}
    for group in trace.last.groups:
        left[group.row] = left.get(group.row, 0) + len(group.alive_at(trace.last.layers))
    assert left == {0: 5, 1: 5}


def test_nothing_selects_before_a_spread(tiny: Tiny) -> None:
    one = GlimpsePrune(method(tiny).module, spread=1, per="image")
    info = ModelInfo(tiny.family, one.glimpse.config.num_hidden_layers)
    for before in (Random(keep=0.5), Random(keep=0.6, layer=2)):
        with pytest.raises(ConfigurationError, match="before layer"):
            Compose(before, one, keep=None).stages(info)
