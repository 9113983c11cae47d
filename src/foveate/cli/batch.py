"""`foveate batch`: one prompt, many images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.cli.options import Address, Attention, Cpus, Device, Dtype, Gpus, OnRay, check_ray, make_cluster
from foveate.cli.show import harmless, make_progress

if TYPE_CHECKING:
    from foveate.batch.job import BatchDone


def batch(
    source: Annotated[
        Path,
        typer.Argument(metavar="MANIFEST|FOLDER", help="A .parquet or .jsonl table or a folder of images and videos."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the parts; the same one again continues.")],
    prompt: Annotated[
        str, typer.Option(help="What to ask; {question} stands for the row's column of that name.")
    ] = "{question}",
    model: Annotated[str | None, typer.Option(help="Folder, Hub id or zoo name; default: the zoo model.")] = None,
    method: Annotated[
        str, typer.Option(help="Name, name:parameter=value,..., unpruned, or a foveate.json.")
    ] = "vitcop",
    keep: Annotated[str | None, typer.Option(help="0.11, 1/9, or a number of tokens; default: the method's.")] = None,
    size: Annotated[int, typer.Option("--batch", min=1, help="Rows per batch.")] = 8,
    part: Annotated[int, typer.Option(min=1, help="Rows per file: the most that a kill loses.")] = 256,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask the first rows only.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    schema: Annotated[Path | None, typer.Option(help="JSON schema that every answer follows.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="At the end also write answers.parquet.")] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Compute parts again in which a row failed.")
    ] = False,
    ray: OnRay = False,
    address: Address = None,
    actors: Annotated[int, typer.Option(min=1, help="With --ray: models at a time.")] = 1,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Ask a prompt about every row; answers and errors go to parquet files. Continues where it stopped."""
    from foveate import zoo
    from foveate.files.outputs import check_packages
    from foveate.specs.settings import one_setting

    check_packages("foveate batch", "batch", "pyarrow")
    from foveate.batch.job import BatchJob, run

    name = model or zoo.DEFAULT
    job = BatchJob(
        name, source, out, prompt, one_setting(method, keep, name), size, part, max_new_tokens, limit, dtype,
        device, attention, None if schema is None else _read(schema),
    )  # fmt: skip
    start: Callable[..., BatchDone] = run
    check_ray(ray, address=address, actors=actors != 1, gpus=gpus)
    if ray:
        from foveate.batch.distributed import run_distributed

        start = partial(run_distributed, cluster=make_cluster(address, cpus, gpus), actors=actors)
    with make_progress(elapsed=True) as progress:
        task = progress.add_task(f"{job.model} on {harmless(str(source))}", total=None)
        done = start(
            job,
            retry_errors=retry_errors,
            on_start=lambda total, there: progress.update(task, total=total, completed=there),
            on_rows=lambda n: progress.advance(task, n),
        )
    rows = done.parts.rows
    typer.echo(f"{rows} rows, {done.computed} of them computed now, {done.errors} with an error")
    typer.echo(f"{done.parts.merge().resolve() if merge else f'{out.resolve()}: {len(done.parts)} parts'}")


def _read(file: Path) -> str:
    from foveate.errors import SchemaError
    from foveate.inference.schemas import read_schema

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SchemaError(f"--schema {file} cannot be read ({type(error).__name__}).") from error
    read_schema(text)  # what is no JSON shows before a model is loaded
    return text
