"""Tokens that no method may drop, and tokens that do not count: the prompt's last one, and what the mask hides."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
from foveate.methods import Random
from tests.reference import Drop, generate, masked_logits
from tests.test_matrix import configured
from tests.tiny import IMAGE, Tiny, make_tiny


@pytest.fixture(params=["llava", "qwen2_5_vl"])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return make_tiny(request.param)


def ending_with_an_image(tiny: Tiny, rows: list[list[Any]]) -> dict[str, torch.Tensor]:
    """A batch cut behind the last placeholder; all rows end alike."""
    inputs = tiny.batch(rows)
    end = int((inputs["input_ids"][0] == IMAGE).nonzero()[-1]) + 1
    return {
        k: v[:, :end] if k in ("input_ids", "attention_mask", "mm_token_type_ids") else v for k, v in inputs.items()
    }


@pytest.mark.parametrize("name", ["random", "fastv", "vitcop", "glimpse_prune", "tome", "dart", "sparsevlm"])
def test_an_image_at_the_very_end(tiny: Tiny, name: str) -> None:
    """The answer is predicted from the last token, so it stays, whatever the method says."""
    for rows in ([[3, (4, 4)]], [[3, (4, 4)], [9, (4, 4)]]):
        inputs = ending_with_an_image(tiny, rows)
        with foveate.prune(tiny.model, configured(name, 0.5, tiny)) as trace:
            tokens, logits = generate(tiny.model, inputs, 3)
        last = inputs["input_ids"].shape[1] - 1
        seen = trace.to_dict()
        assert all(layer["positions"][-1] == last for row in seen["rows"] for layer in row["layers"])
        assert 0 < seen["keep_ratio"] < 1
        if not any(row["merges"] for row in seen["rows"]):
            compact = name == "glimpse_prune"
            reference = torch.stack(masked_logits(tiny.model, inputs, seen, list(tokens.unbind(1)), compact), 1)
            assert (reference - logits).abs().max() < 1e-4


def hide(inputs: dict[str, torch.Tensor], row: int, columns: slice) -> dict[str, torch.Tensor]:
    mask = inputs["attention_mask"].clone()
    mask[row, columns] = 0
    return {**inputs, "attention_mask": mask}


@pytest.mark.parametrize("hidden", [4, 16])  # of 16 visual tokens of the first row
@pytest.mark.parametrize("name", ["drop", "random", "fastv", "vitcop", "divprune", "visionzip", "knorm", "tome"])
def test_visual_tokens_that_the_mask_hides_are_padding(hidden: int, name: str) -> None:
    """Never kept, never counted, no text lost; the other rows are as without it."""
    tiny = make_tiny("llava")
    inputs = tiny.batch([[3, (4, 4), 5], [2, (4, 4), 6]])
    first = int((inputs["input_ids"][0] == IMAGE).nonzero()[0])
    inputs = hide(inputs, 0, slice(0, first + hidden))  # with the text before it, as left padding
    method = Drop((0, 3)) if name == "drop" else configured(name, 0.5, tiny)
    with foveate.prune(tiny.model, method) as trace:
        tokens, logits = generate(tiny.model, inputs, 3)
    seen = trace.to_dict()
    assert seen["visual_tokens"] == 32 - hidden
    for layer in seen["rows"][0]["layers"]:
        assert all(position >= first + hidden for position in layer["positions"])
    if not any(row["merges"] for row in seen["rows"]):
        reference = torch.stack(masked_logits(tiny.model, inputs, seen, list(tokens.unbind(1))), 1)
        assert (reference - logits).abs().max() < 1e-4


def test_holes_in_the_mask() -> None:
    """Hidden tokens in the middle of an image, in the second row."""
    tiny = make_tiny("llava")
    inputs = tiny.batch([[3, (4, 4), 5], [2, (4, 4), 6]])
    first = int((inputs["input_ids"][1] == IMAGE).nonzero()[0])
    inputs = hide(inputs, 1, slice(first + 3, first + 9))
    with foveate.prune(tiny.model, Drop((0, 3), 0.6)) as trace:
        tokens, logits = generate(tiny.model, inputs, 3)
    seen = trace.to_dict()
    assert seen["visual_tokens"] == 26
    reference = torch.stack(masked_logits(tiny.model, inputs, seen, list(tokens.unbind(1))), 1)
    assert (reference - logits).abs().max() < 1e-4


def test_the_budget_is_about_what_is_seen() -> None:
    tiny = make_tiny("llava")
    inputs = tiny.batch([[3, (4, 4), 5]])
    first = int((inputs["input_ids"][0] == IMAGE).nonzero()[0])
    with foveate.prune(tiny.model, Random(0.5)) as trace:
        generate(tiny.model, hide(inputs, 0, slice(0, first + 6)), 2)
    assert trace.last.alive_per_layer() == [5] * 6
