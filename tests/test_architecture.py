"""The house is what `docs/architecture.md` says: arrows between rooms, lengths of files and functions, names."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "foveate"
LEAVES = {"errors", "version"}
"""Modules that every room may import and that import nothing of ours."""
LONGEST_FILE, LONGEST_FUNCTION = 300, 40

# What is not as the document says. Each list must shrink: an entry that no longer occurs fails the test.
ARROWS_TO_REMOVE: set[str] = set()
CYCLES_TO_REMOVE: set[str] = set()
MODULE_CYCLES_TO_REMOVE: set[str] = set()
LONG_FILES_TO_SPLIT: set[str] = set()
LONG_FUNCTIONS_TO_SPLIT = {"evals/runner.py run"}
NAMES_TO_TELL_APART: set[str] = set()


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    found = {}
    for path in (ROOT / "src" / PACKAGE).rglob("*.py"):
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below `node` that can run: those in functions too, those under `if TYPE_CHECKING` not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from statements(other)
            continue
        yield child
        yield from statements(child)


def targets(node: ast.AST, module: str, is_package: bool) -> list[str]:
    """Dotted names that `node` imports, also by `import_module("...")`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = module.split(".")
            start = parts[: len(parts) - node.level + is_package]
            base = ".".join([*start, base] if base else start)
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
        name = node.args[0]
        return [name.value] if isinstance(name, ast.Constant) and isinstance(name.value, str) else []
    return []


def room(module: str) -> str:
    """`foveate.core.view` -> `core`; the face of the package is called as the package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


@cache
def imports() -> dict[str, set[str]]:
    """Module -> dotted names of what it imports, ours by module, others by their top-level name."""
    known = modules()
    found: dict[str, set[str]] = defaultdict(set)
    for module, path in known.items():
        for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
            for target in targets(node, module, path.name == "__init__.py"):
                if not target.startswith(f"{PACKAGE}.") and target != PACKAGE:
                    found[module].add(target.partition(".")[0])
                    continue
                while target not in known:  # a function or class of the module
                    target = target.rpartition(".")[0]
                found[module].add(target)
    return found


@cache
def arrows() -> dict[str, set[str]]:
    """`a -> b` between rooms -> the modules of `a` that draw it."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, names in imports().items():
        for name in names:
            here, there = room(module), room(name)
            if name.split(".")[0] == PACKAGE and here != there and here != PACKAGE:
                found[f"{here} -> {there}"].add(module)
    return found


@cache
def table() -> dict[str, tuple[set[str], set[str]]]:
    """Room -> (rooms it may import, libraries it must not import), as the document says."""
    found = {}
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4:
            name, _, allowed, forbidden = cells
            found[name.strip("`")] = set(re.findall(r"`(\w+)`", allowed)), set(re.findall(r"`(\w+)`", forbidden))
    return found


def agree(found: set[str], listed: set[str], what: str) -> None:
    """Nothing that is not listed, and nothing listed that is gone."""
    assert not found - listed, f"{what}: {sorted(found - listed)}"
    assert not listed - found, f"no longer there, remove from the list in this file: {sorted(listed - found)}"


def test_every_room_is_in_the_table() -> None:
    rooms = {room(module) for module in modules()} - LEAVES - {PACKAGE}
    assert rooms == set(table())
    assert all(allowed <= rooms for allowed, _ in table().values()), "the table allows a room that there is not"
    assert not any(name.startswith(tuple(f"{leaf} ->" for leaf in LEAVES)) for name in arrows())


def test_the_table_has_no_cycle() -> None:
    graph = networkx.DiGraph([(here, there) for here, (allowed, _) in table().items() for there in allowed])
    assert networkx.is_directed_acyclic_graph(graph), networkx.find_cycle(graph)


