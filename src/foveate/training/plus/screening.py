"""Which questions have something to teach: those that the base, asked several times, answers now and then."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import track

from foveate.data.rows import Row, Rows
from foveate.engine.attach import prune
from foveate.engine.replay import row_choices
from foveate.errors import ConfigurationError, DataError
from foveate.families import adapt
from foveate.training.glimpse.collate import Collator
from foveate.training.identity import differences, plain, table_digest
from foveate.training.plus.rewards import Rewards
from foveate.training.plus.rollouts import Pruning
from foveate.training.plus.sharing import Shared, read_once
from foveate.training.processes import from_first, gathered, is_first, together, world
from foveate.training.rows import stderr

if TYPE_CHECKING:
    from foveate.training.plus.run import PlusSettings

BATCH = 8
"""Questions that are sampled at once."""

Found = dict[str, list[float | None]]
"""Rewards of the samples of each question, by the row's id."""


@dataclass(frozen=True)
class Screening:
    """Questions asked before training, sampled under the pruning that training will use.

    A group whose completions are all worth the same has no advantages and teaches nothing.

    Attributes:
        collator: of the model.
        base: the stock model, untrained.
        pruning, rewards: as in training.
        times: samples of each question.
        options: of `generate`: how completions are sampled, as in training.
        file: where rewards are kept, a line a question, so that a killed screening goes on and others can share it.
        about: what the rewards depend on; a file that was written with something else is refused.
    """

    collator: Collator
    base: Any
    pruning: Pruning
    rewards: Rewards
    times: int
    options: dict[str, Any]
    file: Path
    about: dict[str, Any]

    def teaching(self, rows: Rows) -> Rows:
        """The rows whose samples differ in reward.

        Raises:
            ConfigurationError: the file was written for another model, pruning or reward.
            DataError: no row is left.
        """
        known = from_first(self._read)
        missing = [place for place, name in enumerate(rows.ids) if name not in known]
        rank, count = world()
        starts = range(0, len(missing), BATCH * count)
        for start in track(starts, "screening", console=stderr(), disable=not (missing and is_first())):
            own = missing[start : start + BATCH * count][rank::count]
            found: Found = {}
            with together():
                if own:
                    found = dict(zip([rows.ids[n] for n in own], self._ask([rows[n] for n in own]), strict=True))
            found = {name: rewards for part in gathered(found) for name, rewards in part.items()}
            if is_first():
                self._append(found)
            known |= found
        kept = [place for place, name in enumerate(rows.ids) if teaches(known[name])]
        if is_first():
            text = f"{len(kept)} of {len(rows)} questions are answered sometimes but not always; these are trained on"
            stderr().print(text, markup=False, highlight=False)
        if not kept:
            raise DataError(f"no question of {rows.name} is answered sometimes but not always in {self.times} samples")
        return replace(rows, items=_Some(rows.items, kept), ids=[rows.ids[place] for place in kept])

    def _read(self) -> Found:
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.is_file() else []
        if not lines:
            return {}
        known, *others = [_parsed(line) for line in lines]
        if differ := differences(known, plain(self.about)):
            raise ConfigurationError(
                f"{self.file} holds no screening, or one of something else ({'; '.join(differ)}); remove it, or choose "
                "another file"
            )
        return {name: rewards for line in others for name, rewards in line.items()}

    def _append(self, found: Found) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({name: rewards}) for name, rewards in found.items()]
        if not self.file.is_file() or not self.file.stat().st_size:
            lines.insert(0, json.dumps(plain(self.about)))
        with self.file.open("a", encoding="utf-8") as file:
            file.write("\n".join(["", *lines] if file.tell() else lines))

    @torch.no_grad()
    def _ask(self, rows: Sequence[Row]) -> list[list[float | None]]:
        """Rewards of every row's samples."""
        inputs = {name: x.to(self.base.device) for name, x in self.collator.prompts(rows).items()}
        method = self.pruning.method([{"boxes": row.boxes, "row": row.number} for row in rows], None)
        keys = [place for place in range(len(rows)) for _ in range(self.times)]
        images = [len(rows[place].images) for place in keys]
        fields = {name: x for name, x in inputs.items() if name not in ("input_ids", "attention_mask")}
        shared = Shared.of(keys, images, fields)
        with torch.random.fork_rng(), prune(self.base, method) as trace, read_once(self.base, shared):
            torch.manual_seed(rows[0].number)  # the same in a screening that goes on
            ids = self.base.generate(**inputs, num_return_sequences=self.times, **self.options)
        shares = [1.0] * len(rows)
        if method is not None:
            choices = row_choices(trace.last, method, adapt(self.base).info)
            shares = [row.kept / max(row.total, 1) for row in choices]
        texts = self.collator.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        asked = [rows[place] for place in keys]
        found = self.rewards(
            texts, [r.question for r in asked], [r.answer or "" for r in asked], [shares[place] for place in keys]
        )
        return [found[start : start + self.times] for start in range(0, len(found), self.times)]


