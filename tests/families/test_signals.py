"""What methods read, of every model type: values per patch at the right tokens, attention as the model computes it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

import foveate
from foveate.core.attention import attention_rows
from foveate.core.grid import Grid
from foveate.core.method import Stage
from foveate.core.view import ModelInfo, Tap, View
from foveate.engine.capture import AttentionCall, Listening, _function_of
from foveate.families import adapt
from tests.families.reference import generate, rows_of
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
    mixed_later = name == "lfm3_vl"  # whose last block, behind the one that is read, is a convolution
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
            own = changed(values, new_values)
            assert own == tokens or (mixed_later and set(own) < set(tokens))
            seen += len(own)
    assert seen


@dataclass
class Watched:
    """What stock code computes in one block of a tower.

    Attributes:
        weights: of every call of the attention module, `[B, H, n, n]`.
        grids, patches: of every image, in tokens and in patches.
        calls: what was captured, in the same order as the weights.
    """

    weights: list[Tensor] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    patches: list[int] = field(default_factory=list)
    calls: list[AttentionCall] = field(default_factory=list)


@contextmanager
def watched(name: str) -> Iterator[Watched]:
    family, found = adapt(build(name, "eager")), Watched()
    tap, handles = Tap("received"), []
    with pytest.MonkeyPatch.context() as patch:
        for tower, blocks in family.parts.towers:
            attention = family.block_attention(blocks[family.block_of(tap)])
            own = _function_of(attention, "eager")
            for kind in type(attention).__mro__:
                for key, value in vars(sys.modules.get(kind.__module__, sys)).items():
                    if value is own:
                        patch.setattr(sys.modules[kind.__module__], key, recording(own, attention, found.weights))
            handles.append(Listening(attention, found.calls.append))
            handles.append(tower.register_forward_pre_hook(noting(family, found), with_kwargs=True))
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


def noting(family: Any, found: Watched) -> Any:
    """A hook before a tower that notes which images come."""

    def note(module: Any, args: Any, kwargs: Any) -> None:
        grids = family.tower_grids(args, kwargs)
        found.grids += grids
        found.patches += family.tower_patches(args, kwargs, grids)

    return note


def recording(stock: Any, watched_module: Any, weights: list[Tensor]) -> Any:
    """A stock attention function that notes the weights of one module."""

    def attend(module: Any, *args: Any, **kwargs: Any) -> Any:
        output = stock(module, *args, **kwargs)
        if module is watched_module:
            weights.append(output[1])
        return output

    attend.__name__ = stock.__name__
    return attend


def received(family: Any, seen: Watched) -> list[Tensor]:
    """Per image (or tile) and token, what the full matrices say."""
    patches = seen.patches
    rows = []
    for weights in seen.weights:
        if family.has_class_token:
            rows.append(weights[:, :, -1 if family.class_token_last else 0].sum(1))
        elif len(weights) == 1 < len(patches) and weights.shape[2] == sum(patches):  # told apart by a mask
            blocks = [slice(sum(patches[:i]), sum(patches[: i + 1])) for i in range(len(patches))]
            rows.append(torch.cat([weights[:, :, own, own].mean(2).sum(1) for own in blocks], 1))
        else:  # the rest of a row is padding, which asks nothing
            own = patches if len(weights) == len(patches) else [weights.shape[2]] * len(weights)
            rows.append(torch.stack([w[:, :n].mean(1).sum(0) for w, n in zip(weights, own, strict=True)]))
    joined = torch.cat(rows, 0 if len(rows[0]) > 1 else 1)
    return family.to_tokens(Tap("received"), joined, seen.grids)


@pytest.mark.parametrize("name", readable())
def test_received_attention_is_that_of_the_full_matrix(name: str) -> None:
    """Element by element, from the stock weights of an eager model; on sdpa it is the same."""
    family, tap = adapt(build(name, "eager")), Tap("received")
    with watched(name) as seen:
        found = read(name, tap, attention="eager")
    wanted = received(family, seen)
    if family.merge == "unpad":  # tiles are stitched and cut; thumbnails stay as they are
        side = wanted[0].shape[0]
        pins, sizes = family.config.image_grid_pinpoints, TABLE[name].batch(rows_of("image"))["image_sizes"]
        tiles = [image_size_to_num_patches(size, pins, 56) for size in sizes]
        firsts = [wanted[start] for start in accumulate(tiles[:-1], initial=0)]
        pairs = list(zip([value[:side] for _, value in found], firsts, strict=True))
    else:
        pairs = [(torch.cat([value for _, value in found]), torch.cat(wanted))]
    for value, expected in pairs:
        torch.testing.assert_close(value, expected.to(value.dtype), rtol=1e-4, atol=1e-7)
    for (_, value), (_, other) in zip(read(name, tap), found, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", readable())
def test_captured_queries_and_keys_make_the_stock_weights(name: str) -> None:
    with watched(name) as seen:
        generate(build(name, "eager"), TABLE[name].batch(rows_of("image")), 1)
    assert len(seen.calls) == len(seen.weights) > 0
    for call, weights in zip(seen.calls, seen.weights, strict=True):
        for row in range(len(weights)):
            allowed = None
            if call.mask is not None:
                allowed = call.allowed(row, torch.arange(call.q.shape[2]))
                if not bool(allowed.any(-1).all()):
                    allowed = allowed | ~allowed.any(-1, keepdim=True)  # padding, which sees all alike
            made = attention_rows(call.q[row], call.k[row], call.scaling, allowed)
            real = slice(None) if allowed is None else allowed.any(-1)
            torch.testing.assert_close(made[:, real], weights[row][:, real].float(), rtol=1e-4, atol=1e-6)


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
