"""Accuracy of every method on the built-in scenes, by default and as published, against unpruned, Random, Downsample.

    python benchmarks/accuracy.py --out runs/accuracy --markdown docs/methods_accuracy.md
    python benchmarks/accuracy.py --out runs/accuracy --first 45    # how long the whole of it would take
    python benchmarks/accuracy.py --out runs/accuracy --study switches --keeps 1/9 --markdown docs/switches.md
    python benchmarks/accuracy.py --out runs/accuracy --study vitcop --keeps 1/3 1/9 --markdown docs/vitcop_accuracy.md
    python benchmarks/accuracy.py --out runs/accuracy --study stages --keeps 1/3 1/9 --splits test \
        --markdown docs/vitcop_stages.md
    python benchmarks/accuracy.py --out runs/accuracy --study video --models foveate/scenes-qwen2_5_vl-wide \
        --splits video --keeps 1/3 1/9 --markdown docs/video_accuracy.md
    python benchmarks/accuracy.py --out runs/accuracy --study wide --models foveate/scenes-qwen2_5_vl-wide \
        --splits large document dense --keeps 1/9 1/20 --markdown docs/wide_accuracy.md

Greedy answers, exact match; questions in left-padded batches of one image size. `keep` is the average number of visual
tokens per decoder layer over the unpruned number, alike for every method; a budget that a method cannot reach on a
model is left out and said so. Every part (a model on a split) has a folder of answers under `--out`: a run that was
stopped, however, continues from there, and answers that another study needs as well are not computed again. One part a
process, one thread each.

An answer takes 0.10 to 0.15 CPU seconds from scenes-llava and 0.07 from scenes-qwen2_5_vl, so that all methods,
budgets, models and splits at 270 questions each (121,000 answers) take about 1.7 hours on two cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from itertools import groupby
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
from accuracy_page import markdown
from accuracy_settings import KEEPS, Measured, measured, methods, stages, switches, video, vitcop, wide

from foveate import scenes, zoo
from foveate.data.rows import Row, Rows
from foveate.data.videos import Clip, FrameSampling
from foveate.evals import questions, runner
from foveate.evals.store import Store
from foveate.evals.summary import Answers, collect
from foveate.families import adapt
from foveate.files.atomic import write_text
from foveate.files.environment import facts
from foveate.inference.answer import Asker
from foveate.scenes import shares

MODELS = ["foveate/scenes-llava", "foveate/scenes-qwen2_5_vl"]
BATCH = 16
CHUNK = 45
"""Questions that all settings answer before the next ones come: five of every type. A page has whole chunks only."""
STUDIES = {"methods": methods, "switches": switches, "vitcop": vitcop, "stages": stages, "video": video, "wide": wide}


def measure(options: argparse.Namespace, model: str, split: str) -> dict[str, Any]:
    """Answer what is missing of a part, and report all of it."""
    torch.set_num_threads(1)
    asker = Asker.load(model, 8)
    info = adapt(asker.model).info
    asked = STUDIES[options.study](info, options.keeps, options.seeds)
    settings, refused = measured((one for one in asked if one[0] in (options.kinds or [one[0]])), info)
    rows = questions.load(f"scenes:{split}", options.n)
    folder = options.out / f"{model.rpartition('/')[2]}-{split}"
    with Store(folder / "results.jsonl", runner.identity(model, asker, rows, rows.prompt)) as store:
        if not options.page:
            wanted = rows[: options.first] if options.first else rows
            answer(asker, wanted, settings, store, folder / "times.jsonl", f"{model} {split}")
        ids = complete(rows, settings, store)
        keys = [(setting.describe(), setting.name) for setting in settings]
        answers = collect(store, keys, ids, "exact_match") if ids else []
    return {
        "run": store.identity,
        "shares": asdict(shares(scenes.load(split, len(ids)))),
        "facts": facts(asker.model),
        "n": len(ids),
        "wanted": len(rows),
        "refused": refused,
        "seconds_per_answer": seconds_per_answer(folder / "times.jsonl"),
        "settings": [
            {
                "kind": setting.kind,
                "mode": setting.mode,
                "keep": setting.keep,
                "kept": kept(found, answers[0]),
                "scores": [int(score) for score in found.scores],
            }
            for setting, found in zip(settings, answers, strict=bool(ids))
        ],
    }


def kept(found: Answers, unpruned: Answers) -> float:
    """Visual tokens alive on average over decoder layers, over those that the whole prompt has."""
    pairs = zip(found.records, unpruned.records, strict=True)
    return sum(one["kept_tokens"] / whole["visual_tokens"] for one, whole in pairs) / len(found.records)


def end_with_parent() -> None:
    """Let no worker outlive a run that was killed: it would hold the answers that the next run continues."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a worker"

    def wait_for_its_end() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait_for_its_end, daemon=True).start()


