"""How the program starts and ends: what it imports, what it says by itself, and its exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from foveate.cli.methods import complete
from foveate.methods import registry
from foveate.version import __version__
from tests.cli.run import foveate


def start(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "foveate", *map(str, arguments)]
    return subprocess.run(command, env=os.environ | more, capture_output=True, text=True, timeout=300, check=False)


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['foveate', '--help']\n"
        "from foveate.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert "Exit codes" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_as_a_module() -> None:
    done = start("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"foveate {__version__}")


def test_exit_codes() -> None:
    assert foveate("methods").returncode == 0
    assert foveate("ask", "nowhere.png", "What?").returncode == 1
    for usage in (["ask", "a.png", "What?", "--nothing"], ["nothing"], ["ask"], ["serve", "--port", "many"]):
        assert foveate(*usage).returncode == 2


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c() -> None:
    # a shell's background jobs, and what they start, ignore it unless they ask for it
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}; from foveate.cli import main; main()", "chat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("/help\n")
    process.stdin.flush()
    assert process.stdout.readline().startswith("/image")
    process.send_signal(signal.SIGINT)  # it waits for the next line by now, or prints
    process.wait(60)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


def test_loading_is_quiet_unless_it_is_asked_for(tmp_path: Path) -> None:
    Image.new("RGB", (60, 60)).save(tmp_path / "a.png")
    asked = ["ask", tmp_path / "a.png", "What?", "--max-new-tokens", "2"]
    assert start(*asked).stderr == ""
    assert "Loading weights" in start("-v", *asked).stderr


def test_the_list_of_methods_fits_a_terminal() -> None:
    done = foveate("methods", columns=80)
    assert max(map(len, done.stdout.splitlines())) <= 80
    for name in registry():
        assert f"\n{name} " in done.stdout


@pytest.mark.parametrize("name", list(registry()))
def test_a_method_in_full(name: str) -> None:
    done = foveate("methods", name, columns=80)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stdout.startswith(name)
    for words in ("parameters\n", "positions=original", "source  ", "verified  ", "class  "):
        assert words in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    assert complete("vit") == ["vitcop", "vitcop_diverse"]
    shown = start(_FOVEATE_COMPLETE=f"source_{shell}")
    assert (shown.returncode, "_FOVEATE_COMPLETE=complete" in shown.stdout) == (0, True)


def test_the_shell_is_told_commands_and_methods() -> None:
    asked = {"_FOVEATE_COMPLETE": "complete_bash", "COMP_CWORD": "1", "COMP_WORDS": "foveate pr"}
    code = "import sys; sys.argv[0] = 'foveate'; from foveate.cli import main; main()"

    def told(**more: str) -> list[str]:
        env = os.environ | asked | more
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
        return done.stdout.split()

    assert told() == ["probe-depth"]
    assert told(COMP_CWORD="2", COMP_WORDS="foveate methods vitcop_") == ["vitcop_diverse"]
