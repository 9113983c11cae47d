"""Runs the blocks of one page, as a reader would who pastes them one after the other."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.cli.run import foveate
from tests.docs.blocks import Block
from tests.docs.commands import check, commands
from tests.docs.stand_ins import PORTS, stand_in

ROOT = Path(__file__).parents[2]
INSTALLS = re.compile(r"^pip install .*$", re.MULTILINE)
SECONDS = 300
"""A server must listen within them, a shell block end within four times as many."""


class Reader(AbstractContextManager["Reader"]):
    """One namespace, one working directory (the current one), and the servers that the page has started."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.ports = {port: _free_port() for port in PORTS}
        self.servers: list[subprocess.Popen[str]] = []
        self.shims = Path("bin").absolute()
        self.shims.mkdir(exist_ok=True)
        shim = self.shims / "foveate"
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from foveate.cli import main; main()" "$@"\n')
        shim.chmod(0o755)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for server in self.servers:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(SECONDS)

    def run(self, block: Block) -> None:
        """Run a block; an exception or an exit status other than 0 fails the test."""
        code = stand_in(block.code, self.ports)
        if block.language == "python":
            exec(compile("\n" * block.line + code, str(block.page), "exec"), self.names)
        elif block.background:
            self._serve(code)
        elif all(line.startswith("foveate ") or check(line) for line in commands(code)):
            for line in commands(code):
                self._command(line)
        else:
            done = self._shell(INSTALLS.sub(":", code))
            out, _ = done.communicate(timeout=4 * SECONDS)
            assert done.returncode == 0, out

    def _command(self, line: str) -> None:
        """A command of ours in this process: to import torch again for each takes longer than what it does."""
        if line.startswith("foveate "):
            done = foveate(*shlex.split(line, comments=True)[1:])
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            print(done.stdout)

    def _serve(self, code: str) -> None:
        self.servers.append(self._shell(code))
        port = next(free for free in self.ports.values() if f"--port {free}" in code)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            assert self.servers[-1].poll() is None, f"{code}\n{self.servers[-1].communicate()[0]}"
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.2)
        raise AssertionError(f"{code}: nothing listens at {port}")

    def _shell(self, code: str) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(self.shims), str(Path(sys.executable).parent), os.environ["PATH"]])
        ours = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        return subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", code],
            env=os.environ | {"PATH": path, "PYTHONPATH": ours},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