def answer(asker: Asker, rows: Rows, settings: list[Measured], store: Store, times: Path, name: str) -> None:
    """All answers to `rows`; what is stored already is not computed again."""
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        if all((setting.describe(), sample) in store for setting in settings for sample in some.ids):
            continue
        for group in by_size(some):
            for frames, alike in by_frames(settings):
                begin = time.process_time()
                shown = [with_frames(row, frames) for row in group]
                done = runner.run(asker, Rows.of(shown, rows.name), alike, store, BATCH, warm_up=False)
                if done.computed:
                    with times.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"answers": done.computed, "cpu_s": time.process_time() - begin}) + "\n")
        left = len(settings) * (len(rows) - start - len(some)) * seconds_per_answer(times)
        print(f"{name}: {start + len(some)} of {len(rows)} questions, {left / 60:.0f} minutes left", flush=True)


def by_size(rows: Rows) -> Iterator[list[Row]]:
    """Questions about images of one size each, so that no batch is mostly padding."""
    for _, group in groupby(sorted(rows, key=lambda row: row.sizes), key=lambda row: row.sizes):
        yield list(group)


def by_frames(settings: list[Measured]) -> Iterator[tuple[int, list[Measured]]]:
    """Settings that are shown the same frames."""
    for frames, alike in groupby(sorted(settings, key=lambda one: one.frames), key=lambda one: one.frames):
        yield frames, list(alike)


def with_frames(row: Row, frames: int) -> Row:
    """`row` with so many evenly spaced frames of its videos; 0: all."""
    return replace(row, videos=tuple(fewer(clip, frames) for clip in row.videos)) if frames else row


def fewer(clip: Clip, frames: int) -> Clip:
    taken = FrameSampling(frames=frames)(len(clip), clip.fps or 1.0)
    return replace(clip, frames=clip.frames[taken], indices=tuple(clip.indices[number] for number in taken))


def complete(rows: Rows, settings: list[Measured], store: Store) -> list[str]:
    """Questions of the chunks that every setting has answered: the sizes of their images are as in the whole split."""
    found: list[str] = []
    keys = [setting.describe() for setting in settings]
    for start in range(0, len(rows), CHUNK):
        ids = rows.ids[start : start + CHUNK]
        if all((key, sample) in store for key in keys for sample in ids):
            found += ids
    return found


def seconds_per_answer(times: Path) -> float:
    """CPU seconds that an answer took, all runs of a part together; rendering and the model's loading are in no run."""
    if not times.is_file():
        return 0.0
    lines = [json.loads(line) for line in times.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return sum(line["cpu_s"] for line in lines) / max(1, sum(line["answers"] for line in lines))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the answers")
    parser.add_argument("--study", choices=list(STUDIES), default="methods")
    parser.add_argument("--models", nargs="*", default=MODELS, choices=zoo.names())
    parser.add_argument("--splits", nargs="*", default=["test", "val"])
    parser.add_argument("--n", type=int, default=270, help=f"questions of each split; best a multiple of {CHUNK}")
    parser.add_argument("--first", type=int, help="answer so many of them, and say how long all would take")
    parser.add_argument("--keeps", nargs="*", choices=list(KEEPS), default=list(KEEPS))
    parser.add_argument("--kinds", nargs="*", help="only these methods")
    parser.add_argument("--seeds", type=int, default=3, help="subsets that Random is averaged over")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parts at the same time")
    parser.add_argument("--page", action="store_true", help="answer nothing, write the page from what is there")
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    parts = [(model, split) for model in options.models for split in options.splits]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(options.jobs, len(parts)), spawn, initializer=end_with_parent) as pool:
        reports = [found.result() for found in [pool.submit(measure, options, *part) for part in parts]]
    write_text(options.out / f"{options.study}.json", json.dumps(reports) + "\n")
    seconds = sum(r["seconds_per_answer"] * (len(r["settings"]) or 1) * r["wanted"] for r in reports)
    print(f"all {options.n} questions of each part: {seconds / 3600 / min(options.jobs, len(parts)):.1f} hours")
    if options.markdown:
        command = shlex.join(word for word in sys.argv if word != "--page")
        write_text(options.markdown, markdown(reports, options.study, f"python {command}"))


if __name__ == "__main__":
    main()
