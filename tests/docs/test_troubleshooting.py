"""The page of errors is complete, up to date, and says what to do about each."""

from __future__ import annotations

import importlib

import pytest

from foveate.errors import FoveateError
from recipes.troubleshooting import errors, render
from tests.docs.running import ROOT

KINDS = [(module, *kind) for module, kinds in errors().items() for kind in kinds]


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert page == render(), "run `python -m recipes.troubleshooting > docs/troubleshooting.md`"


@pytest.mark.parametrize(("module", "name", "bases", "doc"), KINDS, ids=[kind[1] for kind in KINDS])
def test_every_error_says_what_it_is_and_what_to_do(module: str, name: str, bases: tuple[str, ...], doc: str) -> None:
    meaning, _, rest = doc.partition("\n\n")
    assert meaning
    assert rest.startswith("Remedy: "), f"{name}: its docstring needs a second paragraph 'Remedy: ...'"
    assert f"| `{name}`" in render()


def test_no_error_of_ours_is_left_out() -> None:
    """Those that were imported by now, whatever they are called."""
    for module in errors():
        importlib.import_module(f"foveate.{module.replace('/', '.')}")
    todo, seen = [FoveateError], set()
    while todo:
        kind = todo.pop()
        if kind.__module__.startswith("foveate."):  # recipes and tests have their own
            seen.add(kind.__name__)
        todo += kind.__subclasses__()
    assert seen <= {kind[1] for kind in KINDS}
