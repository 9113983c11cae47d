"""Every model type under pruning: what stock code would do with the dropped tokens masked, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
from tests.families.reference import (
    check_dropping_is_masking,
    close,
    generate,
    logits_of_survivors,
    longer,
    masked,
    rows_of,
    with_positions,
)  # fmt: skip
from tests.families.tiny import TinyType, build
from tests.families.types import TABLE
from tests.reference import Drop

FEW = (
    "gemma3", "gemma4", "idefics3", "internvl", "llama4", "llava_next", "llava_pixtral", "mistral3", "qwen2_vl",
    "qwen3_5", "qwen3_vl", "video_llava",
)  # fmt: skip
"""One type per kind of decoder and layout, tested on every run; all others by `make families`."""

TOLERANCE = 1e-5
RECURRENT = 1e-4
"""For a step behind a state against a pass over everything, which stock code does not compute alike either."""


def names(exact: bool | None = None, beams: bool = False) -> list[Any]:
    chosen = [name for name, entry in TABLE.items() if exact in (None, entry.exact) and (entry.beams or not beams)]
    return [name if name in FEW else pytest.param(name, marks=pytest.mark.families) for name in sorted(chosen)]


def with_videos(exact: bool | None = None) -> list[Any]:
    return [name for name in names(exact) if TABLE[getattr(name, "values", (name,))[0]].video is not None]


def model_of(name: str, attention: str = "sdpa") -> tuple[Any, TinyType]:
    return build(name, attention), TABLE[name]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("layer", [0, 2])
def test_keeping_everything_is_the_stock_model(name: str, layer: int) -> None:
    model, entry = model_of(name)
    for rows in (rows_of("image")[:1], rows_of("image")):
        inputs = entry.batch(rows)
        _, stock, _ = generate(model, inputs, 3)
        with foveate.prune(model, Drop((layer,), 1.0)):
            _, logits, _ = generate(model, inputs, 3)
        assert torch.equal(logits, stock)


@pytest.mark.parametrize("name", names(exact=True))
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layers", [(0,), (2,), (1, 3, 5)], ids=str)
def test_dropping_is_masking(name: str, attention: str, layers: tuple[int, ...]) -> None:
    model, entry = model_of(name, attention)
    for rows in (rows_of("image")[:1], rows_of("image")):
        check_dropping_is_masking(model, entry, entry.batch(rows), layers, 4, TOLERANCE)


@pytest.mark.parametrize("name", names(exact=True))
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layers", [(0, 2), (4,), (0, 5)], ids=str)  # also behind layers that lend their keys
def test_survivors_weigh_as_many_as_they_stand_for(name: str, layers: tuple[int, ...], attention: str) -> None:
    model, entry = model_of(name, attention)
    inputs = entry.batch(rows_of("image"))
    check_dropping_is_masking(model, entry, inputs, layers, 3, TOLERANCE, proportional=True)


@pytest.mark.parametrize("name", names(exact=False))
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_recurrent_layers_read_the_survivors_alone(name: str, attention: str) -> None:
    model, entry = model_of(name, attention)
    for rows in (rows_of("image")[:1], rows_of("image")):
        inputs = entry.batch(rows)
        with foveate.prune(model, Drop((0,), 0.4)) as trace, torch.no_grad():
            logits = model(**with_positions(model, inputs), use_cache=False).logits[:, -1]
        # where padding is, chunks begin elsewhere
        assert close(logits, logits_of_survivors(model, inputs, trace.to_dict())) < 3 * TOLERANCE


@pytest.mark.parametrize("name", names(exact=False))
@pytest.mark.parametrize("layers", [(0,), (2,), (1, 3, 5)], ids=str)
def test_recurrent_layers_decode_as_they_read(name: str, layers: tuple[int, ...]) -> None:
    model, entry = model_of(name)
    inputs = entry.batch(rows_of("image"))
    with foveate.prune(model, Drop(layers, 0.4)):
        tokens, logits, _ = generate(model, inputs, 4)
    for step in range(4):
        given = with_positions(model, longer(entry, inputs, tokens[:, :step]))
        with foveate.prune(model, Drop(layers, 0.4)), torch.no_grad():
            again = model(**given, use_cache=False).logits[:, -1]
        assert close(logits[:, step], again) < RECURRENT


@pytest.mark.parametrize("name", names(exact=True))
def test_a_second_turn_finds_what_the_first_left(name: str) -> None:
    model, entry = model_of(name)
    inputs = entry.batch(rows_of("image"))
    with foveate.prune(model, Drop((2,), 0.4)) as trace:
        tokens, _, cache = generate(model, inputs, 3)
    random = torch.Generator().manual_seed(1)
    more = torch.cat([tokens, torch.randint(5, 59, (2, 4), generator=random)], 1)
    whole = longer(entry, inputs, more)
    turn = {k: v for k, v in whole.items() if k in ("input_ids", "attention_mask", entry.token_types)}
    with foveate.prune(model, None):
        _, logits, _ = generate(model, turn, 2, past_key_values=cache)
    with masked(model, inputs, trace.to_dict()), torch.no_grad():
        wanted = model(**with_positions(model, whole), use_cache=False).logits[:, -1]
    assert close(logits[:, 0], wanted) < TOLERANCE


@pytest.mark.parametrize("name", names(exact=True, beams=True))
def test_beams_are_pruned_alike(name: str) -> None:
    """Every beam of a prompt has the same visual tokens, and the scores of the best one are those of a greedy pass."""
    model, entry = model_of(name)
    inputs = entry.batch(rows_of("image"))
    with foveate.prune(model, Drop((0, 2), 0.4)) as alone:
        generate(model, inputs, 3)
    with foveate.prune(model, Drop((0, 2), 0.4)) as trace:
        out = model.generate(
            **inputs, max_new_tokens=3, num_beams=2, do_sample=False, output_scores=True, return_dict_in_generate=True
        )
    rows, single = trace.to_dict()["rows"], alone.to_dict()["rows"]
    assert [row["kept"] for row in rows] == [single[i // 2]["kept"] for i in range(4)]
    assert torch.isfinite(out.sequences_scores).all()
