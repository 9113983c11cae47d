"""`docs/families.md` is what probing finds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from foveate.cli.families_table import UNKNOWN
from foveate.families.refusals import REFUSED
from foveate.families.tables import ALWAYS_TESTED, TESTED

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def test_every_tested_type_is_on_the_page() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    found = {row[0]: row for row in cells}
    for name in (*ALWAYS_TESTED, *TESTED):
        assert found[name][-1] == ("every run" if name in ALWAYS_TESTED else "`make families`")
    assert not set(REFUSED) & {*ALWAYS_TESTED, *TESTED}
    assert all(row[-1] for row in cells if UNKNOWN in row)


@pytest.mark.families
def test_the_page_is_up_to_date() -> None:
    remedy = "run `python -m foveate.cli.families_table > docs/families.md`"
    command = [sys.executable, "-m", "foveate.cli.families_table"]  # alone: tests put stand-ins into stock modules
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert PAGE.read_text(encoding="utf-8") == found, remedy
