"""GlimpsePrune+ with each kind of rollout, on a split that the zoo model never saw: is tuned and pruned above unpruned?

    python benchmarks/plus_rollouts.py --seeds 0 1 2 --control-seeds 0 1 --markdown docs/plus_rollouts.md

Rollouts are pruned to the evidence boxes, by the module, by the module with a background, or not at all (the control:
what reinforcement learning alone does). For every kind the questions are screened once (`--screen`); then for every
seed `foveate train plus` runs in a process of its own and its adapter answers the held-out questions, pruned as it was
trained, pruned as the model will be used (`background`), and unpruned. What is there already is not repeated, so the
same command goes on after a kill, and more kinds and seeds can be added.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from plus_page import HELD_OUT
from plus_rollouts_page import markdown
from plus_runs import Samples, claim, correct, row, to_evidence, trainer_options, with_background
from resume import read_report

from foveate import scenes, zoo
from foveate.core.method import Method
from foveate.files.atomic import write_text
from foveate.files.environment import facts
from foveate.glimpse import load_module
from foveate.inference.answer import Asker
from foveate.inference.weights import fingerprint
from foveate.methods import GlimpsePrune
from foveate.scenes.splits import sample
from foveate.training.base import merged

KINDS = ("background", "module", "boxes", "none")
"""How rollouts are pruned, in the order of interest."""


def table(options: argparse.Namespace) -> Path:
    """Training questions of the wanted types as a table with images: samples of the split from `HELD_OUT` on, rendered
    on beyond the thousand that `scenes.load` gives, so that none has to be trained on often."""
    path: Path = options.out / "data" / "questions.jsonl"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[str] = []
    index = HELD_OUT
    while len(rows) < options.train:
        if scenes.TYPES[index % len(scenes.TYPES)] in options.types:
            rows.append(row(sample(options.split, index), path.parent, str(index)))
        index += 1
    path.write_text("\n".join(rows) + "\n")
    return path


def modules(options: argparse.Namespace) -> dict[str, Path]:
    """The folder of the module by kind."""
    folder = options.out / "module-background"
    other = with_background(options.module, folder, options.max_keep, options.background)
    return {"module": Path(options.module), "background": other}


def train(options: argparse.Namespace, kind: str, seed: int) -> dict[str, Any]:
    """One run of `foveate train plus`: its folder has the adapter; returns what it took and how rewards went."""
    out = options.out / f"{kind}-{seed}"
    note = out / "done"
    if not note.exists():
        own = modules(options)
        command = [sys.executable, "-c", "from foveate.cli import main; main()", "train", "plus"]
        command += ["--model", options.model, "--data", str(table(options)), "--out", str(out)]
        command += ["--screen", str(options.screen), "--screen-file", str(options.out / f"screen-{kind}.jsonl")]
        command += ["--module", str(own.get(kind, own["module"]))]
        command += ["--prune", {"boxes": "boxes", "none": "none"}.get(kind, "glimpse")]
        command += trainer_options(options, max_steps=options.steps, save_steps=20, save_total_limit=1, seed=seed)
        status = subprocess.run([*command, *(["--resume"] if out.exists() else [])], stdout=subprocess.DEVNULL)
        if status.returncode:
            raise SystemExit(f"training in {out} stopped; the same command goes on from its last checkpoint")
        note.touch()
    summary = json.loads((out / "training.json").read_text())
    log = [entry for entry in summary["log"] if "step_time" in entry]
    names = ("reward", "frac_reward_zero_std", "kept_share", "step_time")
    return {"rows": summary["rows"], **{name: [entry[name] for entry in log] for name in names}}


class Test:
    """Held-out questions, asked of the base model with or without an adapter merged into it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.modules = {kind: GlimpsePrune(load_module(folder)) for kind, folder in modules(options).items()}
        self.layer = self.modules["module"].glimpse.config.reduce_layer
        every = scenes.load(options.split, HELD_OUT)
        own = [i for i in range(len(every)) if every[i].type in options.types][: options.test]
        places = sorted({*own, *range(options.test_all)})
        self.samples = [every[i] for i in places]
        self.sets = {"trained types": [places.index(i) for i in own], "all types": list(range(options.test_all))}

    def methods(self, how: str, batch: Samples) -> Method | None:
        """What a batch is pruned by."""
        return to_evidence(batch, self.layer) if how == "boxes" else self.modules.get(how)

    def hits(self, asker: Asker, how: str, name: str) -> list[int]:
        """Which answers are right."""
        return correct(asker, self.samples, self.options.batch, lambda batch: self.methods(how, batch), name)