def test_arrows_are_those_of_the_table() -> None:
    allowed = {f"{here} -> {there}" for here, (rooms, _) in table().items() for there in rooms | LEAVES}
    for arrow in sorted(set(arrows()) - allowed - ARROWS_TO_REMOVE):
        print(arrow, "in", ", ".join(sorted(arrows()[arrow])))
    agree(set(arrows()) - allowed, ARROWS_TO_REMOVE, "imports that docs/architecture.md does not allow")


def test_rooms_form_no_cycle() -> None:
    """The face is left out: it imports rooms and, in the arrows above, none imports it."""
    pairs = [arrow.split(" -> ") for arrow in arrows() if not arrow.endswith(f"-> {PACKAGE}")]
    knots = [knot for knot in networkx.strongly_connected_components(networkx.DiGraph(pairs)) if len(knot) > 1]
    agree({" ".join(sorted(knot)) for knot in knots}, CYCLES_TO_REMOVE, "rooms that import each other")


def test_modules_form_no_cycle() -> None:
    """A finer sieve than that of the rooms: no two files import each other, in whatever way round."""
    graph = networkx.DiGraph([(here, there) for here, names in imports().items() for there in names])
    knots = {" ".join(sorted(knot)) for knot in networkx.strongly_connected_components(graph) if len(knot) > 1}
    agree(knots, MODULE_CYCLES_TO_REMOVE, "modules that import each other")


def test_libraries_are_where_the_table_lets_them() -> None:
    found = [
        f"{module} imports {name}"
        for module, names in imports().items()
        for name in names & table().get(room(module), (set(), set()))[1]
    ]
    assert not found


def sources() -> dict[str, Path]:
    """Files of the package and of the recipes, by a short name."""
    package = {str(p.relative_to(ROOT / "src" / PACKAGE)): p for p in (ROOT / "src" / PACKAGE).rglob("*.py")}
    return package | {str(p.relative_to(ROOT)): p for p in (ROOT / "recipes").rglob("*.py")}


def test_files_are_short() -> None:
    files = sources() | {str(p.relative_to(ROOT)): p for p in (ROOT / "tests").rglob("*.py")}
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files.items()}
    long = {name for name, lines in lengths.items() if lines > LONGEST_FILE}
    agree(long, LONG_FILES_TO_SPLIT, f"files of more than {LONGEST_FILE} lines")


def definitions(kind: type | tuple[type, ...]) -> Iterator[tuple[str, ast.AST]]:
    for name, path in sources().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kind):
                yield name, node


def length(file: str, function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function; of a command without its signature, which is the list of its options."""
    first = function.body[0].lineno if file.startswith("cli/") else function.lineno
    return (function.end_lineno or first) - first + 1


def test_functions_are_short() -> None:
    functions = definitions((ast.FunctionDef, ast.AsyncFunctionDef))
    long = {f"{file} {f.name}" for file, f in functions if length(file, f) > LONGEST_FUNCTION}
    agree(long, LONG_FUNCTIONS_TO_SPLIT, f"functions of more than {LONGEST_FUNCTION} lines")


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, set[str]] = defaultdict(set)
    for file, node in definitions(ast.ClassDef):
        places[node.name].add(file)
    twice = {name: files for name, files in places.items() if len(files) > 1}
    for name in sorted(set(twice) - NAMES_TO_TELL_APART):
        print(name, "in", ", ".join(sorted(twice[name])))
    agree(set(twice), NAMES_TO_TELL_APART, "classes of one name")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    from foveate.engine import cache", {"foveate.engine.cache"}),
        ("if TYPE_CHECKING:\n    import foveate.cli\nelse:\n    import foveate.data", {"foveate.data"}),
        ("from ..core import view\nfrom . import base", {"foveate.core.view", "foveate.methods.base"}),
        ("importlib.import_module('foveate.evals.runner')", {"foveate.evals.runner"}),
    ],
)
def test_every_way_of_importing_is_seen(source: str, expected: set[str]) -> None:
    nodes = statements(ast.parse(source))
    assert {name for node in nodes for name in targets(node, "foveate.methods.dart", False)} == expected
