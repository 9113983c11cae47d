"""The reference that needs no weights: keep every token, but mask the dropped ones as keys from their layer on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import foveate
from foveate import Method, Stage, View
from foveate.core.view import ModelInfo
from foveate.families import adapt
from foveate.trace.records import PrefillTrace
from tests.tiny import make_tiny


@dataclass(frozen=True, init=False)
class Drop(Method):
    """Keeps a random subset at every given layer; the subset depends on the image, not on the batch.

    Args:
        keep: share kept at each of the layers.
    """

    layers: tuple[int, ...]
    seed: int
    as_mask: bool
    queries: bool
    compact: bool

    def __init__(
        self,
        layers: tuple[int, ...] = (0,),
        keep: float = 0.5,
        seed: int = 0,
        as_mask: bool = False,
        queries: bool = False,
        compact: bool = False,
        proportional: bool = False,
    ) -> None:
        given = {
            "layers": layers,
            "keep": keep,
            "seed": seed,
            "as_mask": as_mask,
            "queries": queries,
            "compact": compact,
            "proportional": proportional,
        }
        for name, value in (given | {"positions": "original"}).items():
            object.__setattr__(self, name, value)

    def stages(self, info: ModelInfo) -> list[Stage]:
        return [
            Stage(layer, reads="attention" if self.queries and layer else "nothing", compact_earlier=self.compact)
            for layer in self.layers
        ]

    def check(self, info: ModelInfo) -> None:
        pass

    def choose(self, view: View, count: int) -> Tensor:
        raise AssertionError

    def select(self, view: View) -> Tensor:
        random = torch.Generator().manual_seed(self.seed * 100 + 10 * view.layer + view.image)
        count = max(1, int(len(view) * self.budget.ratio_of(len(view))))
        kept = torch.randperm(len(view), generator=random)[:count].sort().values
        if not self.as_mask:
            return kept.to(view.device)
        return torch.zeros(len(view), dtype=torch.bool).index_fill_(0, kept, True).to(view.device)


@contextmanager
def masked(
    model: Any,
    inputs: dict[str, Tensor],
    trace: dict[str, Any],
    compact: bool = False,
    weights: Callable[[int], Tensor] | None = None,
) -> Iterator[None]:
    """Within the block, decoder layer l cannot see the visual tokens that `trace` says are dropped there.
    The sequence may be longer than the prompt: decoded tokens see what layer l saw, or with `compact` (caches of
    earlier layers are compacted too) what is kept to the end. `weights(l)` `[B, n]` are added to the logits of the
    prompt's tokens as keys."""
    layers = adapt(model).parts.layers
    handles = []
    for number, layer in enumerate(layers):
        dropped = gone(inputs, trace, lambda row, n=number: row["layers"][n]["positions"])
        later = gone(inputs, trace, lambda row: row["kept"]) if compact else dropped

        own = None if weights is None else weights(number)

        def hook(
            module: Any,
            args: Any,
            kwargs: Any,
            dropped: Tensor = dropped,
            later: Tensor = later,
            own: Tensor | None = own,
        ) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            n = hidden.shape[1]
            padding = torch.nn.functional.pad(inputs["attention_mask"].bool(), (0, n - dropped.shape[1]), value=True)
            prompt = dropped.shape[1]
            by_query = [dropped] * prompt + [later] * (n - prompt)
            hidden_keys = torch.nn.functional.pad(torch.stack(by_query, 1), (0, n - prompt))  # [B, query, key]
            visible = padding[:, None] & ~hidden_keys
            allowed = torch.ones(n, n, dtype=torch.bool).tril()[None, None] & visible[:, None]
            bias = torch.zeros(allowed.shape, dtype=hidden.dtype).masked_fill(~allowed, torch.finfo(hidden.dtype).min)
            if own is not None:
                bias = bias + torch.nn.functional.pad(own, (0, n - prompt))[:, None, None]
            return args, {**kwargs, "attention_mask": bias}

        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def gone(inputs: dict[str, Tensor], trace: dict[str, Any], kept: Callable[[Any], list[int]]) -> Tensor:
    """`[B, n]` visual tokens that are not in `kept(row)`."""
    dropped = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
    for row, traced in enumerate(trace["rows"]):
        visual = {c for image in traced["images"] for c in image["columns"]}
        dropped[row, sorted(visual - set(kept(traced)))] = True
    return dropped


