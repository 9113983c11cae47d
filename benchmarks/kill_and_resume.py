"""Kills training runs at random moments (SIGKILL), lets them go on, and compares the weights with those of a run that
nobody disturbed, bit by bit: the table in docs/glimpse.md and docs/plus.md."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load_file

from foveate.data.reading import read_rows
from foveate.data.rows import Rules
from foveate.training.base import ADAPTER
from foveate.training.checkpoints import last_checkpoint
from foveate.training.runs import SUMMARY

MODEL = "foveate/scenes-qwen2_5_vl"
ROWS = 48
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Kind:
    """A training command, without its output folder."""

    arguments: tuple[str, ...]
    weights: str

    def command(self, out: Path) -> list[str]:
        program = [sys.executable, "-c", "from foveate.cli import main; main()", "train"]
        return [*program, *self.arguments, "--out", str(out), "--resume"]


def _set(**values: object) -> tuple[str, ...]:
    return tuple(part for name, value in values.items() for part in ("--set", f"{name}={value}"))


def kinds(folder: Path) -> dict[str, Kind]:
    """Distillation on questions without answers, whose gates are drawn, and reinforcement learning."""
    common = {"disable_tqdm": True, "save_total_limit": 2}
    table = str(unlabelled(folder / "data"))
    glimpse = _set(
        per_device_train_batch_size=4,
        max_steps=30,
        save_steps=3,
        gradient_accumulation_steps=1,
        learning_rate=3e-3,
        **common,
    )
    plus = _set(max_steps=6, save_steps=1, gradient_accumulation_steps=1, max_completion_length=4, **common)
    rewarded = ("--prune", "glimpse", "--learn-threshold", "--reward", "anls=1", "--reward", "pruning_rate=1")
    module = Path(__file__).parents[1] / "src/foveate/zoo/scenes-qwen2_5_vl/glimpse"
    shared = ("--model", MODEL)
    fields = ("selected_layers=[4,5]", "reduce_layer=5", "le_layers=[0,1,2,3,4,5]")
    layers = tuple(part for one in fields for part in ("--module", one))
    return {
        "glimpse": Kind(
            ("glimpse", *shared, "--data", table, "--objective", "distill", *layers, *glimpse),
            "model.safetensors",
        ),
        "plus": Kind(
            ("plus", *shared, "--data", "scenes:train", "--limit", "24", "--module", str(module), *rewarded, *plus),
            ADAPTER,
        ),
    }


def unlabelled(folder: Path) -> Path:
    """Scenes as a table whose rows have no answers."""
    path = folder / "questions.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for row in read_rows("scenes:train", Rules(), ROWS):
            (image,) = row.load_images()
            image.save(folder / f"{row.number}.png")
            lines.append(json.dumps({"image": f"{row.number}.png", "question": row.question}) + "\n")
        path.write_text("".join(lines))
    return path


def state(out: Path, weights: str) -> str:
    """How far a run was when it was killed."""
    reached = last_checkpoint(out, weights) if out.exists() else None
    last = -1 if reached is None else _step(reached)
    unfinished = sorted(p.name for p in out.glob("checkpoint-*") if _step(p) > last)
    answers = len(list(out.glob("answers/part-*")))
    found = f"{answers} files of answers" if answers else "no answers"
    step = "no checkpoint" if reached is None else reached.name
    return f"{step}, {found}" + (f", unfinished: {', '.join(unfinished)}" if unfinished else "")


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def attempt(kind: Kind, out: Path, after: float | None) -> bool:
    """Start a run or let it go on; killed so many seconds later. Whether it came to its end."""
    log = out.with_suffix(".log").open("ab")
    process = subprocess.Popen(kind.command(out), env=ENVIRONMENT, stdout=log, stderr=log)
    try:
        code = process.wait(after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    assert code == 0, f"{out.with_suffix('.log')}: exit code {code}"
    return True


def same(one: Path, other: Path) -> bool:
    expected, actual = load_file(one), load_file(other)
    return expected.keys() == actual.keys() and all(
        expected[name].tobytes() == actual[name].tobytes() for name in expected
    )


def disturb(name: str, kind: Kind, folder: Path, kills: int, seed: int) -> None:
    """Runs that are killed `kills` times in all, each until it is done."""
    draw = random.Random(seed)
    whole = folder / f"{name}-whole"
    shutil.rmtree(whole, ignore_errors=True)
    start = time.monotonic()
    assert attempt(kind, whole, None)
    length = time.monotonic() - start
    print(f"{name}: undisturbed {length:.0f} s", flush=True)
    done = run = equal = 0
    while done < kills:
        run += 1
        out = folder / f"{name}-{run}"
        shutil.rmtree(out, ignore_errors=True)
        finished = False
        while not finished:
            after = draw.uniform(0.1, 1.0) * length if done < kills else None
            finished = attempt(kind, out, after)
            if not finished:
                done += 1
                print(f"{name}, run {run}, kill {done} after {after:.1f} s: {state(out, kind.weights)}", flush=True)
        assert (out / SUMMARY).exists()
        equal += (ok := same(whole / kind.weights, out / kind.weights))
        print(f"{name}, run {run}: {'equal to the bit' if ok else 'DIFFERENT'}", flush=True)
    print(f"{name}: {done} kills in {run} runs, {equal} of {run} equal to the bit", flush=True)
    assert equal == run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/kill_and_resume"))
    parser.add_argument("--kills", type=json.loads, default={"glimpse": 10, "plus": 5}, help="by kind, as JSON")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name, kind in kinds(given.folder).items():
        if given.kills.get(name):
            disturb(name, kind, given.folder, given.kills[name], given.seed)


if __name__ == "__main__":
    main()
