"""Runs a stage: steps, gradients over processes, logging, checkpoints that survive kill -9.

Not built on accelerate: a stage's loss runs several modules, not one model that could be wrapped, so only an average of
gradients would be left of it; and its checkpoints are folders of several files, some of them pickles, where a run that
may be killed at any moment needs one file that is replaced whole.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.zoo import checkpoint
from recipes.zoo.heads import Metrics
from recipes.zoo.optim import MuonAdamW, Named, cosine, share_gradients
from recipes.zoo.stages import TrainingStage

LOG_EVERY = 50


@dataclass
class Journal:
    """Running means of the logged numbers, one JSON line every `LOG_EVERY` steps."""

    file: Path
    sums: dict[str, list[float]] = field(default_factory=dict)

    def add(self, metrics: Metrics) -> None:
        """Adds one step's numbers; NaN means nothing was measured."""
        for name, value in metrics.items():
            if not math.isnan(value):
                self.sums.setdefault(name, []).append(value)

    def write(self, **facts: Any) -> str:
        """Appends a line and starts anew; returns a short form for the console."""
        means = {name: round(sum(v) / len(v), 4) for name, v in sorted(self.sums.items())}
        self.sums.clear()
        with self.file.open("a") as file:
            file.write(json.dumps(facts | means) + "\n")
        return " ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in (facts | means).items())


class Trainer:
    """Trains stages one after another into `out`.

    Args:
        out: folder of checkpoints and `log.jsonl`.
        rank, world: this process and how many there are.
        seconds: time between checkpoints.
    """

    def __init__(self, out: Path, rank: int, world: int, seconds: float) -> None:
        self.out, self.rank, self.world, self.seconds = out, rank, world, seconds

    def run(self, stage: TrainingStage) -> None:
        """Trains to the stage's last step, from its checkpoint where there is one."""
        modules = stage.modules()
        named: Named = [(f"{part}.{n}", p) for part, module in modules.items() for n, p in module.named_parameters()]
        config = stage.config

        def scale(name: str) -> float:
            return config.tower_rate if name.startswith("tower.") else 1.0

        optimiser = MuonAdamW(named, config.lr, config.muon_lr, scale)
        path = self.out / f"{stage.name}.pt"
        state = checkpoint.load(path)
        start, before = 0, 0.0
        if state:
            start, before = state["step"], state["seconds"]
            optimiser.load_state_dict(state["optimiser"])
            for part, module in modules.items():
                module.load_state_dict(state["modules"][part])
        self._steps(stage, named, optimiser, path, start, before)

    def _steps(
        self,
        stage: TrainingStage,
        named: list[tuple[str, Tensor]],
        optimiser: MuonAdamW,
        path: Path,
        start: int,
        before: float,
    ) -> None:
        journal, began = Journal(self.out / "log.jsonl"), time.monotonic()
        saved, total = began, stage.config.steps
        with self._progress(stage.name, start, total) as show:
            for step in range(start, total):
                loss, metrics = stage.loss(step, self.rank, self.world)
                for _, p in named:
                    p.grad = None
                loss.backward()
                metrics["gradient"] = share_gradients((p for _, p in named), stage.config.clip)
                optimiser.step(cosine(step / total))
                journal.add(metrics | {"loss": loss.item()})
                now, done = time.monotonic(), step + 1
                line = ""
                if self.rank == 0 and (done % LOG_EVERY == 0 or done == total):
                    line = journal.write(stage=stage.name, step=done, seconds=round(before + now - began))
                show(done, line)
                if self.rank == 0 and (now - saved > self.seconds or done == total):
                    saved = now
                    self._save(path, stage, optimiser, done, before + now - began)

    def _save(self, path: Path, stage: TrainingStage, optimiser: MuonAdamW, step: int, seconds: float) -> None:
        weights = {part: module.state_dict() for part, module in stage.modules().items()}
        state = {"step": step, "seconds": seconds, "modules": weights, "optimiser": optimiser.state_dict()}
        checkpoint.save(path, state)

    @contextmanager
    def _progress(self, name: str, start: int, total: int) -> Iterator[Any]:
        """A progress bar with the latest numbers above it, in the first process only."""
        if self.rank:
            yield lambda done, line: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            task = progress.add_task(f"stage {name}", total=total, completed=start)

            def show(done: int, line: str) -> None:
                progress.update(task, completed=done)
                if line:
                    progress.console.print(line, highlight=False, soft_wrap=True)

            yield show


def load_modules(path: Path, modules: dict[str, torch.nn.Module]) -> None:
    """Puts a finished stage's weights into `modules` (those it has)."""
    state = checkpoint.load(path)
    assert state is not None, path
    for part, module in modules.items():
        if part in state["modules"]:
            module.load_state_dict(state["modules"][part])
