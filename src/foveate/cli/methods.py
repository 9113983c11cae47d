"""`foveate methods`: what there is."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from foveate.cli.show import add_row, make_table, plain

if TYPE_CHECKING:
    from foveate.core.method import Method

SYNTAX = """\
--method takes
  a name                           vitcop
  with parameters                  vitcop:keep=1/9,deep_layer=20
  several in a row                 fastervlm:keep=1/3 + fastv
  these with one budget            (fastervlm + fastv):keep=1/9
  what `foveate tune` wrote        foveate.json
  no pruning                       none
keep is a ratio (0.11, 1/9, 11%) or a number of visual tokens (64).
`foveate methods NAME` says what a method does and what its parameters are."""

WIDTH = 78
"""Of text, in characters."""


def complete(incomplete: str) -> list[str]:
    """Names that begin so, for the shell."""
    from foveate.methods import registry

    return [name for name in registry() if name.startswith(incomplete)]


def methods(
    name: Annotated[str | None, typer.Argument(help="Show one method in full.", autocompletion=complete)] = None,
) -> None:
    """List the pruning methods, or say all about one of them (`foveate families`: on which models they run)."""
    from foveate.methods import find, registry

    console = Console()
    if name is not None:
        for line in _details(find(name)):
            console.print(plain(line))
        return
    table = make_table(["method", "what it does", "paper"], left=True, box=None, collapse_padding=True, pad_edge=False)
    for key, kind in registry().items():
        add_row(table, key, _summary(kind), (kind.paper or "-").removeprefix("arXiv "))
    console.print(table)
    console.print(plain(f"\n{SYNTAX}"))


def _summary(kind: type[Method]) -> str:
    """The first sentence of what is written about it."""
    first = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
    return re.split(r"(?<=[^0-9])\. ", first, maxsplit=1)[0].partition(" (arXiv")[0].rstrip(".:")


def _details(kind: type[Method]) -> Iterator[str]:
    from foveate.methods import parameters_of

    text, _, rest = inspect.cleandoc(kind.__doc__ or "").partition("\nArgs:\n")
    meanings = _meanings(rest.partition("\nRaises:")[0])
    yield kind.name
    yield from _reflowed(text)
    yield "\nparameters"
    alike: dict[str, list[str]] = {}  # of one meaning, told once
    for parameter, default in parameters_of(kind).items():
        shown = " (must be given)" if default is inspect.Parameter.empty else f"={_short(default)}"
        meaning = meanings.get(parameter) or _meanings_of_all().get(parameter, "")
        alike.setdefault(meaning, []).append(f"{parameter}{shown}")
    for meaning, shown_all in alike.items():
        yield f"  {', '.join(shown_all)}"
        yield textwrap.fill(meaning, WIDTH, initial_indent="      ", subsequent_indent="      ")
    number = kind.paper.removeprefix("arXiv ")
    yield f"\nsource    {f'https://arxiv.org/abs/{number}' if number != kind.paper else kind.paper or 'none'}"
    yield f"verified  {kind.verified or 'no'}"
    yield f"class     {kind.__module__}.{kind.__name__}"


def _reflowed(text: str) -> Iterator[str]:
    """Paragraphs and numbered points in the width of a terminal."""
    for paragraph in text.strip().split("\n\n"):
        yield ""
        for point in re.split(r"\n(?=\d\. |- )", paragraph):
            yield textwrap.fill(" ".join(point.split()), WIDTH)


def _meanings_of_all() -> dict[str, str]:
    """What the parameters are that every method has."""
    from foveate.core.method import Method

    return _meanings(inspect.cleandoc(Method.__doc__ or "").partition("\nArgs:\n")[2].partition("\nRaises:")[0])


def _meanings(text: str) -> dict[str, str]:
    """`name: what it means` of a docstring's arguments; several names may stand before one colon."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in textwrap.dedent(text).splitlines():
        if line and not line.startswith(" "):
            before, _, meaning = line.partition(": ")
            names = [name.strip() for name in before.split(",")]
            found |= dict.fromkeys(names, meaning.strip())
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
