"""What each method before the language model keeps, on cases small enough to follow by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from foveate import Keep, Tap
from foveate.core.grid import Grid
from foveate.core.view import ModelInfo
from foveate.errors import BudgetError, ConfigurationError
from foveate.maths.diversity import greedy_map
from foveate.methods import CDPruner, DivPrune, FasterVLM, HiPrune, PruMerge, ToMe, VisionZip, VisPruner
from foveate.methods.cdpruner import relevance
from foveate.methods.hiprune import next_in_order, next_to
from foveate.methods.prumerge import is_outlier
from tests.methods.views import LLAVA, QWEN, chosen, kept, make_view

RECEIVED, KEYS, HIDDEN = Tap("received"), Tap("keys"), Tap("hidden")


def on_circle(*degrees: float) -> Tensor:
    """`[n, 2]` unit vectors."""
    return torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in degrees])


def test_fastervlm_keeps_the_most_attended() -> None:
    view = make_view((1, 2, 3), taps={RECEIVED: torch.tensor([1.0, 5, 2, 4, 3, 0])})
    assert kept(FasterVLM(keep=0.5), view) == [1, 3, 4]
    assert kept(FasterVLM(keep=Keep(threshold=3.5)), view) == [1, 3]


def test_visionzip_merges_the_rest_into_evenly_spaced_tokens() -> None:
    # dominant: 0 and 5. Left: 1 2 3 4 6 7, of which the first and the fourth (1, 4) are targets. The keys of 2 and
    # 6 point where 1's does, those of 3 and 7 where 4's does.
    view = make_view(
        (1, 1, 8),
        taps={
            RECEIVED: torch.tensor([9.0, 1, 1, 1, 1, 8, 1, 1]),
            KEYS: on_circle(0, 10, 12, 85, 90, 0, 5, 120),
        },
    )
    found = chosen(VisionZip(keep=4, dominant=0.5), view)
    assert found.index.tolist() == [0, 1, 4, 5]
    x = torch.arange(8.0)[:, None]
    assert found.apply(x).squeeze(1).tolist() == pytest.approx([0, (1 + 2 + 6) / 3, (4 + 3 + 7) / 3, 5])


def test_visionzip_has_the_published_numbers() -> None:
    for count, dominant in ((64, 54), (128, 108), (192, 162)):
        received = torch.rand(576, generator=torch.Generator().manual_seed(0))
        view = make_view((1, 24, 24), taps={RECEIVED: received, KEYS: torch.randn(576, 8)})
        found = chosen(VisionZip(keep=count), view)
        assert len(found) == count
        assert found.merge is not None
        assert len(found.merge.target) == count - dominant
        assert set(received.topk(dominant).indices.tolist()) <= set(found.index.tolist())


def test_vispruner_removes_duplicates_round_by_round() -> None:
    # By attention 0 is important. Of 1 2 3 4 5, in pairs of (1 3 5) against (2 4): 1 equals 2 and goes. Of 2 3 4 5,
    # (2 4) against (3 5): 4 is nearest to a partner (5) and goes. Of 2 3 5, (2 5) against (3): 5 is nearer than 2.
    # Of 2 3, the only candidate 2 goes.
    features = torch.tensor([[0, 0, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0.3, 1, 0]])
    view = make_view((1, 2, 3), taps={RECEIVED: torch.tensor([6.0, 5, 4, 3, 2, 1]), HIDDEN: features})
    assert kept(VisPruner(keep=2, step=1), view) == [0, 3]
    assert kept(VisPruner(keep=4, step=1), view) == [0, 1, 2, 3]  # two by attention; of 2 3 4 5, 4 goes, then 5


def test_prumerge_outliers() -> None:
    x = torch.randn(200, generator=torch.Generator().manual_seed(0)).exp()
    first, third = np.percentile(x.numpy(), [25, 75])
    assert is_outlier(x).tolist() == (x.numpy() > third + 1.5 * (third - first)).tolist()


def test_prumerge_keeps_the_outliers_and_adds_their_neighbours() -> None:
    # 18 tokens with attention 1 and two with 10: quartiles are both 1, so these two are outliers.
    attention = torch.ones(20)
    attention[[4, 11]] = 10.0
    info = ModelInfo("llava", 32, 24, True, 2)
    keys = on_circle(*([60.0] * 20))
    keys[[4, 7, 9]] = on_circle(0, 5, 20)  # 7 is nearest to 4, then 9
    keys[[11, 2]] = on_circle(180, 170)  # and 2 to 11
    view = make_view((1, 4, 5), taps={RECEIVED: attention, KEYS: keys}, info=info)
    found = chosen(PruMerge(neighbours=1), view)
    assert found.index.tolist() == [4, 11]
    out = found.apply(torch.arange(20.0)[:, None]).squeeze(1)
    assert out.tolist() == pytest.approx([4 + 0.5 * 7, 11 + 0.5 * 2])  # weighted by the attention, mean over two heads
    two = chosen(PruMerge(neighbours=2), view).apply(torch.arange(20.0)[:, None]).squeeze(1)
    assert two[0] == pytest.approx(4 + 0.5 * 7 + 0.5 * 9)
    # two outliers, and of 20 tokens every 20 // 2 // 3 = third one but the last
    assert kept(PruMerge(plus=True), view) == sorted({4, 11, *range(0, 19, 3)})
    assert len(kept(PruMerge(keep=0.25), view)) == 5
    assert len(kept(PruMerge(keep=0.25, plus=True), view)) == 5


def test_divprune_by_hand() -> None:
    # Nearest neighbours are 10, 10, 80 and 90 degrees away: 180 is most isolated. The farthest from it is 0. Then 90
    # is farther from both than 10 is.
    view = make_view((1, 2, 2), hidden=on_circle(0, 10, 90, 180))
    assert kept(DivPrune(keep=2), view) == [0, 3]
    assert kept(DivPrune(keep=3), view) == [0, 2, 3]


def test_cdpruner_wants_both_relevance_and_diversity() -> None:
    # 0 and 1 are what the text is about and nearly equal; 2 is a little relevant, 3 is not at all.
    features = on_circle(0, 1, 90, 90)
    hidden, text = on_circle(0, 0, 60, 180), on_circle(0)
    assert relevance(hidden, text).tolist() == pytest.approx([1, 1, 0.75, 0], abs=1e-5)
    assert greedy_map(features, relevance(hidden, text), 2).tolist() == [0, 2]
    # the method takes both from the projected features
    hidden, text = on_circle(5, 0, 80, 175), on_circle(0)
    assert kept(CDPruner(keep=2), make_view((1, 2, 2), hidden=hidden, text=text)) == [1, 2]
    assert kept(CDPruner(keep=2, published=True), make_view((1, 2, 2), hidden=hidden, text=text)) == [2, 3]


def test_hiprune_keeps_anchors_neighbours_and_registers() -> None:
    middle, deep = torch.zeros(25), torch.arange(25.0)
    middle[0] = 1.0  # an anchor in the corner has two neighbours: 1 and 5
    method = HiPrune(keep=10, alpha=0.5)
    view = make_view((1, 5, 5), taps={method.taps(LLAVA)[0]: middle, RECEIVED: deep})
    assert kept(method, view) == [0, 1, 5, *range(18, 25)]
    middle[0], middle[12] = 0.0, 1.0  # in the middle four: 7, 11, 13, 17
    assert kept(method, view) == [7, 11, 12, 13, 17, *range(20, 25)]


def test_hiprune_neighbours_stay_within_a_frame() -> None:
    mark = torch.zeros(2, 2, 3)
    mark[0, 1, 2] = 1  # the last token of the first frame
    near = next_to(mark.flatten(), [Grid(2, 2, 3)]).view(2, 2, 3)
    assert near.nonzero().tolist() == [[0, 0, 2], [0, 1, 1], [0, 1, 2]]


def test_hiprune_neighbours_may_wrap_as_published() -> None:
    near = next_in_order(torch.tensor([0, 8, 19]), 20, 5)  # 4 rows of 5: corners and the right border
    assert near.nonzero().flatten().tolist() == sorted({0, 1, 5, 8, 7, 9, 3, 13, 19, 18, 14})


def test_visionzip_averages_keys_over_heads() -> None:
    # token 2's two heads cancel out to what token 3 is; concatenated it would be nearest to token 1
    keys = torch.tensor([[9.0, 0, 0, 0], [4, 0, 4, 1], [5, 0, -5, 2], [0, 1, 0, 1]])
    view = make_view(
        (1, 1, 4), taps={RECEIVED: torch.tensor([9.0, 1, 1, 1]), KEYS: keys}, info=ModelInfo("llava", 32, 24, True, 2)
    )
    found = chosen(VisionZip(keep=2, dominant=0.5), view)
    assert found.index.tolist() == [0, 1]
    x = torch.arange(4.0)[:, None]
    assert found.apply(x)[1].item() == pytest.approx(2.0)  # all of 1, 2, 3
    published = chosen(VisionZip(keep=2, dominant=0.5, published=True), view)
    assert published.apply(x)[1].item() == pytest.approx(1 + 2.5)


def test_hiprune_reads_the_published_blocks() -> None:
    assert [tap.block for tap in HiPrune().taps(LLAVA)] == [8, None]  # the ninth of CLIP's 24
    assert [tap.block for tap in HiPrune().taps(QWEN)] == [15, None]  # the sixteenth of Qwen's 32


def test_tome_merges_pairs_into_means() -> None:
    view = make_view((1, 1, 4), taps={KEYS: on_circle(0, 1, 90, 91)})
    found = chosen(ToMe(keep=2), view)
    assert found.index.tolist() == [1, 3]
    assert found.apply(torch.arange(4.0)[:, None]).squeeze(1).tolist() == [0.5, 2.5]


@pytest.mark.parametrize("count", range(1, 12))
def test_every_method_keeps_exactly_its_number(count: int) -> None:
    random = torch.Generator().manual_seed(count)
    rows = torch.rand(12, generator=random)
    features = torch.randn(12, 6, generator=random)
    for method in (
        FasterVLM(keep=Keep(count=count)), VisionZip(keep=count / 12 + 1e-6), VisPruner(keep=count / 12 + 1e-6),
        PruMerge(keep=count / 12 + 1e-6), PruMerge(keep=count / 12 + 1e-6, plus=True),
        DivPrune(keep=count / 12 + 1e-6), CDPruner(keep=count / 12 + 1e-6), HiPrune(keep=count / 12 + 1e-6, alpha=1),
        ToMe(keep=count / 12 + 1e-6),
    ):  # fmt: skip
        taps = {tap: rows if tap.kind == "received" else features for tap in method.taps(LLAVA)}
        view = make_view((1, 3, 4), taps=taps, hidden=features, text=features[:3])
        found = chosen(method, view)
        assert found.index.tolist() == sorted(set(found.index.tolist()))
        assert len(found) == count, method


def test_bad_parameters_are_refused() -> None:
    for kind in (VisionZip, VisPruner, DivPrune, CDPruner, HiPrune, ToMe, PruMerge, FasterVLM):
        with pytest.raises(BudgetError):
            kind(keep=1.5)
    for bad in (dict(alpha=2.0),):
        with pytest.raises(ConfigurationError, match="alpha"):
            HiPrune(**bad)
    with pytest.raises(ConfigurationError, match="step"):
        VisPruner(step=0)
    with pytest.raises(ConfigurationError, match="neighbours"):
        PruMerge(neighbours=0)