def weights(prefills: Sequence[PrefillTrace], shape: torch.Size) -> Callable[[int], Tensor]:
    """`[B, n]` for a layer, log of how many tokens each stands for, from what was recorded: every token alive hands its
    number on to the survivor nearest to it."""

    def of(layer: int) -> Tensor:
        bias = torch.zeros(shape)
        for prefill in prefills:
            for group in prefill.groups:
                number = {int(token): 1 for token in group.visible}
                for step in group.steps:
                    if step.layer > layer or step.selection.nearest is None:
                        continue
                    heirs = step.alive.tolist()
                    found = dict.fromkeys(heirs, 0)
                    for token, heir in zip(sorted(number), step.selection.nearest.tolist(), strict=True):
                        found[heirs[heir]] += number[token]
                    number = found
                for token, count in number.items():
                    bias[group.row, prefill.past + group.columns[token]] = torch.tensor(float(count)).log()
        return bias

    return of


def masked_logits(
    model: Any,
    inputs: dict[str, Tensor],
    trace: dict[str, Any],
    tokens: Sequence[Tensor],
    compact: bool = False,
    weights: Callable[[int], Tensor] | None = None,
) -> list[Tensor]:
    """Logits `[B, V]` of the first token and of every following one, given the decoded tokens `[B]` each."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    found = []
    for step in range(len(tokens)):
        more = torch.stack(list(tokens[:step]), dim=1) if step else ids[:, :0]
        longer = {
            **inputs,
            "input_ids": torch.cat([ids, more], 1),
            "attention_mask": torch.cat([mask, torch.ones_like(more)], 1),
        }
        if "mm_token_type_ids" in inputs:
            kinds = inputs["mm_token_type_ids"]
            longer["mm_token_type_ids"] = torch.cat([kinds, torch.zeros_like(more, dtype=kinds.dtype)], 1)
        else:
            longer["position_ids"] = (longer["attention_mask"].cumsum(1) - 1).clamp(min=0)
        if "image_grid_thw" not in inputs:
            longer["position_ids"] = (longer["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with masked(model, inputs, trace, compact, weights), torch.no_grad():
            found.append(model(**longer, use_cache=False).logits[:, -1])
    return found


def check_dropping_is_masking(
    family: str, attention: str, rows: list[Any], method: Method, steps: int
) -> list[PrefillTrace]:
    """Logits of a pruned answer are those of the stock model that masks what was dropped, and weighs what is left where
    the method does; returns what was recorded."""
    tiny = make_tiny(family, attention)
    inputs = tiny.batch(rows)
    with foveate.prune(tiny.model, method) as trace:
        tokens, logits = generate(tiny.model, inputs, steps)
    own = weights(trace.prefills, inputs["input_ids"].shape) if method.proportional else None
    found = torch.stack(masked_logits(tiny.model, inputs, trace.to_dict(), list(tokens.unbind(1)), weights=own), 1)
    assert (found - logits).abs().max().item() < 1e-4
    assert torch.equal(found.argmax(-1), tokens)
    return trace.prefills


def generate(model: Any, inputs: dict[str, Tensor], steps: int, **more: Any) -> tuple[Tensor, Tensor]:
    """Greedy tokens `[B, steps]` and the logits `[B, steps, V]` that chose them."""
    out = model.generate(
        **inputs,
        max_new_tokens=steps,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **more,
    )
    return out.sequences[:, -steps:], torch.stack(out.logits, dim=1)
