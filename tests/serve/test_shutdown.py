"""The command itself: it starts, says what is wrong, and ends without losing what it accepted."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.cli.run import foveate
from tests.serve.crowd import ends_under_load
from tests.serve.live import body, scenes, wait_until


@contextmanager
def command(*more: str, seconds: float = 120) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = "import sys; from foveate.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", run, "serve", "--port", str(port), "--device", "cpu", "--keep", "1/3", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    address = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        try:
            return httpx2.get(f"{address}/health").status_code == 200
        except httpx2.HTTPError:
            return False

    try:
        wait_until(ready, seconds)
        yield address, process
    finally:
        process.kill()
        process.wait()


def test_sigterm_under_load_loses_no_accepted_request() -> None:
    with command("--max-rows", "2", "--max-queue", "30") as (address, process):
        replies: list[httpx2.Response] = []
        sent = [
            body([image], question, max_tokens=40, stream=n % 2 == 0) for n, (image, question) in enumerate(scenes())
        ]

        def ask(content: dict) -> None:
            replies.append(httpx2.post(f"{address}/v1/chat/completions", json=content, timeout=300))

        threads = [threading.Thread(target=ask, args=(content,)) for content in sent]
        for thread in threads:
            thread.start()

        def inside() -> float:
            done = len(replies)  # before the others are counted, so that none is counted twice
            page = httpx2.get(f"{address}/metrics").text
            return done + sum(float(n) for n in re.findall(r"^foveate_(?:rows|waiting) (\S+)", page, re.MULTILINE))

        wait_until(lambda: inside() >= len(sent), 120)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(300)
        assert [reply.status_code for reply in replies] == [200] * len(sent)
        for reply in replies:
            assert '"finish_reason": "' in reply.text or '"finish_reason":"' in reply.text
        output, _ = process.communicate(timeout=120)
        assert process.returncode in (0, -signal.SIGTERM)
        assert "Traceback" not in output
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{address}/health")


def test_sigterm_while_more_come_cuts_nothing() -> None:
    with command("--max-rows", "2", "--max-queue", "30", "--allow-method", "visionzip") as (address, process):
        met = asyncio.run(ends_under_load(address, 12, lambda: process.send_signal(signal.SIGTERM)))
        assert not met.lost
        assert met.refused == {"no connection"}
        output, _ = process.communicate(timeout=120)
        assert process.returncode in (0, -signal.SIGTERM)
        assert "Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--api-key-file"),
        (["--api-key-file", "/nowhere"], "cannot be read"),
        (["--kv-memory", "lots"], "such as 4GiB"),
        (["--keep-range", "3"], "LOW:HIGH"),
        (["--keep-range", "0.9:0.1"], "LOW <= HIGH"),
        (["--image-folder", "/nowhere"], "no such folder"),
        (["--method", "magic"], "no method 'magic'"),
        (["--allow-method", "magic"], "no method 'magic'"),
        (["--method", "fastv", "--keep", "0.01"], "cannot keep 0.01"),
    ],
)
def test_mistakes(arguments: list[str], said: str) -> None:
    done = foveate("serve", *arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--time-limit", "--patience", "--max-body"])
def test_no_limit_is_no_number(option: str) -> None:
    done = foveate("serve", option, "inf")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_key_file_is_not_repeated(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("very secret\n")
    done = foveate("serve", "--api-key-file", file)
    assert "key 1" in done.stderr
    assert "very" not in done.stderr + done.stdout
    file.write_text("# nothing\n")
    assert "holds no key" in foveate("serve", "--api-key-file", file).stderr
