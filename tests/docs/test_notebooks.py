"""The notebooks of `examples/` run from top to bottom, and are committed without outputs."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.running import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
TRAINS = "train_glimpse"


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def show(source: str, names: dict[str, Any]) -> Any:
    """Run a cell; the value of the expression at its end, if there is one."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.docs_long] if p.stem == TRAINS else [], id=p.stem) for p in NOTEBOOKS],
)
def test_cells_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has imported torch already; what a cell ends with can be shown."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = [show("".join(cell["source"]), names) for cell in cells(path) if cell["cell_type"] == "code"]
    for value in shown:
        if value is not None:
            assert hasattr(value, "_repr_html_") or hasattr(value, "_repr_png_")
    html = [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]
    assert all("<img" in text and "alt=" in text for text in html)


@pytest.mark.docs_long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_in_a_kernel(path: Path, tmp_path: Path) -> None:
    """As Jupyter runs them."""
    nbclient = pytest.importorskip("nbclient", reason="needs the extra `examples`")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
    client.execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_but_sources_is_committed(path: Path) -> None:
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert code
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