def _parsed(line: str) -> dict[str, Any]:
    """A line of the file; nothing, if a run was killed while it wrote it."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def teaches(rewards: Sequence[float | None]) -> bool:
    """Whether the samples of a question differ in reward; those without one do not count."""
    return len({reward for reward in rewards if reward is not None and math.isfinite(reward)}) > 1


def check_screening(settings: PlusSettings) -> None:
    """Refuse what cannot be screened before anything is loaded.

    Raises:
        ConfigurationError: too few samples, a file without them, or one that is a folder.
    """
    file = settings.screen_file
    if settings.screen < 0 or settings.screen == 1:
        raise ConfigurationError(f"screen={settings.screen}: samples differ from two on; 0 screens nothing")
    if settings.first < 0:
        raise ConfigurationError(f"first={settings.first}: rows count from 0")
    if file is not None and not settings.screen:
        raise ConfigurationError(f"screen_file={file}: nothing is screened; give --screen N as well")
    if file is not None and (file.is_dir() or file.parent.is_file()):
        raise ConfigurationError(f"screen_file={file}: no file can be written there")


class _Some(Sequence[Row]):
    """Rows at some places, read when they are used."""

    def __init__(self, rows: Sequence[Row], places: Sequence[int]) -> None:
        self._rows, self._places = rows, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Some(self._rows, self._places[index])
        return self._rows[self._places[index]]


def suppressed(base: Any) -> dict[str, Any]:
    """Options of `generate`: a sampled placeholder would stand for an image that nobody gave."""
    return {"suppress_tokens": sorted(adapt(base).token_ids.values())}


def screened(
    settings: PlusSettings,
    arguments: Any,
    rows: Rows,
    rewards: Rewards,
    base: Any,
    processor: Any,
    pruning: Pruning,
    weights: dict[str, str | None],
) -> Rows:
    """The rows that have something to teach to a model as it was loaded.

    Args:
        arguments: `trl.GRPOConfig`, which says how completions are sampled.
        weights: fingerprints of the model and of the module.
    """
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    sampled = {name: x for name in names if (x := getattr(arguments, name)) is not None}
    more = arguments.generation_kwargs or {}
    limits = {"do_sample": True, "max_new_tokens": arguments.max_completion_length}
    options = {**limits, **sampled, **more, **suppressed(base)}
    module = None if pruning.module is None else asdict(pruning.module.config)
    told = ("system", "box_format", "dtype", "learn_threshold", "rewards", "judge", "screen")
    about = {
        "weights": weights,
        "data": table_digest(settings.data),
        "prune": pruning.kind,
        "layer": pruning.layer,
        "module": module,
        **{name: getattr(settings, name) for name in told},
        **options,
    }
    collator = Collator(adapt(base), processor, settings.system, with_boxes=False)
    file = settings.screen_file or settings.out / "screen.jsonl"
    base.to(arguments.device).eval()
    return Screening(collator, base, pruning, rewards, settings.screen, options, file, about).teaching(rows)
