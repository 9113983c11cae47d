"""ViTCoP's plan, its limits, and what the well-behaved version does differently."""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import foveate
from foveate.core.view import ModelInfo, Tap, View
from foveate.errors import BudgetError, ConfigurationError
from foveate.maths.clustering import density_peaks
from foveate.maths.copruning import select_and_merge
from foveate.methods import ViTCoP
from foveate.methods.vitcop import CHOICES
from tests.reference import generate, masked_logits
from tests.tiny import Tiny

DEEP = ModelInfo("llava", 32, 24, True)


@pytest.mark.parametrize(
    "bad",
    [
        {"keep": 0.0}, {"keep": 1.2}, {"vision_keep": 0.0}, {"cluster_fraction": 2.0}, {"deep_divisor": 0.5},
        {"kernel_width": 0.0}, {"saliency": "magic"},
        {"shallow": "magic"}, {"deep": "magic"}, {"attended": 1.5}, {"official": True, "shallow": "diversity"},
    ],
)  # fmt: skip
def test_bad_parameters_raise_at_construction(bad: dict) -> None:
    with pytest.raises((BudgetError, ConfigurationError)):
        ViTCoP(**bad)


def test_layers_the_model_does_not_have(tiny: Tiny) -> None:
    for method in (ViTCoP(shallow_layer=3, deep_layer=2), ViTCoP(deep_layer=40)):
        with pytest.raises(ConfigurationError, match="layers"), foveate.prune(tiny.model, method):
            pass


def test_official_is_for_llava(tiny_qwen: Tiny) -> None:
    with pytest.raises(ConfigurationError, match="LLaVA"), foveate.prune(tiny_qwen.model, ViTCoP(official=True)):
        pass


@given(keep=st.floats(0.002, 1.0), n=st.integers(1, 5000), layers=st.sampled_from([6, 10, 28, 32, 40, 80]))
@settings(max_examples=300, deadline=None)
def test_budgets_shrink_and_average_to_keep(keep: float, n: int, layers: int) -> None:
    info, method = ModelInfo("llava", layers, 24, True), ViTCoP(keep=keep)
    first, shallow, deep = method.counts(info, n)
    assert n >= first >= shallow >= deep >= 1
    a, b = method.layers(info)
    average = (first * a + shallow * (b - a) + deep * (layers - b)) / (layers * n)
    if n >= 400:  # small numbers are all rounding
        assert average == pytest.approx(keep, abs=0.01)


def test_the_mean_keeps_the_scale_and_official_doubles_it() -> None:
    labels, norm = torch.tensor([0, 0, 0, 1, 1, 1]), torch.arange(6.0)
    x = torch.ones(6, 2)
    ours = select_and_merge(norm, labels, 3, add_target=False)
    theirs = select_and_merge(norm, labels, 3, add_target=True)
    assert (ours.apply(x) == 1).all()
    assert theirs.apply(x).amax() == 2
    # cluster 0 gets one single token (the smallest norm), both clusters merge the rest at its middle
    assert ours.index.tolist() == [0, 2, 4]


def test_every_token_belongs_to_a_cluster_when_completed() -> None:
    torch.manual_seed(0)
    blocks = torch.randn(4, 16).repeat_interleave(5, 0)  # duplicates point at each other
    positions = torch.rand(20, 2)
    assert (density_peaks(blocks, positions, 0.2) == -1).any()
    labels = density_peaks(blocks, positions, 0.2, complete=True)
    assert (labels >= 0).all()


def test_original_positions_survive_unless_official(tiny_llava: Tiny) -> None:
    inputs = tiny_llava.batch([[3, (4, 4), 5]])
    with foveate.prune(tiny_llava.model, ViTCoP(0.3)):
        _, ours = generate(tiny_llava.model, inputs, 3)
    with foveate.prune(tiny_llava.model, ViTCoP(0.3, official=True)):
        _, theirs = generate(tiny_llava.model, inputs, 3)
    assert not torch.allclose(ours[:, 0], theirs[:, 0])


@pytest.mark.parametrize("deep", CHOICES["deep"])
@pytest.mark.parametrize("shallow", CHOICES["shallow"])
@pytest.mark.parametrize("saliency", CHOICES["saliency"])
def test_choices_are_swappable_at_equal_budgets(tiny: Tiny, saliency: Any, shallow: Any, deep: Any) -> None:
    alive, inputs = [], tiny.batch([[3, (6, 6), 5], [2, (4, 6), 3]])
    for method in (ViTCoP(0.3), ViTCoP(0.3, saliency=saliency, shallow=shallow, deep=deep)):
        with foveate.prune(tiny.model, method) as trace:
            tokens, logits = generate(tiny.model, inputs, 2)
        alive.append(trace.last.alive_per_layer())
    assert alive[0] == alive[1]
    if shallow != "key_norm":  # nothing is merged: dropping is masking
        masked = masked_logits(tiny.model, inputs, trace.to_dict(), list(tokens.unbind(1)))
        assert torch.allclose(logits, torch.stack(masked, 1), atol=1e-4)


def test_a_mix_takes_the_most_attended_and_then_what_differs_most() -> None:
    torch.manual_seed(0)
    hidden, received = torch.randn(40, 8), torch.rand(40)
    method = ViTCoP(0.3, saliency="mix", attended=0.5, shallow="diversity", vision_keep=0.25)
    view = View.of(hidden, taps={Tap("received"): received}, grid=(1, 5, 8), info=DEEP)
    kept = method.select(view).tolist()
    seeds = received.topk(5).indices.tolist()
    unit = torch.nn.functional.normalize(hidden, dim=1)
    chosen = list(seeds)
    while len(chosen) < 10:
        rest = [i for i in range(40) if i not in chosen]
        chosen.append(min(rest, key=lambda i: float((unit[i] @ unit[chosen].T).max())))
    assert kept == sorted(chosen)


def test_published_choices_where_there_is_a_class_token() -> None:
    assert ViTCoP().choices(DEEP) == ("received", "key_norm", "key_norm")
    assert ViTCoP().choices(ModelInfo("qwen2_5_vl", 28, 32, False)) == ("mix", "diversity", "diversity")
    assert ViTCoP(deep="attention").choices(ModelInfo("qwen2_5_vl", 28, 32, False))[1:] == ("diversity", "attention")


def test_what_is_not_clustered_reads_no_keys() -> None:
    method = ViTCoP(0.3, saliency="mix", shallow="diversity", deep="diversity")
    assert [tap.kind for tap in method.taps(DEEP)] == ["received"]
    assert {stage.reads for stage in method.stages(DEEP)} == {"nothing"}


LARGE = """
import resource, torch
from foveate.maths.clustering import density_peaks
torch.set_num_threads(2)
x, where = torch.randn(16384, 16) * 6, torch.rand(16384, 2)
density_peaks(x[:64], where[:64], 0.1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
labels = density_peaks(x, where, 0.12, complete=True)
assert len(labels.unique()) == int(0.12 * 16384)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


def test_clustering_16384_tokens_takes_less_than_a_gibibyte() -> None:
    assert resource.RUSAGE_SELF == 0
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, timeout=500, check=True)
    assert float(done.stdout) < 1.0
