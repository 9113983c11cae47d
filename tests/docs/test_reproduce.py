"""Every command of docs/reproduce.md runs as it stands, on small checkpoints and data sets of the names that it has.

Names that the page gives are folders in the working directory: checkpoints in the published file layout, data sets in
the columns that lmms-eval reads. What is replaced is below, in `REPLACED`: an accelerator's options, and the one model
whose size would not fit. The shell runs the page's blocks, so that loops and variables are the shell's, but its
commands only write down how they were called; they run afterwards, in this process, which has imported torch already.

Commands of lmms-eval need the extra `foveate[lmms]` and are skipped without it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from tests.cli.run import foveate
from tests.docs import lmms_data, published
from tests.docs.blocks import blocks
from tests.docs.running import ROOT
from tests.docs.stand_ins import MACHINE, fill

PAGE = ROOT / "docs" / "reproduce.md"
REPLACED = MACHINE | {"--model llava-1.5-7b ": "--model mid-llava "}
SHIM = """#!/bin/sh
printf '%s\\037' {name} "$@" >> "$CALLS"; printf '\\036' >> "$CALLS"
"""
PROGRAMS = ("foveate", "lmms-eval", "hf", "pip")
pytestmark = pytest.mark.docs_long


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    fill(folder)
    shutil.rmtree(folder / "gp-7b")  # the page makes it
    published.write_llava(folder / published.LLAVA)
    published.write_qwen(folder / published.QWEN)
    published.write_glimpse(folder / "hub" / published.GLIMPSE)
    lmms_data.write_cot(folder / "cot")
    return folder


def calls(desk: Path) -> list[list[str]]:
    """The commands of all blocks of the page, with their arguments, as a shell calls them."""
    shims, noted = desk / "bin", desk / "calls"
    shims.mkdir()
    for name in PROGRAMS:
        (shims / name).write_text(SHIM.format(name=name))
        (shims / name).chmod(0o755)
    code = "\n".join(block.code for block in blocks(PAGE) if block.language == "bash")
    for name, other in REPLACED.items():
        code = code.replace(name, other)
    path = {"PATH": f"{shims}:/usr/bin:/bin", "CALLS": str(noted)}
    subprocess.run(["bash", "-euo", "pipefail", "-c", code], env=path, check=True)
    return [call.split("\037")[:-1] for call in noted.read_text().split("\036")[:-1]]


def run(call: list[str]) -> None:
    """A command that is not lmms-eval's."""
    program, *words = call
    if program == "hf":
        assert (words[0], words[2]) == ("download", "--local-dir")
        shutil.copytree(Path("hub") / words[1], words[3])
    elif program == "foveate":
        done = foveate(*words)
        assert done.returncode == 0, f"{' '.join(call)}\n{done.stdout}\n{done.stderr}"


def test_every_command_is_called(desk: Path) -> None:
    """The page and what is expected of it cannot part unnoticed."""
    found = [call[0] for call in calls(desk)]
    assert {name: found.count(name) for name in PROGRAMS} == {"foveate": 17, "lmms-eval": 7, "hf": 1, "pip": 1}


def test_our_commands_run(desk: Path) -> None:
    for call in calls(desk):
        run(call)
    found = [json.loads(file.read_text())["results"] for file in Path("runs/cot").glob("*/summary.json")]
    assert len(found) == len(lmms_data.COT)
    assert mean([rows[0]["score"] for rows in found]) > 0.7, "weights were lost on the way through the published layout"
    assert mean([row["left"] for rows in found for row in rows[1:]]) < 0.2, "the converted module does not prune"


# -- lmms-eval -------------------------------------------------------------------------------------------------


class Judge(BaseHTTPRequestHandler):
    """The model of OpenAI's that `mmbench_en_dev` asks which option an answer means."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"choices": [{"message": {"content": "A"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_API_URL", f"http://127.0.0.1:{server.server_port}/")
    yield
    server.shutdown()


def test_commands_of_lmms_eval_run(desk: Path, judge: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in a process of its own: the tool keeps what it was told last."""
    pytest.importorskip("lmms_eval.evaluator", reason="needs the extra `lmms`", exc_type=Exception)
    lmms_data.write_sets(desk)
    ours = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = os.environ | {
        "PYTHONPATH": ours, "HF_HOME": str(desk / "cache"), "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    wanted = calls(desk)
    for call in wanted:
        if call[0] in ("hf", "foveate") and call[1] in ("download", "convert"):
            run(call)
    for program, *words in wanted:
        if program != "lmms-eval":
            continue
        done = subprocess.run(
            [sys.executable, "-m", "lmms_eval", *words], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        tasks = words[words.index("--tasks") + 1].split(",")
        assert len(tasks) > 9
        assert all(re.search(rf"^\|\s*{task}\s*\|", done.stdout, re.MULTILINE) for task in tasks), done.stdout
