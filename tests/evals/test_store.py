"""The results file survives torn writes and refuses what it cannot trust."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foveate.evals.store import Store, StoreError

RUN = {"model": "m", "data": "d"}


def record(sample: str, setting: str = "s", prediction: str = "x") -> dict[str, str]:
    return {"setting": setting, "sample": sample, "prediction": prediction}


def filled(path: Path) -> Path:
    with Store(path, RUN) as store:
        store.append([record("1"), record("2")])
        store.append([record("3")])
    return path


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    path = filled(tmp_path / "new" / "r.jsonl")
    with Store(path, RUN) as store:
        assert ("s", "2") in store
        assert ("t", "2") not in store
        assert list(store.records) == [("s", "1"), ("s", "2"), ("s", "3")]


def test_nothing_is_stored_twice(tmp_path: Path) -> None:
    path = filled(tmp_path / "r.jsonl")
    size = path.stat().st_size
    with Store(path, RUN) as store:
        store.append([record("2", prediction="other")])
    assert path.stat().st_size == size


def test_every_torn_tail_is_tolerated(tmp_path: Path) -> None:
    """Whatever byte the kill came at, the whole lines before it are there and the file can be continued."""
    path = filled(tmp_path / "r.jsonl")
    content = path.read_bytes()
    starts = [i + 1 for i, byte in enumerate(content) if byte == 10]
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        with Store(path, RUN) as store:
            whole = max(0, sum(start <= cut for start in starts) - 1)
            assert len(store.records) == whole
            store.append([record("1"), record("2"), record("3")])
        assert path.read_bytes() == content


def test_a_last_line_of_garbage_is_cut_off(tmp_path: Path) -> None:
    path = filled(tmp_path / "r.jsonl")
    content = path.read_bytes()
    path.write_bytes(content + b"\0\0\0garbage\n")
    with Store(path, RUN) as store:
        assert len(store.records) == 3
    assert path.read_bytes() == content


def test_damage_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = filled(tmp_path / "r.jsonl")
    content = path.read_text().splitlines(keepends=True)
    path.write_text("".join([content[0], content[1], "{torn\n", *content[2:]]))
    with pytest.raises(StoreError, match="line 3 is damaged"), Store(path, RUN):
        pass


def test_another_run_is_refused(tmp_path: Path) -> None:
    path = filled(tmp_path / "r.jsonl")
    with pytest.raises(StoreError, match=r"model: 'm' there, 'n' now"), Store(path, RUN | {"model": "n"}):
        pass
    path.write_text(json.dumps({"other": 1}) + "\n")
    with pytest.raises(StoreError, match="no results file"), Store(path, RUN):
        pass


def test_two_writers_are_refused(tmp_path: Path) -> None:
    path = filled(tmp_path / "r.jsonl")
    with Store(path, RUN), pytest.raises(StoreError, match="Another process"), Store(path, RUN):
        pass
    with Store(path, RUN):  # and free again
        pass
