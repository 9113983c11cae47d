"""Text from models, users and files reaches the terminal as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from foveate.cli import bench as bench_command
from foveate.cli import eval as eval_command
from foveate.cli import tune as tune_command
from foveate.cli.show import add_row, harmless, make_progress, make_table, plain
from foveate.evals.tune import Verdict
from foveate.inference.answer import Asker
from tests.cli.run import foveate

HOSTILE = ["[/INST]", "[red]stop[/red]", ":smile:", "[link=x]y[/link]", "\\[bold]", "a\\", "[", "[/]", "<b>&amp;"]
LONG = "x" * 400 + "END"


def shown(thing: Any, width: int = 60) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(thing)
    return capture.get()


@pytest.mark.parametrize("text", HOSTILE)
def test_markup_and_emoji_codes_stay(text: str) -> None:
    table = make_table(["", text], text, text)
    add_row(table, "answer", plain(text, "bold"))
    printed = shown(table)
    assert printed.count(text) == 4  # header, title, caption, cell
    assert shown(plain(text)).strip() == text


def test_nothing_is_cut_off() -> None:
    table = make_table(["", "answer"])
    add_row(table, "answer", LONG)
    joined = "".join(character for character in shown(table) if character in "xEND")
    assert joined.count("x") == 400
    assert joined.endswith("END")


def test_a_terminal_obeys_nothing() -> None:
    assert harmless("\x1b[31mred\x07 \x9b2J") == "\\x1b[31mred\\x07 \\x9b2J"
    assert harmless("a\u202eb") == "a\\u202eb"
    fine = "Ä\n\té 日本語 \u200d👩‍👧 \u00a0x\u3000"
    assert harmless(fine) == fine


def test_progress_describes_in_plain_text() -> None:
    progress = make_progress(elapsed=True)
    progress.add_task("[/x] :smile: [red]")
    assert "[/x] :smile: [red]" in shown(progress.make_tasks_table(progress.tasks), 120)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model says; the test sets it."""
    text = [""]
    real = Asker.answer

    def answer(self: Asker, *args: Any, **options: Any) -> list[Any]:
        return [replace(found, text=text[0]) for found in real(self, *args, **(options | {"max_new_tokens": 1}))]

    monkeypatch.setattr(Asker, "answer", answer)
    return text


@pytest.mark.parametrize("text", [*HOSTILE, LONG])
def test_ask_shows_what_the_model_said(text: str, says: list[str], tmp_path: Path) -> None:
    says[0] = text
    Image.new("RGB", (60, 60)).save(tmp_path / "a.png")
    done = foveate("ask", tmp_path / "a.png", f"What is {text}?", columns=70)
    assert done.returncode == 0, done.stderr
    assert text.replace(" ", "") in "".join(done.stdout.split())


def test_demo_shows_question_and_answers(says: list[str], tmp_path: Path) -> None:
    says[0] = "[/INST] :smile: [red]"
    folder = tmp_path / "[/x]"
    folder.mkdir(parents=True)
    Image.new("RGB", (60, 60)).save(folder / "a.png")
    question = "[bold]What[/bold] :cat: [/INST]?"
    out = folder / "demo.png"
    done = foveate("demo", "--image", folder / "a.png", "--question", question, "--out", out, columns=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(says[0]) == 3
    for text in (question, f"on {folder / 'a.png'} (60 x 60)", str(out)):
        assert text in done.stdout


@pytest.mark.parametrize("text", HOSTILE)
def test_errors_show_what_the_user_wrote(text: str) -> None:
    done = foveate("ask", f"{text}.png", "What?")
    assert done.returncode == 1
    assert f"There is no image file at {text}.png." in done.stderr


def test_tables_of_names_from_outside() -> None:
    name = "module=[/x] :smile:"
    numbers: dict[str, Any] = {
        "score": 0.5,
        "retention": 0.5,
        "retention_low": 0.5,
        "kept": 0.5,
        "kept_tokens": 5,
        "prefill_ms": 5,
    }
    numbers |= {"vision_ms": 5, "ttft_ms": 10, "ttft_ratio": 0.5, "ttft_ratio_interval": (0.4, 0.6)}
    row = {"setting": name, "score_interval": (0.4, 0.6), "kv_bytes": 5, "samples": 2, **numbers}
    found = {"run": {"model": name, "data": name}, "results": [row], "skipped": [], "metric": "anls"}
    printed = shown(eval_command.table(found), 200)
    assert printed.count(name) == 3
    verdicts = [Verdict(row, True, False), Verdict(dict(row), True, True)]
    printed = shown(tune_command._table(verdicts, 0.9), 200)
    assert printed.count(name) == 2
    assert "chosen" in printed
    where = {"dtype": "float32", "attention": "sdpa", "device": "cpu"}
    run = {"model": name, "prompt": name, "batch": 1, "new_tokens": 2, "repeats": 3}
    assert shown(plain(bench_command.heading({"run": run, "environment": where})), 250).count(name) == 2


def test_dollars_in_names_are_no_mathematics(tmp_path: Path) -> None:
    from foveate.evals.plots import pareto

    row = {"setting": "unpruned", "score": 0.5, "score_interval": (0.4, 0.6), "kept_tokens": 5.0, "ttft_ms": 5.0}
    pareto([row], "$model_{x on $data$", "anls").savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
