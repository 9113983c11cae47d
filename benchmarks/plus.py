"""GlimpsePrune+ on the zoo model: held-out accuracy under pruning while it is fine-tuned on pruned inputs.

    OMP_NUM_THREADS=1 python benchmarks/plus.py --steps 40 --seeds 0 --markdown docs/plus_accuracy.md

For every seed and every kind of rollout (pruned and, for the comparison of costs, unpruned) `foveate train plus` runs
in a process of its own; each of its checkpoints then answers questions that were not trained on, pruned by the same
glimpse module. Runs that are there already are not repeated. Training and test are disjoint parts of one split.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.progress import track

from foveate import scenes, zoo
from foveate.bench.environment import facts
from foveate.evals.batches import build_batch
from foveate.evals.runner import Subject, answer, fingerprint
from foveate.loading import load
from foveate.methods import GlimpsePrune


def train(options: argparse.Namespace, prune: str, seed: int, out: Path, steps: int) -> dict[str, float]:
    """One run of `foveate train plus` and what it took."""
    note = out / "cost.json"
    if note.exists():
        found: dict[str, float] = json.loads(note.read_text())
        return found
    code = "from foveate.cli import main; main()"
    command = [sys.executable, "-c", code, "train", "plus", "--model", options.model, "--out", str(out)]
    command += ["--data", f"scenes:{options.split}", "--limit", str(options.train), "--module", options.module]
    command += ["--prune", prune]
    values = {
        "max_steps": steps, "save_steps": options.every, "save_total_limit": 100, "seed": seed, "beta": options.beta,
        "gradient_accumulation_steps": options.prompts, "learning_rate": options.rate, "max_completion_length": 8,
        "per_device_train_batch_size": options.group, "num_generations": options.group,
        "gradient_checkpointing": False, "disable_tqdm": True,
    }  # fmt: skip
    for name, value in values.items():
        command += ["--set", f"{name}={value}"]
    started = time.perf_counter()
    subprocess.run([*command, *(["--resume"] if out.exists() else [])], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    log = [entry for entry in json.loads((out / "training.json").read_text())["log"] if "step_time" in entry]
    cost = {
        "seconds": seconds,
        "step_seconds": sum(entry["step_time"] for entry in log[1:]) / max(1, len(log) - 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "kept_share": sum(entry["kept_share"] for entry in log) / len(log),
        "tokens": log[-1]["num_tokens"],
    }
    note.write_text(json.dumps(cost))
    return cost


class Test:
    """Questions that were not trained on, asked of the base model with or without an adapter."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model, processor = load(options.model)
        self.subject, self.module = Subject(self.model, processor, 8), GlimpsePrune(options.module)
        samples = scenes.load(options.split, options.test, options.train)
        self.batches = [samples[i : i + options.batch] for i in range(0, len(samples), options.batch)]

    def accuracy(self, adapter: Path | None, pruned: bool, name: str) -> dict[str, float]:
        """Share of right answers and of visual tokens kept."""
        hits, kept, total = [], 0, 0
        wrapped = None
        if adapter is not None:
            from peft import PeftModel

            wrapped = PeftModel.from_pretrained(self.model, str(adapter)).eval()
        for batch in track(self.batches, description=name):
            inputs = build_batch(self.model, self.subject.processor, [(s.images, s.question) for s in batch])
            texts, trace = answer(self.subject, inputs, self.module if pruned else None)
            hits += [float(text == s.answer) for text, s in zip(texts, batch, strict=True)]
            alive = [g.alive_at(trace.layers) for g in trace.groups]
            total += sum(len(g.columns) for g in trace.groups)
            kept += sum(len(g.columns if a is None else a) for g, a in zip(trace.groups, alive, strict=True))
        if wrapped is not None:
            self.model = wrapped.unload()
        return {"accuracy": sum(hits) / len(hits), "kept": kept / total}


def curve(options: argparse.Namespace, report: dict[str, Any], test: Test, prune: str, seed: int) -> None:
    out = options.out / f"{prune}-{seed}"
    steps = options.steps if prune != "none" else options.cost_steps
    report["costs"][f"{prune}, seed {seed}"] = train(options, prune, seed, out, steps)
    found = sorted(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in found if prune != "none" else []:
        step, pruned_only = int(path.name.split("-")[1]), path != found[-1]
        for pruned in (True,) if pruned_only else (True, False):
            name = f"{prune} rollouts, seed {seed}, step {step}, {'pruned' if pruned else 'unpruned'}"
            if name not in report["accuracy"]:
                report["accuracy"][name] = test.accuracy(path, pruned, name)
                save(options.json, report)


def save(path: Path, report: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(report, indent=1))
    part.replace(path)


def markdown(report: dict[str, Any], command: str) -> str:
    about = report["about"]
    lines = [
        "# GlimpsePrune+ on the zoo model", "", f"Written by `{command}`.", "",
        f"{about['test']} questions of `scenes:{about['split']}`; its first {about['train']} were trained on. Exact "
        "match, greedy.", "",
        "| model | input | accuracy | visual tokens kept |", "|---|---|---|---|",
    ]  # fmt: skip
    for name, row in report["accuracy"].items():
        head, _, how = name.rpartition(", ")
        lines.append(f"| {head} | {how} | {row['accuracy']:.1%} | {row['kept']:.1%} |")
    lines += ["", "| run | seconds per step | peak memory of the process | kept in rollouts |", "|---|---|---|---|"]
    for name, cost in report["costs"].items():
        lines.append(f"| {name} | {cost['step_seconds']:.1f} | {cost['peak_mib']:.0f} MiB | {cost['kept_share']:.1%} |")
    lines += ["", f"Settings: `{json.dumps(report['about'])}`", "", f"Machine: `{json.dumps(report['facts'])}`", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=zoo.DEFAULT)
    parser.add_argument("--module", default=str(Path(zoo.resolve(zoo.DEFAULT)) / "glimpse"))
    parser.add_argument("--split", default="hard")
    parser.add_argument("--train", type=int, default=700, help="rows of the split to train on")
    parser.add_argument("--test", type=int, default=270, help="rows after them to test on")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--cost-steps", type=int, default=4, help="steps of the unpruned run, for its cost")
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints")
    parser.add_argument("--prompts", type=int, default=8, help="groups per step")
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--beta", type=float, default=0.04)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--batch", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("runs/plus"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/plus.json"))
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    test = Test(options)
    names = ("split", "train", "test", "prompts", "group", "rate", "beta")
    about = {name: getattr(options, name) for name in names} | {"weights": fingerprint(test.model)}
    report: dict[str, Any] = {"about": about, "accuracy": {}, "costs": {}}
    if options.json.is_file() and json.loads(options.json.read_text())["about"] == about:
        report = json.loads(options.json.read_text())
    report["facts"] = facts(test.model)
    for pruned in (False, True):
        name = f"base, {'pruned' if pruned else 'unpruned'}"
        if name not in report["accuracy"]:
            report["accuracy"][name] = test.accuracy(None, pruned, name)
    for seed in options.seeds:
        curve(options, report, test, "glimpse", seed)
    curve(options, report, test, "none", options.seeds[0])
    save(options.json, report)
    text = markdown(report, f"python {shlex.join(sys.argv)}")
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
