"""An independent reference: the whole conversation at once, no cache, explicit masks, merges replayed on unpruned rows.

Where `tests/reference.py` answers for one prompt and one prefill, this one answers for chats of several turns, several
images, merges and compacted caches. It shares no code with the engine but the trace that says what was chosen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import foveate
from foveate.core.method import Method
from foveate.families import adapt
from foveate.trace.records import PrefillTrace
from tests.tiny import IMAGE, LAYERS, Tiny

Merges = list[tuple[int, int, Tensor, Tensor]]
"""(row, column of the target, columns of the sources, their weights)."""


@dataclass
class Dropped:
    """What one prefill dropped and merged, in columns of the whole conversation.

    Attributes:
        alive: by layer, `[B, end - start]` bool; the last entry is what is kept to the end.
    """

    start: int
    end: int
    compact: bool
    alive: list[Tensor]
    merges: dict[int, Merges] = field(default_factory=dict)

    @classmethod
    def of(cls, prefill: PrefillTrace, compact: bool) -> Dropped:
        start, end = prefill.past, prefill.past + prefill.length
        found = cls(start, end, compact, [])
        for layer in range(LAYERS + 1):
            alive = torch.ones(prefill.rows, prefill.length, dtype=torch.bool)
            for group in prefill.groups:
                alive[group.row, group.columns] = False
                alive[group.row, group.columns[group.alive_at(layer)]] = True
            found.alive.append(alive)
        for group in prefill.groups:
            before = group.visible
            for step in group.steps:
                columns, merge = group.columns[before] + start, step.selection.merge
                for s, target in enumerate([] if merge is None else merge.target.tolist()):
                    assert merge is not None
                    own = merge.segment == s
                    to = int(columns[step.selection.index[target]])
                    entry = group.row, to, columns[merge.source[own]], merge.weight[own]
                    found.merges.setdefault(step.layer, []).append(entry)
                before = before[step.selection.index]
        return found


@contextmanager
def masked(model: Any, dropped: Sequence[Dropped], real: Tensor) -> Iterator[None]:
    """Within the block every layer sees of the running sequence (no cache) what the pruned model would."""
    handles = []
    for number, layer in enumerate(adapt(model).parts.layers):

        def hook(module: Any, args: Any, kwargs: Any, number: int = number) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            rows, n = hidden.shape[:2]
            mixed = hidden.clone()
            for part in dropped:
                for row, target, sources, weights in part.merges.get(number, []):
                    mixed[row, target] = (weights[:, None] * hidden[row, sources]).sum(0)
            see = torch.ones(n, n, dtype=torch.bool).tril().repeat(rows, 1, 1) & real[:, None]
            for part in dropped:
                length = min(part.end, n) - part.start
                seen = part.alive[number][:, None, :length].expand(-1, n, -1)
                if part.compact:  # later tokens find earlier layers' caches without what was dropped since
                    inside = torch.arange(n)[None, :, None] < part.end
                    seen = torch.where(inside, seen, part.alive[-1][:, None, :length])
                see[:, :, part.start : part.start + length] &= seen
            see |= torch.eye(n, dtype=torch.bool)
            bias = torch.zeros(see.shape).masked_fill(~see, torch.finfo(hidden.dtype).min)[:, None]
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            return (mixed, *args[1:]), {**rest, "attention_mask": bias}

        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def expected_logits(
    tiny: Tiny, ids: Tensor, mask: Tensor, images: dict[str, Tensor], visual: Tensor, dropped: Sequence[Dropped]
) -> Tensor:
    """`[B, n, V]` logits of a whole conversation.

    Args:
        images: pixel values and grids of all its images, row by row.
        visual: `[B, n]` bool, where they stand.
    """
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False, **images}
    if tiny.family == "qwen2_5_vl":
        tiny.model.model.rope_deltas = None
        arguments["mm_token_type_ids"] = visual.int()
    if not images or tiny.family != "qwen2_5_vl":
        arguments["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    with masked(tiny.model, dropped, mask.bool()), torch.no_grad():
        found: Tensor = tiny.model(**arguments).logits
    return found


@dataclass
class Chat:
    """A conversation of a batch under one method: what was said, shown and cached.

    Attributes:
        images: per row, (pixel values, grid or None) of every image so far.
        lengths: tokens, prefills and images per row before each turn, to go back to.
    """

    tiny: Tiny
    method: Method | None
    ids: Tensor
    visual: Tensor
    images: list[list[tuple[Tensor, Tensor | None]]]
    dropped: list[Dropped] = field(default_factory=list)
    cache: Any = None
    lengths: list[tuple[int, int, list[int]]] = field(default_factory=list)

    @classmethod
    def start(cls, tiny: Tiny, method: Method | None, rows: int) -> Chat:
        empty = torch.zeros(rows, 0, dtype=torch.long)
        return cls(tiny, method, empty, empty.bool(), [[] for _ in range(rows)])

    def ask(self, rows: Sequence[Sequence[Any]], seed: int, steps: int, bring_all: bool, **options: Any) -> float:
        """One turn (rows of equal length); returns the largest difference of its logits to the reference."""
        self.lengths.append((self.ids.shape[1], len(self.dropped), [len(own) for own in self.images]))
        shown = self._show(rows, seed)
        images = self.pictures() if bring_all or shown else {}
        mask, prompt = torch.ones_like(self.ids), self.ids.shape[1]
        inputs = {"input_ids": self.ids, "attention_mask": mask, **images}
        if self.tiny.family == "qwen2_5_vl":
            inputs["mm_token_type_ids"] = self.visual.int()
        more = {} if self.cache is None else {"past_key_values": self.cache}
        with foveate.prune(self.tiny.model, self.method) as trace:
            out = self.tiny.model.generate(
                **inputs, **more, **options, max_new_tokens=steps, do_sample=False, output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
        info = adapt(self.tiny.model).info
        stages = self.method.stages(info) if self.method is not None and self.method.prunes else ()
        compact = any(stage.compact_earlier for stage in stages)
        self.dropped += [Dropped.of(prefill, compact) for prefill in trace.prefills]
        self.cache, self.ids = out.past_key_values, out.sequences
        self.visual = torch.nn.functional.pad(self.visual, (0, self.ids.shape[1] - prompt))
        whole = expected_logits(
            self.tiny, self.ids, torch.ones_like(self.ids), self.pictures(), self.visual, self.dropped
        )
        found = torch.stack(out.logits, 1)
        return float((whole[:, prompt - 1 : prompt - 1 + found.shape[1]] - found).abs().max())

    def _show(self, rows: Sequence[Sequence[Any]], seed: int) -> bool:
        batch = self.tiny.batch(rows, seed=seed)
        self.ids = torch.cat([self.ids, batch["input_ids"]], 1)
        self.visual = torch.cat([self.visual, batch["input_ids"] == IMAGE], 1)
        for own, row in zip(self.images, rows, strict=True):
            one = self.tiny.batch([row], seed=seed)
            if "pixel_values" not in one:
                continue
            grids = one.get("image_grid_thw")
            sizes = 1 if grids is None else grids.prod(-1).tolist()
            parts = one["pixel_values"].split(sizes)
            own += zip(parts, [None] * len(parts) if grids is None else grids.split(1), strict=True)
        return "pixel_values" in batch

    def pictures(self) -> dict[str, Tensor]:
        """All images of all rows, as the processor would give them."""
        flat = [image for own in self.images for image in own]
        if not flat:
            return {}
        found = {"pixel_values": torch.cat([pixels for pixels, _ in flat])}
        grids = [grid for _, grid in flat if grid is not None]
        return found | ({"image_grid_thw": torch.cat(grids)} if grids else {})

    def go_back(self, turn: int) -> None:
        """Forget everything from a turn on: the cache is cropped, the rest follows."""
        length, prefills, images = self.lengths[turn]
        # the last token of an answer is not in the cache yet; it will be read with the next turn
        cached = max(length - 1, 0) if turn else 0
        self.cache.crop(cached - self.cache.get_seq_length())
        self.ids, self.visual = self.ids[:, :length], self.visual[:, :length]
        self.dropped = self.dropped[:prefills]
        self.images = [own[:count] for own, count in zip(self.images, images, strict=True)]
        self.lengths = self.lengths[:turn]


def random_turn(rng: random.Random, tiny: Tiny, rows: int) -> list[list[Any]]:
    """Parts of a user's turn for every row, all of one length: rows differ in their content only."""
    parts: list[Any] = [rng.randint(1, 4)]
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        parts += [(rng.randint(1, 5), rng.randint(1, 5)), rng.randint(1, 3)]
    return [[*parts[:-1], parts[-1]] for _ in range(rows)]
