"""The quickstart of docs/vllm.md, run as it is written: a server in processes of its own, and the client of OpenAI."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import openai
import pytest

from foveate.scenes import load
from tests.vllm.processes import free_port, started

PAGE = (Path(__file__).parents[2] / "docs" / "vllm.md").read_text()


def block(language: str, having: str) -> str:
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if having in text]
    assert len(found) == 1
    return str(found[0])


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
    (first, *_, most), (second, *_, least) = lines
    assert first == load("test")[0].answer
    assert second
    assert int(least) < int(most)
