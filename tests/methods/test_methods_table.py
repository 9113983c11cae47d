"""`docs/methods.md` is what the registry says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from foveate.methods import registry
from recipes.methods_table import render

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_page_is_up_to_date() -> None:
    remedy = "run `python -m recipes.methods_table > docs/methods.md`"
    assert PAGE.read_text(encoding="utf-8") == render(), remedy


def test_every_method_has_a_row_and_its_parameters() -> None:
    page = render()
    for name, kind in registry().items():
        assert f"| [`{name}`](#{name}) |" in page
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        listed = re.findall(r"^- `([^`]+)`:", section, flags=re.MULTILINE)
        documented = {name.strip() for names in listed for name in names.split(",")}
        wanted = {field.name for field in dataclasses.fields(kind) if field.init} - {"positions", "proportional"}
        assert wanted <= documented | {"per"}, name


def test_a_switch_stands_with_its_measured_effect() -> None:
    section = render().partition("\n## cdpruner\n")[2].partition("\n## ")[0]
    found = re.findall(
        r"^\| `published=True` \| scenes-\S+ \| 1/9 \| \d+ \| [+-]\d+\.\d ± \d+\.\d \|$", section, flags=re.M
    )
    assert len(found) == 2


def test_what_the_table_says_of_a_few_methods() -> None:
    rows = {line.split("`")[1]: line.split(" | ") for line in render().splitlines() if line.startswith("| [`")}
    assert rows["fastv"][1:4] == ["2", "attention rows", "fixed"]
    assert rows["visionzip"][1:4] == ["0", "`received`, `keys`", "fixed"]
    assert rows["pyramiddrop"][1] == "8, 16, 24"
    assert rows["prumerge"][3] == "fixed or adaptive"
    assert rows["glimpse_prune"][3] == "adaptive"
    assert rows["vitcop"][4].startswith("official implementation")
