"""What each deliberate difference from ViTCoP's published code does to accuracy on the built-in scenes.

    python benchmarks/vitcop_quirks.py --n 270 --keep 0.3333 0.1111
    python benchmarks/vitcop_quirks.py --n 270 --keep 0.3333 0.1111 --model foveate/scenes-llava

The renumbered positions of the published code exist for one-dimensional positions only (LLaVA) and are not measured on
a Qwen2.5-VL model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from foveate import scenes, zoo
from foveate.core.method import Stage
from foveate.core.selection import Selection
from foveate.core.view import ModelInfo, View
from foveate.families import adapt
from foveate.files.atomic import write_text
from foveate.files.environment import facts
from foveate.inference.answer import Asker
from foveate.maths.clustering import density_peaks
from foveate.maths.copruning import select_and_merge
from foveate.methods import ViTCoP


@dataclass(frozen=True)
class AddTarget(ViTCoP):
    """A merged token is its target plus the group's mean, as published."""

    def _co_prune(self, view: View, norm: torch.Tensor, budget: int) -> Selection:
        labels = view.memo["labels"][view.index]
        return select_and_merge(norm, labels, budget, add_target=True)


@dataclass(frozen=True)
class OwnCluster(ViTCoP):
    """Tokens without a cluster form one of their own, as published."""

    def _filter(self, view: View, count: int) -> torch.Tensor:
        kept = super()._filter(view, count)
        keys = view.tap(self.taps(view.info)[0]).float()[kept]
        side = max(view.grid.h, view.grid.w)
        _, fraction = self.preset(view.info, self.budget.ratio_of(view.entered))
        labels = density_peaks(keys, view.positions()[kept, 1:] / side, fraction)
        view.memo["labels"][kept] = labels
        return kept


@dataclass(frozen=True)
class Renumbered(ViTCoP):
    """Positions compacted in stages 1 and 3, as published."""

    def stages(self, info: ModelInfo) -> Sequence[Stage]:
        modes: tuple[Any, ...] = ("contiguous", "original", "index")
        return [replace(stage, positions=mode) for stage, mode in zip(super().stages(info), modes, strict=True)]


@dataclass(frozen=True)
class DecodeFromCache(ViTCoP):
    """Decoding continues at the length of the pruned cache, as published."""

    @property
    def decode_from_cache(self) -> bool:
        return True


VARIANTS: dict[str, Callable[[float], ViTCoP]] = {
    "default": ViTCoP,
    "merge adds the target (published)": AddTarget,
    "unlabelled tokens are a cluster (published)": OwnCluster,
    "saliency: key norm instead of attention received": lambda keep: ViTCoP(keep, saliency="key_norm"),
}
LLAVA_ONLY: dict[str, Callable[[float], ViTCoP]] = {
    "positions renumbered (published)": Renumbered,
    "decoding continues at the cache's length (published)": DecodeFromCache,
    "all of the published code (official=True)": lambda keep: ViTCoP(keep, official=True),
}


def accuracy(asker: Asker, samples: list[Any], method: Any, batch: int, what: str) -> float:
    right = 0
    for start in track(range(0, len(samples), batch), what, transient=True):
        part = samples[start : start + batch]
        answers = asker.answer(asker.questions([(s.images, s.question) for s in part]), method)
        right += sum(found.text == s.answer for found, s in zip(answers, part, strict=True))
    return 100 * right / len(samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=zoo.DEFAULT)
    parser.add_argument("--n", type=int, default=270)
    parser.add_argument("--keep", type=float, nargs="*", default=[1 / 3, 1 / 9])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    asker = Asker.load(options.model, 8)
    samples = list(scenes.load("test", options.n))
    found: dict[str, Any] = {"unpruned": accuracy(asker, samples, None, options.batch, "unpruned")}
    print(f"unpruned: {found['unpruned']:.1f} % of {options.n}")
    variants = VARIANTS | (LLAVA_ONLY if adapt(asker.model).info.family == "llava" else {})
    for keep in options.keep:
        for name, variant in variants.items():
            found[f"{name}, keep {keep:.4f}"] = score = accuracy(asker, samples, variant(keep), options.batch, name)
            print(f"keep {keep:.4f}  {name}: {score:.1f} %", flush=True)
    if options.json:
        report = {"facts": facts(asker.model), "n": options.n, "accuracy": found}
        write_text(options.json, json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
