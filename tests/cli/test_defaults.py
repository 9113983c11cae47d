"""`foveate.toml`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.run import foveate


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    return tmp_path


def test_the_nearest_file_counts_and_the_command_line_wins(here: Path) -> None:
    (here / "foveate.toml").write_text('split = "nothing_such"\n')
    refused = foveate("scenes", "render", "--out", "out")
    assert (refused.returncode, "no split is called 'nothing_such'" in refused.stderr) == (1, True)
    assert foveate("scenes", "render", "--out", "out", "--split", "val", "--n", "1").returncode == 0
    (here / "below" / "foveate.toml").write_text(
        'split = "nothing_such"\n[scenes.render]\nsplit = "val"\nn = 2\nout = "two"\n'
    )
    done = foveate("scenes", "render")
    assert done.returncode == 0, done.stderr
    assert "2 samples in two" in done.stdout
    (here / "other.toml").write_text('[scenes.render]\nn = 1\nout = "three"\n')
    assert "1 samples in three" in foveate("--config", here / "other.toml", "scenes", "render").stdout


def test_lists_and_switches(here: Path) -> None:
    (here / "foveate.toml").write_text(
        'method = "random:seed=3"\n[eval]\nkeep = ["1/2", 8]\nlimit = 2\nreport = false\nmax-new-tokens = 2\n'
    )
    done = foveate("eval", "--out", here / "out")
    assert done.returncode == 0, done.stderr
    for words in ("random 1/2 seed=3", "random 8 seed=3", "2 samples"):
        assert words in done.stdout
    assert not (here / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        ('metod = "vitcop"', 1, "there is no metod; did you mean method?"),
        ("[serv]\nport = 1", 1, "there is no [serv]; did you mean [serve]?"),
        ("[serve]\nprt = 1", 1, "there is no prt in [serve]; did you mean port in [serve]?"),
        ("[train.glimps]\nout = 'x'", 1, "did you mean [train.glimpse]?"),
        ("[scenes.render]\nn = 'many'", 2, "Invalid value for '--n'"),
        ("method = ", 1, "is no TOML"),
    ],
)
def test_what_a_file_cannot_say(here: Path, content: str, code: int, words: str) -> None:
    (here / "foveate.toml").write_text(content)
    done = foveate("scenes", "render", "--out", "out", columns=200)
    assert done.returncode == code, done.stderr
    assert words in done.stderr


def test_a_file_that_is_not_there() -> None:
    done = foveate("--config", "nowhere.toml", "methods")
    assert (done.returncode, "nowhere.toml cannot be read" in done.stderr) == (1, True)
