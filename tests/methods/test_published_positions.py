"""FastV and PyramidDrop end to end as their papers and published code say: drop, renumber, go on."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import foveate
from foveate.core.method import Method
from foveate.methods import FastV, PyramidDrop
from tests.tiny import IMAGE, make_tiny


def by_the_rule(model: object, inputs: dict[str, Tensor], layers: Sequence[int], counts: Sequence[int]) -> Tensor:
    """Logits `[V]` of the first token. Before each of `layers` the image's tokens with the highest attention from the
    last token in the layer before stay, as many as `counts` says, and the survivors stand at 0, 1, ... from there."""
    with torch.no_grad():
        features = model.model.get_image_features(inputs["pixel_values"]).pooler_output  # type: ignore[attr-defined]
        text = model.model.language_model  # type: ignore[attr-defined]
        ids = inputs["input_ids"][0]
        hidden = text.embed_tokens(ids)[None].clone()
        visual = ids == IMAGE
        hidden[0, visual] = torch.cat(list(features)).to(hidden.dtype)
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
