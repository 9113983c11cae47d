"""The errors as a page, from their docstrings: `python -m recipes.troubleshooting > docs/troubleshooting.md`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

HEAD = """\
# When something is refused

What cannot work is refused before it is begun, by an exception that says what is wrong, where, and what to do instead.
All of them derive from `FoveateError`, and from the built-in class that stands in brackets, so that `except ValueError`
works too. The command line prints the message as one line and ends with status 1. A message that does not help is a
fault: please report it.

Not an error, but often asked:

- **The answer is empty or wrong on a photograph.** The models that ship with the package know rendered scenes only;
  name a model of your own.
- **Nothing is faster.** Prefill gets shorter, the vision tower does not (unless the method prunes there), and with few
  visual tokens there is little to save: `foveate bench` says where the time goes ([time to first token](ttft.md)).
- **Another answer than unpruned.** That is what pruning risks; `foveate tune` finds what your questions bear.
- **Memory did not fall.** `trace.kv_bytes` shows what the cache holds; weights and activations of the prefill stay.
"""


FOOT = "Written by `python -m recipes.troubleshooting > docs/troubleshooting.md`; a test keeps it up to date.\n"


def render() -> str:
    """The page: a section per room that has errors."""
    parts = [HEAD]
    for title, kinds in _rooms():
        parts.append(f"\n## {title}\n\n| error | what it means | what to do |\n|---|---|---|\n")
        parts += [_row(name, bases, doc) for name, bases, doc in kinds]
    return "".join([*parts, "\n", FOOT])


def errors() -> dict[str, list[tuple[str, tuple[str, ...], str]]]:
    """Module -> its error and warning classes, each with the names of its bases and its docstring."""
    root = Path(__file__).parents[1] / "src" / "foveate"
    files = sorted(root.rglob("*.py"), key=lambda path: (path != root / "errors.py", path))
    found = {path.relative_to(root).with_suffix("").as_posix(): list(_classes(path)) for path in files}
    return {module: kinds for module, kinds in found.items() if kinds}


def _classes(path: Path) -> Iterator[tuple[str, tuple[str, ...], str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Error", "Warning")):
            bases = tuple(ast.unparse(base) for base in node.bases if ast.unparse(base) != "FoveateError")
            yield node.name, bases, ast.get_docstring(node) or ""


def _rooms() -> Iterator[tuple[str, list[tuple[str, tuple[str, ...], str]]]]:
    for module, kinds in errors().items():
        name = module.replace("/", ".").removesuffix(".__init__")
        yield "Everywhere" if module == "errors" else f"`foveate.{name}`", kinds


def _row(name: str, bases: tuple[str, ...], doc: str) -> str:
    meaning, _, rest = doc.partition("\n\n")
    remedy = " ".join(rest.partition("\n\n")[0].split()).removeprefix("Remedy: ")
    of = f" ({', '.join(bases)})" if bases else ""
    return f"| `{name}`{of} | {' '.join(meaning.split())} | {remedy[:1].upper() + remedy[1:]} |\n"


if __name__ == "__main__":
    print(render(), end="")
