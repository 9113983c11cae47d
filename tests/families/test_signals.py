"""What methods read, of every model type: values per patch at the right tokens, attention as the model computes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate.core.method import Stage
from foveate.core.view import ModelInfo, Tap, View
from foveate.families import adapt
from tests.families.reference import close, generate, rows_of
from tests.families.test_types import FEW
from tests.families.tiny import build
from tests.families.types import TABLE
from tests.reference import Drop


@dataclass(frozen=True, init=False)
class Reads(Drop):
    """Keeps a part, and everything that it was shown.

    Args:
        read: taps to read before the language model.
    """

    read: tuple[Tap, ...]
    found: list[Any] = field(compare=False)

    def __init__(self, layers: tuple[int, ...] = (0,), read: tuple[Tap, ...] = (), **more: Any) -> None:
        super().__init__(layers, 0.9, queries=any(layers), **more)
        object.__setattr__(self, "read", read)
        object.__setattr__(self, "found", [])

    def taps(self, info: ModelInfo) -> tuple[Tap, ...]:
        return self.read

    def stages(self, info: ModelInfo) -> list[Stage]:
        return [Stage(layer, reads="attention" if layer else "nothing") for layer in self.layers]

    def select(self, view: View) -> Tensor:
        if view.layer:
            self.found.append((view.row, view.index, view.attention(), view.keys))
        else:
            self.found.append((view.hidden, *(view.tap(tap) for tap in self.read)))
        return super().select(view)


def readable() -> list[Any]:
    """Types whose patches are known to become tokens in a known way."""
    names = [name for name in TABLE if adapt(build(name)).merge != "none"]
    return [name if name in FEW else pytest.param(name, marks=pytest.mark.families) for name in sorted(names)]


def read(name: str, *taps: Tap, kind: str = "image", attention: str = "sdpa") -> list[Any]:
    method = Reads((0,), taps)
    with foveate.prune(build(name, attention), method):
        generate(build(name, attention), TABLE[name].batch(rows_of(kind)), 1)
    return method.found


def changed(before: Tensor, after: Tensor) -> list[int]:
    return (before - after).abs().amax(-1).gt(1e-6).nonzero().squeeze(1).tolist()


@pytest.mark.parametrize("name", readable())
@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_patch_is_read_at_the_token_that_it_makes(name: str, kind: str) -> None:
    """A patch is changed in the tower: the tokens whose features change must be those whose readings change."""
    if kind == "video" and TABLE[name].video is None:
        pytest.skip("no videos")
    family, tap = adapt(build(name)), Tap("hidden")
    blocks = [own[family.block_of(tap)] for _, own in family.parts.towers]
    ends = [part for block in blocks for name, part in block.named_children() if name in ("mlp", "feed_forward", "ffn")]
    stock, seen = read(name, tap, kind=kind), 0
    for place in (0, 5, 11, -1):

        def change(module: Any, args: Any, output: Any, place: int = place) -> Any:
            hidden = output.contiguous().clone()  # is added to the block's output
            hidden.view(-1, hidden.shape[-1])[place] += torch.linspace(1, 2, hidden.shape[-1])
            return hidden

        handles = [part.register_forward_hook(change) for part in ends]
        other = read(name, tap, kind=kind)
        for handle in handles:
            handle.remove()
        for (features, values), (new_features, new_values) in zip(stock, other, strict=True):
            tokens = changed(features, new_features)
            assert changed(values, new_values) == tokens
            seen += len(tokens)
    assert seen


@pytest.mark.parametrize("name", readable())
def test_received_attention_is_that_of_the_full_matrix(name: str) -> None:
    family, tap = adapt(build(name, "eager")), Tap("received")
    weights: list[Tensor] = []
    attention = family.block_attention(family.parts.blocks[family.block_of(tap)])
    handle = attention.register_forward_hook(lambda m, a, output: weights.append(output[1]))
    found = read(name, tap, attention="eager")
    handle.remove()
    if not weights or not isinstance(weights[0], Tensor) or weights[0].dim() != 4:
        pytest.skip("stock code keeps no weights of its tower")
    received = []
    for image in torch.cat([w.flatten(0, 0) for w in weights]):
        received.append(image[:, -1 if family.class_token_last else 0] if family.has_class_token else image.mean(1))
    total = torch.cat([value for _, value in found])
    assert torch.isfinite(total).all()
    assert (total > 0).all()
    heads = weights[0].shape[1]
    assert float(torch.stack(received).sum()) == pytest.approx(heads * len(received), rel=1e-3)
    for _, value in read(name, tap):
        assert any(close(value, other) < 1e-4 for _, other in found if other.shape == value.shape)


@pytest.mark.parametrize("name", readable())
def test_keys_have_the_width_of_the_tower(name: str) -> None:
    for features, keys in read(name, Tap("keys")):
        assert keys.shape[0] == features.shape[0]
        assert torch.isfinite(keys).all()


@pytest.mark.parametrize(
    "name", [n if n in FEW else pytest.param(n, marks=pytest.mark.families) for n in sorted(TABLE)]
)
def test_attention_in_the_language_model_is_the_stock_one(name: str) -> None:
    """The prompt's last token attends to visual tokens as eager stock code says."""
    model, entry = build(name, "eager"), TABLE[name]
    family = adapt(model)
    stage = next(k for k in range(2, 7) if family.info.reading_layer(k) is not None) if name else 2
    layer = family.info.reading_layer(stage)
    assert layer is not None
    weights: list[Any] = []
    handle = family.layer_attention(layer).register_forward_hook(lambda m, a, output: weights.append(output[1]))
    method, inputs = Reads((stage,)), entry.batch(rows_of("image"))
    with foveate.prune(model, method) as trace:
        generate(model, inputs, 1)
    handle.remove()
    if stage != layer + 1:
        assert any(f"reads layer {layer}" in note for note in trace.notes)
    images = {row: [] for row in range(2)}
    for number, group in enumerate(trace.last.groups):
        images[group.row].append(number)
    for number, (row, index, attention, _) in enumerate(method.found):
        columns = trace.last.groups[number].columns[index]
        torch.testing.assert_close(attention[:, 0], weights[0][row][:, -1, columns], rtol=1e-4, atol=1e-6)
