"""Measure everything that docs/results.md shows, and write the page.

    python benchmarks/measure.py              # all of it, about a quarter of an hour on two cores
    python benchmarks/measure.py --only mid-llava scenes-eval
    python benchmarks/measure.py --page       # the page from the JSON files that are there

Every measurement is one `foveate` command; its report goes to benchmarks/results/NAME.json and names the command.
An evaluation that was stopped continues where it stopped.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from foveate.bench.page import write_page

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "results.md"

BENCH = "--method vitcop --method downsample --keep 1/3,1/9 --new-tokens 16"
COMMANDS = {
    "mid-llava": f"foveate bench --model mid-llava {BENCH} --repeats 5",
    "mid-qwen2.5-vl": f"foveate bench --model mid-qwen2.5-vl {BENCH} --repeats 5",
    "mid-qwen2.5-vl-2304": "foveate bench --model mid-qwen2.5-vl --tokens 2304 --method vitcop --keep 1/9 "
    "--new-tokens 16 --repeats 3 --warmup 1",
    "scenes-bench": f"foveate bench --tokens 144 {BENCH} --repeats 9",
    "scenes-eval": "foveate eval --data scenes:test --method vitcop --method random --method downsample "
    "--keep 1/2,1/3,2/9,1/9 --limit 270 --batch 8 --out runs/scenes-test",
    "scenes-llava-eval": "foveate eval --model foveate/scenes-llava --data scenes:test --method vitcop --method random "
    "--method downsample --keep 1/3,2/9,1/9 --limit 270 --batch 8 --out runs/scenes-llava-test",
}


def measure(name: str) -> None:
    """Run one command; its report takes the place of the older one when it is complete."""
    command = shlex.split(COMMANDS[name])
    is_bench = command[1] == "bench"
    if is_bench:
        stem = os.path.relpath(RESULTS / name)  # the command goes into the report: no absolute paths
        command += ["--json", f"{stem}.json", "--plot", f"{stem}.png"]
    print(f"$ {shlex.join(command)}", flush=True)
    subprocess.run([sys.executable, "-c", "from foveate.cli import main; main()", *command[1:]], check=True)
    if not is_bench:
        out = Path(command[command.index("--out") + 1])
        shutil.copy(out / "summary.json", RESULTS / f"{name}.json")
        shutil.copy(out / "pareto.png", RESULTS / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for name in [] if arguments.page else arguments.only:
        measure(name)
    write_page(RESULTS, PAGE, [name for name in COMMANDS if (RESULTS / f"{name}.json").is_file()])
    print(PAGE)


if __name__ == "__main__":
    main()
