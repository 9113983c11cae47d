"""Options that several commands have in common: where a model runs, and on which cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from foveate.errors import InputError

if TYPE_CHECKING:
    from foveate.cluster.connection import Cluster

Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16; default: float32 on CPU.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, auto.")]
Attention = Annotated[str | None, typer.Option(help="eager, sdpa, flash_attention_2.")]

OnRay = Annotated[bool, typer.Option("--ray", help="On a Ray cluster.")]
Address = Annotated[
    str | None, typer.Option(help="With --ray: of a running cluster; default: one on this machine.", show_default=False)
]
Cpus = Annotated[float, typer.Option(min=0, help="With --ray: CPUs of each model.")]
Gpus = Annotated[float, typer.Option(min=0, help="With --ray: GPUs of each model.")]


def check_ray(ray: bool, **given: object) -> None:
    """Refuse options of a cluster where there is none.

    Args:
        given: option names with what was given; None, zero and empty ones were not.

    Raises:
        InputError: naming them.
    """
    lost = [f"--{name}" for name, value in given.items() if value]
    if lost and not ray:
        raise InputError(f"{', '.join(lost)}: only for --ray; add it, or leave them out.")


def make_cluster(address: str | None, cpus: float, gpus: float) -> Cluster:
    """The cluster of the options, with the library that it needs.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    from foveate.cluster.connection import Cluster
    from foveate.files.outputs import check_packages

    check_packages("--ray", "ray", "ray")
    return Cluster(address, cpus, gpus)
