"""Does what ViTCoP ranks by find the evidence? AUC of each ranking, token by token, on the built-in scenes.

    python benchmarks/evidence.py --n 270

A token is evidence if a box of the question touches it. 0.5 is chance, 1 ranks all evidence first. Questions about the
whole image have no evidence of their own and are left out. Means over questions with standard errors.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from foveate import zoo
from foveate.core.method import BEFORE_LLM, Method, Stage
from foveate.core.selection import Choice, Selection
from foveate.core.view import ModelInfo, Tap, View
from foveate.data.boxes import box_mask
from foveate.data.rendered import Scenes
from foveate.inference.answer import Asker
from foveate.methods.vitcop import key_norm


@dataclass(frozen=True, eq=False)
class Listen(Method):
    """Drops nothing and notes what could have ranked the tokens."""

    name = "listen"
    scores: dict[str, Tensor] = field(default_factory=dict, kw_only=True)

    @property
    def prunes(self) -> bool:
        return True

    def stages(self, info: ModelInfo) -> list[Stage]:
        return [Stage(BEFORE_LLM), *(Stage(layer, reads="attention") for layer in range(1, info.layers))]

    def shares(self, info: ModelInfo, keep: float) -> list[float]:
        return [1.0] * info.layers

    def taps(self, info: ModelInfo) -> tuple[Tap, ...]:
        return (Tap("received"), Tap("keys"))

    def select(self, view: View) -> Choice:
        if view.layer == BEFORE_LLM:
            self.scores["stage 1: attention received"] = view.tap(Tap("received"))
            self.scores["stage 1: small key norm"] = -view.tap(Tap("keys")).float().norm(dim=-1)
        else:
            self.scores[f"small key norm, layer {view.layer - 1}"] = -key_norm(view)
            self.scores[f"last token's attention, layer {view.layer - 1}"] = view.attention().mean((0, 1))
        return Selection.everything(len(view), view.device)


def auc(score: Tensor, evidence: Tensor) -> float:
    """Chance that a token of evidence ranks above another one; ties count half."""
    yes, no = score[evidence][:, None], score[~evidence][None]
    return float(((yes > no).float() + 0.5 * (yes == no).float()).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=zoo.names())
    parser.add_argument("--n", type=int, default=270)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for model in options.models:
        asker, found = Asker.load(model, 1), dict[str, list[float]]()
        for row in track(list(Scenes.load("test", options.n)), model, transient=True):
            method = Listen(keep=0.999)
            trace = asker.answer(asker.questions([(row.images, row.question)]), method)[0].prefill
            _, height, width = trace.groups[0].grids[0]
            evidence = box_mask(row.boxes[0], height, width).flatten()
            if 0 < int(evidence.sum()) < 0.5 * len(evidence):
                for name, score in method.scores.items():
                    found.setdefault(name, []).append(auc(score, evidence))
        Console().print(f"\n{model}, {len(next(iter(found.values())))} questions with evidence\n")
        for name, values in found.items():
            error = statistics.stdev(values) / math.sqrt(len(values))
            print(f"| {name} | {statistics.mean(values):.2f} ± {error:.2f} |")


if __name__ == "__main__":
    main()
