"""The quickstart of docs/vllm.md, run as it is written: a server in processes of its own, and the client of OpenAI."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest

from foveate import zoo
from foveate.scenes import load
from tests.vllm.processes import free_port, started

PAGE = (Path(__file__).parents[2] / "docs" / "vllm.md").read_text()


def block(language: str, having: str) -> str:
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if having in text]
    assert len(found) == 1
    return str(found[0])


HOSTILE = (
    '{"foveate_keep": NaN}', '{"foveate_keep": Infinity}', '{"foveate_keep": 1e400}', '{"foveate_keep": 0}',
    f'{{"foveate_keep": 1{"0" * 400}}}', '{"foveate_keep": "0.5"}', '{"foveate_keep": [0.1, 0.5]}',
    '{"foveate_keep": true}', '{"foveate_keep": {}}', '{"foveate_keep": 0.5, "foveate_salt": "x"}', '{"": 1}',
    '{"images_kwargs": {"foveate_keep": 0.5}}', '{"foveate": {"keep": 0.5}}', "[]", '"foveate_keep"', "3",
)  # fmt: skip
"""JSON of `mm_processor_kwargs`, each of which is refused."""


def post(address: str, messages: object, own: str) -> tuple[int, str]:
    """Status and text of a reply; the client of OpenAI cannot write such JSON."""
    head = json.dumps({"model": "scenes", "messages": messages, "max_tokens": 2})[:-1]
    body = f'{head}, "mm_processor_kwargs": {own}}}'.encode()
    asked = urllib.request.Request(f"{address}/v1/chat/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=120) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_refused_server_ends_and_says_why() -> None:
    """At start, in the words of this library."""
    override = json.dumps({"foveate": {"method": "vitcop", "keep": 0.1}})
    command = [f"{Path(sys.executable).parent}/vllm", "serve", str(zoo.path("scenes-qwen2_5_vl"))]
    done = subprocess.run([*command, "--hf-overrides", override], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "vitcop selects inside the language model" in done.stdout + done.stderr
    assert "use a method that prunes before it" in done.stdout + done.stderr


def test_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    port = free_port()
    server = block("bash", "MODEL=").replace("vllm serve $MODEL", f"exec vllm serve $MODEL --port {port}")
    client = block("python", "openai").replace("localhost:8000", f"localhost:{port}")
    with started(["bash", "-c", server], port) as address:
        names: dict[str, object] = {}
        exec(compile(client, "docs/vllm.md", "exec"), names)  # the page's own words
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        api = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        for others in ({"size": {"longest_edge": 10**9}}, {"foveate_keep": 7}):
            with pytest.raises(openai.BadRequestError, match="foveate_keep"):
                api.chat.completions.create(
                    model="scenes",
                    messages=names["messages"],
                    extra_body={"mm_processor_kwargs": others},  # type: ignore[arg-type]
                )
        for own in HOSTILE:
            status, reply = post(address, names["messages"], own)
            assert 400 <= status < 500, (own, status, reply)
        for own in ('{"foveate_keep": 1e-300}', '{"foveate_keep": 1}', "null"):
            assert post(address, names["messages"], own)[0] == 200
    (first, *_, most), (second, *_, least) = lines
    assert first == load("test")[0].answer
    assert second
    assert int(least) < int(most)
