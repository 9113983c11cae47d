"""Up to which layer a model reads its image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import foveate
from foveate.errors import ConfigurationError
from foveate.evals import questions
from foveate.evals.depth import Depth, Leave, Proposal, probe, propose
from foveate.inference.answer import Asker
from foveate.zoo import DEFAULT
from tests.cli.run import foveate as command
from tests.tiny import make_tiny


def depths(*read: float) -> list[Depth]:
    return [Depth(layer, 0.0, 0.0, 1 - share, 0.0, share) for layer, share in enumerate(read)]


def test_proposals_follow_where_reading_begins_and_ends() -> None:
    assert propose(depths(0, 0.01, 0.2, 0.6, 0.97, 0.99)) == Proposal(2, 3, 5, 2, (2, 5), 2)
    assert propose(depths(0, 1, 1, 1)) == Proposal(1, 1, 1, 1, (1, 2), 0)


def test_a_layer_counts_only_if_reading_stays_above_it() -> None:
    assert propose(depths(0, 0.2, 0.05, 0.6, 0.96, 0.97)).begun == 3


def test_an_image_that_is_read_to_the_end_leaves_no_layer_behind_the_last() -> None:
    found = propose(depths(0, 0.0, 0.0, 0.02))
    assert found.vitcop == (2, 3)
    assert found.done == 3


def test_few_layers_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="three"):
        propose(depths(0, 1))


@pytest.mark.parametrize("left", [1, 3])
def test_so_many_tokens_of_every_image_are_left(left: int) -> None:
    tiny = make_tiny("llava")
    with foveate.prune(tiny.model, Leave(keep=0.5, layer=1, left=left)) as trace, torch.no_grad():
        tiny.model(**tiny.batch([[3, (4, 4), 5]]))
    group = trace.last.groups[0]
    assert len(group.alive_at(0)) == 16
    assert len(group.alive_at(1)) == left


def test_what_was_read_grows_with_the_layer() -> None:
    task = questions.load("scenes:val", 3)
    found, unpruned, skipped = probe(Asker.load(DEFAULT, 8), task)
    assert not skipped
    assert [depth.layer for depth in found] == list(range(len(found)))
    assert found[0].read == 0
    assert found[-1].read > 0.9
    assert found[-1].kl < 0.1 * found[0].kl
    assert 0 <= found[0].score <= unpruned
    assert found[-1].score == unpruned


def test_the_command_writes_table_and_figure(tmp_path: Path) -> None:
    done = command("probe-depth", "--limit", "2", "--max-new-tokens", "4", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "To begin a search with" in done.stdout
    written = json.loads((tmp_path / "depth.json").read_text())
    assert written["samples"] == 2
    assert len(written["depths"]) > 3
    assert (tmp_path / "depth.png").stat().st_size > 1000


def test_no_token_left_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        probe(Asker.load(DEFAULT, 4), questions.load("scenes:val", 1), left=0)
