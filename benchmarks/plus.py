"""GlimpsePrune+ on the zoo model: held-out accuracy under pruning while it is fine-tuned on pruned inputs.

    OMP_NUM_THREADS=1 python benchmarks/plus.py --seeds 0 1 --markdown docs/plus_accuracy.md
    OMP_NUM_THREADS=1 python benchmarks/plus.py --prune glimpse --steps 24 --every 8 --out runs/plus-glimpse \
      --json benchmarks/results/plus-glimpse.json --markdown docs/plus_glimpse.md

Everything outside the evidence boxes is removed after an early layer. That costs the zoo model its counting
(`count_all`), so it is fine-tuned on such questions and tested on them and on all types. `--prune glimpse` lets the
shipped module decide instead, after its own layer, with `--max-keep` and `--background` of its decision. Splits that
have no second one of their kind train on samples from 500 on and test on those before. For every seed and kind of
rollout (pruned, and `none` for the comparison of costs) `foveate train plus` runs in a process of its own; each of its
checkpoints then answers the test questions. What is there already is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from plus_page import HELD_OUT, markdown, mean
from plus_runs import Samples, claim, correct, row, to_evidence, trainer_options, with_background
from resume import read_report

from foveate import scenes, zoo
from foveate.core.method import Method
from foveate.files.atomic import write_text
from foveate.files.environment import facts
from foveate.inference.answer import Asker
from foveate.inference.weights import fingerprint
from foveate.methods import GlimpsePrune


def table(options: argparse.Namespace) -> Path:
    """Training questions of the wanted types as a table with images."""
    folder = options.out / "data"
    path: Path = folder / "questions.jsonl"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[str] = []
    split, start = ("train", 0) if options.split == "test" else (options.split, HELD_OUT)
    while len(rows) < options.train:
        for sample in scenes.load(split, 50, start):
            if sample.type in options.types and len(rows) < options.train:
                rows.append(row(sample, folder, str(len(rows))))
        start += 50
    path.write_text("\n".join(rows) + "\n")
    return path


def module(options: argparse.Namespace) -> str:
    """The folder of the module, with the decision that was asked for."""
    if options.max_keep is None and not options.background:
        return str(options.module)
    folder = options.out.with_name(f"{options.out.name}-module")
    return str(with_background(options.module, folder, options.max_keep, options.background))


def train(options: argparse.Namespace, prune: str, seed: int, out: Path, steps: int) -> dict[str, float]:
    """One run of `foveate train plus` and what it took."""
    note = out / "cost.json"
    if note.exists():
        found: dict[str, float] = json.loads(note.read_text())
        return found
    code = "from foveate.cli import main; main()"
    command = [sys.executable, "-c", code, "train", "plus", "--model", options.model, "--out", str(out)]
    command += ["--data", str(table(options)), "--prune", prune]
    command += ["--module", module(options)] if prune == "glimpse" else ["--layer", str(options.layer)]
    command += trainer_options(options, max_steps=steps, save_steps=options.every, save_total_limit=100, seed=seed)
    started = time.perf_counter()
    process = subprocess.Popen([*command, *(["--resume"] if out.exists() else [])], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)  # its own peak memory, not that of all children so far
    if status:
        raise SystemExit(f"training in {out} stopped; the same command goes on from its last checkpoint")
    seconds = time.perf_counter() - started
    log = [entry for entry in json.loads((out / "training.json").read_text())["log"] if "step_time" in entry]
    cost = {
        "seconds": seconds,
        "step_seconds": sum(entry["step_time"] for entry in log[1:]) / max(1, len(log) - 1),
        "peak_mib": usage.ru_maxrss / 1024,
        "kept_share": sum(entry["kept_share"] for entry in log) / len(log),
        "tokens": log[-1]["num_tokens"],
    }
    note.write_text(json.dumps(cost))
    return cost


class Test:
    """Questions that were not trained on, asked of the base model with or without an adapter."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.asker, self.layer, self.batch = Asker.load(options.model, 8), options.layer, options.batch
        self.model = self.asker.model
        self.module = GlimpsePrune(module(options)) if options.prune == "glimpse" else None
        every = scenes.load(options.split, 1000 if options.split == "test" else HELD_OUT)
        wanted = [i for i in range(len(every)) if every[i].type in options.types][: options.test]
        self.sets = {
            "trained types": [every[i] for i in wanted],
            "all types": [every[i] for i in range(options.test_all)],
        }

    def hits(self, adapter: Path | None, pruned: bool, name: str) -> dict[str, list[int]]:
        """Which answers of each set are right."""
        wrapped = None
        if adapter is not None:
            from peft import PeftModel

            wrapped = PeftModel.from_pretrained(self.model, str(adapter)).eval()
        found = {kind: self._hits(samples, pruned, f"{name}, {kind}") for kind, samples in self.sets.items()}
        if wrapped is not None:
            self.model = wrapped.unload()
        return found

    def _hits(self, samples: Samples, pruned: bool, name: str) -> list[int]:
        def by(batch: Samples) -> Method | None:
            return (self.module or to_evidence(batch, self.layer)) if pruned else None

        return correct(self.asker, samples, self.batch, by, name)


