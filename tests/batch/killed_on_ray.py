"""A batch on a Ray cluster whose driver or actor is killed, again and again:
`python -m tests.batch.killed_on_ray SOURCE OUT KILLS SEED`.

The cluster stays, as a real one would; drivers are started anew after each kill of theirs, actors by Ray. Prints how
many kills met a driver and how many an actor.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import ray

DRIVER = "import sys; from foveate.cli import main; sys.exit(main())"


def command(source: Path, out: Path, address: str) -> list[str]:
    """What `tests.batch.killed` runs, in smaller parts, on the cluster."""
    settings = ["--method", "vitcop", "--keep", "1/5", "--batch", "2", "--part", "2", "--max-new-tokens", "6"]
    placed = ["--device", "cpu", "--ray", "--address", address, "--cpus", "0.5"]
    return [sys.executable, "-c", DRIVER, "batch", str(source), "--out", str(out), *settings, *placed]


def actors() -> list[psutil.Process]:
    """Processes of Ray Data's actors on this machine."""
    named = psutil.process_iter(["cmdline"])
    return [one for one in named if one.info["cmdline"] and "MapWorker" in one.info["cmdline"][0]]


def wait(driver: subprocess.Popen[bytes], out: Path, chance: random.Random) -> None:
    """Until some more parts are there, and a random moment longer; or the driver has ended."""
    there = len(list(out.glob("part-*")))
    more, end = chance.randrange(3), time.monotonic() + 120
    while len(list(out.glob("part-*"))) < there + more and driver.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 1.0))


def main(source: Path, out: Path, kills: int, seed: int) -> int:
    chance, met = random.Random(seed), {"driver": 0, "actor": 0}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    run = command(source, out, ray.get_runtime_context().gcs_address)
    driver = subprocess.Popen(run)
    for _ in range(kills):
        wait(driver, out, chance)
        found = actors()
        if found and chance.random() < 0.5:
            chance.choice(found).kill()
            met["actor"] += 1
        else:
            driver.send_signal(signal.SIGKILL)
            met["driver"] += driver.wait() == -signal.SIGKILL
            driver = subprocess.Popen(run)
    code = driver.wait()
    if code:  # an actor that died too often ends the run; the same command goes on
        code = subprocess.run(run, check=False).returncode
    print(met["driver"], met["actor"])
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
