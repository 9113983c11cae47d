"""The wheel without extras: `make bare`, which names the interpreter of an environment that holds it (`PYTHON`)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

PYTHON = os.environ.get("PYTHON", "")

PRUNES = """
import torch
import foveate
from foveate import scenes, zoo

sample = scenes.load("test", 1)[0]
model, processor = foveate.load(zoo.DEFAULT)
from foveate.inference.batches import build_batch
inputs = build_batch(model, processor, [(sample.images, sample.question)])
with foveate.prune(model, "vitcop", keep=1 / 9) as trace, torch.inference_mode():
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
print(round(trace.keep_ratio, 2))
"""

COMMANDS = """
import sys
import foveate.files.outputs as outputs
from foveate.errors import MissingExtraError
for extra, package in {extras!r}:
    try:
        outputs.check_packages("it", extra, package)
    except MissingExtraError as error:
        print(error)
"""

EXTRAS = [
    ("cli", "typer"), ("eval", "matplotlib"), ("batch", "pyarrow"), ("video", "av"), ("page", "gradio"),
    ("train", "accelerate"), ("serve", "fastapi"),
]  # fmt: skip

pytestmark = pytest.mark.skipif(not PYTHON, reason="run by `make bare`")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(Path(PYTHON).absolute()), *arguments], capture_output=True, text=True, check=False)


def test_prune_needs_no_extra() -> None:
    done = python("-c", PRUNES)
    assert done.returncode == 0, done.stderr
    assert 0.08 < float(done.stdout) < 0.13


def test_the_command_says_what_it_lacks() -> None:
    done = python("-m", "foveate", "ask", "a.png", "What?")
    assert done.returncode == 1
    assert "pip install 'foveate[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_extra_is_named() -> None:
    done = python("-c", COMMANDS.format(extras=EXTRAS))
    assert done.returncode == 0, done.stderr
    for extra, package in EXTRAS:
        assert f"it needs {package}: pip install 'foveate[{extra}]'." in done.stdout
