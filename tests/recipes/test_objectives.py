"""What the zoo's stages are asked to learn, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from foveate.scenes import Field, Scene, Shape
from foveate.scenes.labels import CELL
from recipes.zoo.attention_loss import SHARE, attention_loss
from recipes.zoo.batches import question, render
from recipes.zoo.config import BatchConfig
from recipes.zoo.presence import THINGS, presence


def loss(seen, evidence, counting):
    evidence = torch.tensor(evidence, dtype=torch.float32)[None, None]
    return attention_loss(
        torch.tensor(seen)[None, None, None],
        torch.tensor([False, True, True, True]),
        evidence,
        torch.tensor([[float(len(evidence[0, 0]))]]),
        torch.tensor([[counting]]),
        torch.ones(1, 1, 1, dtype=torch.bool),
    ).item()


def test_reading_is_rewarded_for_attention_on_any_evidence():
    found = loss([0.1, 0.2, 0.3, 0.4], [[1, 0, 0], [0, 0, 1]], counting=False)
    assert found == pytest.approx(-math.log(0.6 + 1e-4), rel=1e-5)


def test_counting_wants_an_equal_share_for_every_place_and_the_rest_on_the_first_token():
    found = loss([0.1, 0.2, 0.3, 0.4], [[1, 0, 0], [0, 0, 1]], counting=True)
    per_place = -SHARE * (math.log(0.2 + 1e-4) + math.log(0.4 + 1e-4))
    assert found == pytest.approx(per_place - (1 - 2 * SHARE) * math.log(0.1 + 1e-4), rel=1e-5)
    best = loss([1 - 2 * SHARE, SHARE, 0.0, SHARE], [[1, 0, 0], [0, 0, 1]], counting=True)
    assert best < found


def test_presence_names_what_is_there_and_nothing_else():
    shape = Shape("red", "star", "7K", (0, 0, 9, 9))
    scene = Scene("by hand", 28, 28, [shape], [Field("total", "42", (0, 0, 1, 1), (0, 0, 1, 1))])
    found = presence([scene, Scene("empty", 28, 28)])
    assert {thing for thing, there in zip(THINGS, found[0].tolist(), strict=True) if there} == {
        *("red", "star", "red star", "7", "K", "total", "4", "2")
    }
    assert not found[1].any()


def test_evidence_lies_where_the_answer_is_read_off():
    """On images wider than high, and with two images a prompt: rows, columns and images could be swapped."""
    batch = render(3, BatchConfig((168, 112), images=4, shapes=(1, 3), panel_share=0.0))
    asked = question(batch, 3, 12, 2, {})
    cells = 4 * 6
    for b, questions in enumerate(asked.questions):
        for i, q in enumerate(questions):
            text = asked.texts[b][i][0]
            image = int(text.split()[2].rstrip(",")) - 1
            assert text.startswith("In image ")
            for place, target in enumerate(q.targets):
                lit = asked.evidence[b, i, place].nonzero().flatten()
                assert len(lit)
                assert set((lit // cells).tolist()) == {image}
                rows, columns = lit % cells // 6, lit % cells % 6
                x, y = (columns.float().mean() + 0.5) * CELL, (rows.float().mean() + 0.5) * CELL
                middle = (target[0] + target[2]) / 2, (target[1] + target[3]) / 2
                assert abs(x - middle[0]) <= CELL
                assert abs(y - middle[1]) <= CELL
            assert asked.places[b, i] == len(q.targets)
