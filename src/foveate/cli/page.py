"""`foveate page`: pruning to look at, in the browser."""

from __future__ import annotations

from typing import Annotated

import typer

from foveate.cli.options import Attention, Device, Dtype


def page(
    model: Annotated[str | None, typer.Option(help="Folder, Hub id or zoo name; default: the zoo model.")] = None,
    method: Annotated[str, typer.Option(help="The method that is chosen at first.")] = "vitcop",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0: a free one.")] = 7860,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Ask a picture a question in the browser: unpruned and pruned side by side, and what was dropped where."""
    from foveate import zoo
    from foveate.files.outputs import check_packages

    check_packages("foveate page", "page", "gradio")
    from foveate.inference.answer import Asker
    from foveate.page.app import Page, launch
    from foveate.specs.settings import setting

    name = model or zoo.DEFAULT
    chosen = setting(method, model=name)
    asker = Asker.load(name, max_new_tokens, dtype=dtype, device=device, attn_implementation=attention)
    blocks = launch(Page(asker, name, chosen), port)
    typer.echo(f"{blocks.local_url} (for browsers of this machine; Ctrl-C ends it)")
    blocks.block_thread()
