"""`foveate chat`: a conversation about images in the terminal."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli.ask import Model, Module, OneKeep, OneMethod, Url, show
from foveate.cli.options import Attention, Device, Dtype
from foveate.cli.show import harmless

if TYPE_CHECKING:
    from foveate.inference.dialogue import Dialogue
    from foveate.specs.settings import Setting

HELP = """\
/image PATH...    pictures, videos or a folder for the next question
/keep KEEP        another budget: 1/9, 11%, 64; the next question reads all pictures again
/method METHOD    another method, such as fastv:layer=3, or none; the same
/trace            what was kept of the pictures, and what is held
/new              begin anew
/help             these lines
/quit             end (as Ctrl-D); Ctrl-C stops an answer"""


def chat(
    images: Annotated[
        list[str] | None, typer.Argument(metavar="[IMAGE]...", help="Image or video files, or folders of them.")
    ] = None,
    model: Model = None,
    method: OneMethod = "vitcop",
    keep: OneKeep = None,
    module: Module = None,
    url: Url = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Talk about images: several turns over one pruned cache, answers as they come. /help lists the commands."""
    from foveate import zoo
    from foveate.cli.pictures import opened
    from foveate.inference.answer import Asker
    from foveate.specs.grammar import one_budget
    from foveate.specs.settings import setting

    name = model or zoo.DEFAULT
    shown = opened(images or [], url)
    chosen = setting(method, one_budget(keep) if keep else None, name, module=module)
    chosen.make()  # a wrong value shows before a model is loaded
    asker = Asker.load(name, max_new_tokens, dtype=dtype, device=device, attn_implementation=attention)
    talk = Talk(asker, name, chosen, shown, url)
    if sys.stdin.isatty():
        typer.echo(f"{name}, {chosen.name}. /help lists the commands.")
        if model is None:
            typer.echo(f"{zoo.ONLY_SCENES} --model names another.")
    while talk.goes_on:
        talk.hear(_line())


def _line() -> str | None:
    """What was typed, None at the end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


class Talk:
    """A conversation and its commands.

    Args:
        asker: answers.
        model: the name it was loaded by.
        chosen: the method at first.
        images: of the first question.
        urls: whether addresses are fetched.
    """

    def __init__(self, asker: Any, model: str, chosen: Setting, images: list[Any], urls: bool) -> None:
        from foveate.inference.dialogue import Dialogue

        self.dialogue: Dialogue = Dialogue(asker)
        self.model, self.chosen, self.urls, self.goes_on = model, chosen, urls, True
        self.images = [self._ready(one) for one in images]
        self._use(chosen)
        self._commands: dict[str, Callable[[str], None]] = {
            "image": self._add, "keep": self._keep, "method": self._method, "trace": self._trace, "new": self._new,
            "help": lambda _: typer.echo(HELP), "quit": self._quit,
        }  # fmt: skip

    def hear(self, line: str | None) -> None:
        """Answer a question or obey a command. What goes wrong is told, and the conversation goes on."""
        from foveate.errors import FoveateError

        try:
            if line is None:
                self._quit("")
            elif line.startswith("/"):
                self._obey(line[1:])
            elif line:
                self._ask(line)
        except FoveateError as error:
            typer.echo(f"error: {harmless(str(error))}", err=True)

    def _obey(self, line: str) -> None:
        from foveate.errors import InputError

        name, _, rest = line.partition(" ")
        if name not in self._commands:
            raise InputError(f"There is no /{name}; there are {', '.join(f'/{one}' for one in self._commands)}.")
        self._commands[name](rest.strip())

    def _ask(self, text: str) -> None:
        pieces = self.dialogue.say(text, self.images)
        try:
            show(pieces)
        except KeyboardInterrupt:
            typer.echo("\n(stopped; this turn is forgotten)")
            return
        self.images = []

    def _ready(self, one: Any) -> Any:
        from foveate.cli.pictures import sampled

        return sampled(one, self.dialogue.asker.processor)

    def _use(self, chosen: Setting) -> None:
        from foveate.inference.weights import warn_if_tuned_elsewhere

        if chosen.evidence:
            warn_if_tuned_elsewhere(chosen.name, chosen.evidence, self.dialogue.asker.model)
        self.dialogue.use(chosen.make())
        self.chosen = chosen

    def _add(self, rest: str) -> None:
        from foveate.cli.pictures import opened
        from foveate.errors import InputError

        names = shlex.split(rest)
        if not names or "-" in names:
            raise InputError("/image takes files, folders or addresses: /image photo.jpg")
        self.images += [self._ready(one) for one in opened(names, self.urls)]
        typer.echo(f"{len(self.images)} for the next question")

    def _keep(self, rest: str) -> None:
        from foveate.specs.grammar import one_budget

        self._use(self.chosen.with_keep(one_budget(rest)))
        typer.echo(self.chosen.name)

    def _method(self, rest: str) -> None:
        from foveate.specs.settings import setting

        self._use(setting(rest, model=self.model))
        typer.echo(self.chosen.name)

    def _trace(self, _: str) -> None:
        from foveate.trace.text import describe

        reading = self.dialogue.reading
        typer.echo(harmless(describe(reading)) if reading else "no pictures were read yet")
        typer.echo(f"  held now       {self.dialogue.kv_bytes:,} bytes of keys and values")

    def _new(self, _: str) -> None:
        self.dialogue.forget()
        self.images = []

    def _quit(self, _: str) -> None:
        self.goes_on = False
