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

COMMANDS = {
    "eval": ["eval"],
    "batch": ["batch", "table.jsonl", "--out", "out"],
    "page": ["page"],
    "serve": ["serve"],
    "train": ["train", "glimpse", "--model", "foveate/scenes-llava", "--data", "scenes", "--out", "out"],
    "video": ["ask", "film.mp4", "What?"],
}
"""By the extra that each lacks."""

pytestmark = pytest.mark.skipif(not PYTHON, reason="run by `make bare`")


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(Path(PYTHON).absolute()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_prune_needs_no_extra() -> None:
    done = python("-c", PRUNES)
    assert done.returncode == 0, done.stderr
    assert 0.08 < float(done.stdout) < 0.13


@pytest.mark.parametrize("extra", list(COMMANDS))
def test_a_command_names_the_extra_that_it_lacks(extra: str, tmp_path: Path) -> None:
    """Where not even the parser of arguments is there (newer transformers bring it), that is what is named."""
    (tmp_path / "film.mp4").write_bytes(b"no film")
    (tmp_path / "table.jsonl").write_text('{"image": "a.png"}\n')
    done = python("-m", "foveate", *COMMANDS[extra], cwd=tmp_path)
    bare = python("-c", "import typer, rich").returncode != 0
    assert done.returncode == 1
    assert f"pip install 'foveate[{'cli' if bare else extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