def inputs_of(kind: str) -> tuple[str, ...]:
    """What a model of a kind of rollout is tested on: what it was trained on, what it is used with, the whole image."""
    return tuple(dict.fromkeys((kind, "background", "none")))


def measure(options: argparse.Namespace, report: dict[str, Any], test: Test, kind: str, seed: int | None) -> None:
    """Train one model if need be, and ask it what was not asked yet. Without a seed: the base."""
    name = "base" if seed is None else f"{kind}, seed {seed}"
    if seed is not None:
        report["runs"][name] = train(options, kind, seed)
    own = report["hits"].setdefault(name, {})
    missing = [how for how in (KINDS if seed is None else inputs_of(kind)) if how not in own]
    if not missing:
        return
    asker = Asker.load(options.model, 8)
    if seed is not None:
        asker = replace(asker, model=merged(asker.model, options.out / f"{kind}-{seed}").eval())
    for how in missing:
        own[how] = test.hits(asker, how, f"{name}, {how}")
        print(name, how, f"{sum(own[how]) / len(own[how]):.1%}", flush=True)
        write_text(options.json, json.dumps(report))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=zoo.DEFAULT)
    parser.add_argument("--module", default=str(Path(zoo.resolve(zoo.DEFAULT)) / "glimpse"))
    parser.add_argument("--max-keep", type=float, default=0.04, help="of the module, with a background")
    parser.add_argument("--background", type=float, default=0.06)
    parser.add_argument("--split", default="hard", choices=scenes.SPLITS)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--types", nargs="+", default=["relational", "count", "count_all"], choices=scenes.TYPES)
    parser.add_argument("--train", type=int, default=480, help=f"questions, from sample {HELD_OUT} on, to screen")
    parser.add_argument("--screen", type=int, default=8, help="samples of each")
    parser.add_argument("--test", type=int, default=165, help="held-out questions of these types")
    parser.add_argument("--test-all", type=int, default=90, help="held-out questions of all types")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=8, help="groups per step")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--control-seeds", type=int, nargs="+", default=[0], help="of the kind `none`")
    parser.add_argument("--batch", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("runs/plus-rollouts"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/plus-rollouts.json"))
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    names = ["split", "types", "max_keep", "background", "train", "screen", "test", "test_all", "steps", "prompts"]
    names += ["group", "rate", "beta"]
    model = Asker.load(options.model, 8).model
    about = {name: getattr(options, name) for name in names} | {"weights": fingerprint(model)}
    about["module"] = fingerprint(load_module(options.module))
    claim(options.out, about)
    test = Test(options)
    report = read_report(options.json, about, hits={}, runs={}) | {"facts": facts(model)}
    report["types"] = [sample.type for sample in test.samples]
    report |= {"layer": test.layer, "sets": test.sets}
    measure(options, report, test, "none", None)
    for kind in options.kinds:
        for seed in options.control_seeds if kind == "none" else options.seeds:
            measure(options, report, test, kind, seed)
    write_text(options.json, json.dumps(report))
    text = markdown(report, f"python {shlex.join(sys.argv)}")
    print(text)
    if options.markdown:
        write_text(options.markdown, text)


if __name__ == "__main__":
    main()
