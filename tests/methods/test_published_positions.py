"""FastV, PyramidDrop and VScan end to end as their papers and published code say: drop, renumber, go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import foveate
from foveate.core.method import Method
from foveate.methods import FastV, PyramidDrop, VScan
from tests.tiny import IMAGE, make_tiny

Stage = Callable[[object, Tensor, Tensor], dict[int, Tensor]]
"""Before the language model: from the model, pixels and features `[n, D]` to the tokens that stay and their values."""


def by_the_rule(
    model: object, inputs: dict[str, Tensor], layers: Sequence[int], counts: Sequence[int], before: Stage | None = None
) -> Tensor:
    """Logits `[V]` of the first token. Before each of `layers` the image's tokens with the highest attention from the
    last token in the layer before stay, as many as `counts` says, and the survivors stand at 0, 1, ... from there."""
    with torch.no_grad():
        features = model.model.get_image_features(inputs["pixel_values"]).pooler_output  # type: ignore[attr-defined]
        text = model.model.language_model  # type: ignore[attr-defined]
        ids = inputs["input_ids"][0]
        hidden = text.embed_tokens(ids)[None].clone()
        visual = ids == IMAGE
        hidden[0, visual] = torch.cat(list(features)).to(hidden.dtype)
        if before is not None:
            image, stays = visual.nonzero().squeeze(1), ~visual
            for token, value in before(model, inputs["pixel_values"], hidden[0, visual]).items():
                hidden[0, image[token]] = value
                stays[image[token]] = True
            hidden, visual = hidden[:, stays], visual[stays]
        weights = torch.empty(0)
        for number, layer in enumerate(text.layers):
            if number in layers:
                image = visual.nonzero().squeeze(1)
                best = image[weights[0, :, -1, image].mean(0).topk(counts[layers.index(number)]).indices]
                stays = ~visual
                stays[best] = True
                hidden, visual = hidden[:, stays], visual[stays]
            n = hidden.shape[1]
            positions = torch.arange(n)[None]
            mask = torch.full((n, n), torch.finfo(hidden.dtype).min).triu(1)[None, None]
            rotary = text.rotary_emb(hidden, positions)
            normed = layer.input_layernorm(hidden)
            attended, weights = layer.self_attn(normed, position_embeddings=rotary, attention_mask=mask)
            hidden = hidden + attended
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return model.lm_head(text.norm(hidden))[0, -1]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "layers", "counts"),
    [
        (FastV(keep=(2 + 4 * 0.5) / 6, layer=2, positions="contiguous"), [2], [8]),
        (FastV(keep=(3 + 3 * 0.25) / 6, layer=3, positions="contiguous"), [3], [4]),
        (PyramidDrop(keep=3.375 / 6, layers=(2, 4, 5), positions="contiguous"), [2, 4, 5], [8, 4, 2]),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_the_published_rule_with_published_positions(
    method: Method, layers: list[int], counts: list[int], seed: int
) -> None:
    tiny = make_tiny("llava", "eager")
    inputs = tiny.batch([[4, (4, 4), 6]], seed)
    expected = by_the_rule(tiny.model, inputs, layers, counts)
    with foveate.prune(tiny.model, method) as trace, torch.no_grad():
        found = tiny.model(**inputs).logits[0, -1]
    assert trace.last.alive_per_layer()[layers[-1] :][0] == counts[-1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    with foveate.prune(tiny.model, type(method)(**{**method.parameters(), "positions": "original"})), torch.no_grad():
        kept = tiny.model(**inputs).logits[0, -1]
    assert (kept - expected).abs().max() > 1e-3  # renumbering is not nothing


def scans(windows: int, each: int, overall: int) -> Stage:
    """VScan's first stage on LLaVA: `each` tokens of every window of the grid by the class token's attention in the
    sixth of 24 blocks, then `overall` of all others by that in the block that feeds the projector; every token that
    goes is averaged into the most similar one that stays."""

    def stage(model: object, pixels: Tensor, features: Tensor) -> dict[int, Tensor]:
        tower = model.model.vision_tower  # type: ignore[attr-defined]
        seen = [a[0, :, 0, 1:].mean(0) for a in tower(pixels, output_attentions=True).attentions]
        n, side = len(features), round(len(features) ** 0.5)
        local, deep = seen[round(6 / 24 * len(seen)) - 1], seen[model.config.vision_feature_layer]  # type: ignore[attr-defined]
        by_window: dict[tuple[int, int], list[int]] = {}
        for token in range(n):
            place = (token // side * windows // side, token % side * windows // side)
            by_window.setdefault(place, []).append(token)
        kept = [t for inside in by_window.values() for t in sorted(inside, key=lambda t: -float(local[t]))[:each]]
        kept += sorted(set(range(n)) - set(kept), key=lambda t: -float(deep[t]))[:overall]
        members = {token: [features[token]] for token in kept}
        for token in set(range(n)) - set(kept):
            alike = torch.cosine_similarity(features[token], features[torch.tensor(kept)], dim=-1)
            members[kept[int(alike.argmax())]].append(features[token])
        return {token: torch.stack(own).mean(0) for token, own in members.items()}

    return stage


@pytest.mark.parametrize(
    ("method", "stage", "layer", "counts"),
    [
        (VScan(keep=1 / 3, windows=2, positions="contiguous"), scans(2, 1, 4), 3, (8, 2)),
        (VScan(keep=0.6, windows=2, late=0.5, layer=4, positions="contiguous"), scans(2, 1, 7), 4, (11, 5)),
        (VScan(keep=0.5, windows=1, local=0.25, positions="contiguous"), scans(1, 3, 9), 3, (12, 4)),
    ],
    ids=["two windows", "later", "one window"],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_vscan_with_both_of_its_stages(
    method: VScan, stage: Stage, layer: int, counts: tuple[int, int], seed: int
) -> None:
    tiny = make_tiny("llava", "eager")
    inputs = tiny.batch([[4, (4, 4), 6]], seed)
    expected = by_the_rule(tiny.model, inputs, [layer], [counts[1]], stage)
    with foveate.prune(tiny.model, method) as trace, torch.no_grad():
        found = tiny.model(**inputs).logits[0, -1]
    assert trace.last.alive_per_layer() == [counts[0]] * layer + [counts[1]] * (6 - layer)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    other = by_the_rule(tiny.model, inputs, [layer - 1], [counts[1]], stage)
    assert (found - other).abs().max() > 1e-3  # where the second stage stands is not nothing
