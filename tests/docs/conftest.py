"""The working directory of a reader."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def desk(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a reader: a copy of the module's `files`."""
    shutil.copytree(files, tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"
