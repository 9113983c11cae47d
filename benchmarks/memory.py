"""Peak memory of stock code and of methods on one prompt of many visual tokens: a fresh process each.

    python benchmarks/memory.py --model mid-llava --tokens 16384 --methods vitcop visionzip fastv

Prints, per setting, the most resident memory during `generate` (weights and libraries included) and what that is above
stock code, which runs without foveate.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import torch

from foveate.bench.memory import _forget_peak, _peak
from foveate.families import presets, prompts
from foveate.inference.answer import generate
from foveate.methods import make

GIB = 1024**3


def weigh(task: dict[str, Any]) -> int:
    """Peak bytes of one setting, in this process."""
    torch.set_num_threads(1)
    model = presets.build(task["model"], task["tokens"])
    inputs = prompts.random_prompt(model, task["tokens"])
    _forget_peak()
    exactly = {"max_new_tokens": 2, "min_new_tokens": 2}
    with torch.inference_mode():
        if task["method"] == "stock":
            model.generate(**inputs, do_sample=False, **exactly)
        else:
            generate(model, inputs, make(task["method"], keep=task["keep"]), **exactly)
    return _peak()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mid-llava", choices=list(presets.PRESETS))
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--methods", nargs="+", default=["vitcop", "visionzip", "fastv"])
    parser.add_argument("--keep", type=float, default=1 / 9)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(weigh(json.loads(given.one)))
        return
    stock = 0
    for method in ("stock", *given.methods):
        task = {"model": given.model, "tokens": given.tokens, "keep": given.keep, "method": method}
        command = [sys.executable, __file__, "--one", json.dumps(task)]
        peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        stock = stock or peak
        print(f"{method:12} {peak / GIB:.2f} GiB, {(peak - stock) / GIB:+.2f} GiB over stock", flush=True)


if __name__ == "__main__":
    main()
