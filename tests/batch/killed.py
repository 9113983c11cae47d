"""A batch that is killed and started again until it ends: `python -m tests.batch.killed SOURCE OUT KILLS SEED`.

Prints the number of kills that met a running batch. Children are forked, so that the model is loaded once.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from foveate.batch import job as jobs
from foveate.batch.job import BatchJob, run
from foveate.inference.answer import Asker
from foveate.specs.settings import one_setting
from foveate.zoo import DEFAULT


def job(source: Path, out: Path) -> BatchJob:
    return BatchJob(
        DEFAULT, source, out, "{question}", one_setting("vitcop", "1/5"), batch=4, part=5, max_new_tokens=6
    )  # fmt: skip


def _wait(out: Path, chance: random.Random) -> None:
    """A random moment, or the one in which a part is being written."""
    if chance.random() < 0.5:
        time.sleep(chance.uniform(0.01, 0.6))
        return
    end = time.monotonic() + 20
    while time.monotonic() < end and not any(out.glob(".part-*")):
        time.sleep(0.0002)


def main(source: Path, out: Path, kills: int, seed: int) -> int:
    torch.set_num_threads(1)
    chance, met, asker = random.Random(seed), 0, Asker.load(DEFAULT, 6, device="cpu")
    jobs.BatchJob.load = lambda self: asker  # type: ignore[method-assign]
    for left in range(kills, -1, -1):
        child = os.fork()
        if not child:
            run(job(source, out))
            os._exit(0)
        if left:
            _wait(out, chance)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        met += os.WIFSIGNALED(status)
        if not left and status:
            return 1
    print(met)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