def curve(options: argparse.Namespace, report: dict[str, Any], test: Test, prune: str, seed: int) -> None:
    out = options.out / f"{prune}-{seed}"
    steps = options.steps if prune != "none" else options.cost_steps
    report["costs"][f"{prune}, seed {seed}"] = train(options, prune, seed, out, steps)
    found = sorted(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in found if prune != "none" else []:
        for pruned in (True,) if path != found[-1] else (True, False):
            name = f"seed {seed}, step {path.name.split('-')[1]}, {'pruned' if pruned else 'unpruned'}"
            if name not in report["accuracy"]:
                report["accuracy"][name] = test.hits(path, pruned, name)
                write_text(options.json, json.dumps(report, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=zoo.DEFAULT)
    parser.add_argument("--types", nargs="+", default=["count_all"], choices=scenes.TYPES)
    parser.add_argument("--prune", default="boxes", choices=("boxes", "glimpse"))
    parser.add_argument("--module", default=str(Path(zoo.resolve(zoo.DEFAULT)) / "glimpse"))
    parser.add_argument("--max-keep", type=float, help="of the module's decision; default: the module's")
    parser.add_argument("--background", type=float, default=0.0, help="beside what the module keeps")
    parser.add_argument("--split", default="test", choices=scenes.SPLITS)
    parser.add_argument("--layer", type=int, default=2, help="prune after this layer (boxes)")
    parser.add_argument("--train", type=int, default=240, help="training questions")
    parser.add_argument("--test", type=int, default=111, help="held-out questions of the same types")
    parser.add_argument("--test-all", type=int, default=180, help="held-out questions of all types")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cost-steps", type=int, default=4, help="steps of the unpruned run, for its cost")
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--prompts", type=int, default=8, help="groups per step")
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--beta", type=float, default=0.04)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--batch", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("runs/plus"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/plus.json"))
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    test = Test(options)
    names = ["split", "max_keep", "background", "types", "prune", "layer", "train", "test", "test_all"]
    names += ["steps", "every", "prompts", "group", "rate", "beta"]
    about = {name: getattr(options, name) for name in names} | {"weights": fingerprint(test.model)}
    if test.module is not None:
        about["module"] = fingerprint(test.module.glimpse)
    claim(options.out, about)
    report = read_report(options.json, about, accuracy={}, costs={}) | {"facts": facts(test.model)}
    for pruned in (False, True):
        name = f"base, {'pruned' if pruned else 'unpruned'}"
        if name not in report["accuracy"]:
            report["accuracy"][name] = test.hits(None, pruned, name)
            print(name, {kind: f"{mean(hits):.1%}" for kind, hits in report["accuracy"][name].items()}, flush=True)
            write_text(options.json, json.dumps(report, indent=1))
    for seed in options.seeds:
        curve(options, report, test, options.prune, seed)
    curve(options, report, test, "none", options.seeds[0])
    write_text(options.json, json.dumps(report, indent=1))
    text = markdown(report, f"python {shlex.join(sys.argv)}")
    print(text)
    if options.markdown:
        write_text(options.markdown, text)


if __name__ == "__main__":
    main()
