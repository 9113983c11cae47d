"""Several processes that train one model: what they must agree on, so that none waits for another that is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

from foveate.errors import FoveateError

T = TypeVar("T")
R = TypeVar("R")


class ProcessError(FoveateError, RuntimeError):
    """Another of several processes failed, so that this one cannot go on.

    Remedy: read what that process said, mend it, and go on with `--resume`.
    """


def world() -> tuple[int, int]:
    """Number of this process, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def is_first() -> bool:
    """Whether this process does what only one may do."""
    return world()[0] == 0


def gathered(value: T) -> list[T]:
    """The value of every process, in their order."""
    _, count = world()
    if count == 1:
        return [value]
    found: list[Any] = [None] * count
    dist.all_gather_object(found, value)
    return found


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them; what fails there fails in all."""
    made: list[Any] = [None]
    with together():
        if is_first():
            made = [make()]
    if world()[1] > 1:
        dist.broadcast_object_list(made, src=0)
    found: T = made[0]
    return found


@contextmanager
def together(kind: type[FoveateError] = ProcessError) -> Iterator[None]:
    """What fails in one process is raised in all: the others would wait for it until they time out.

    All processes must enter and leave this. Inside, none may wait for another.

    Args:
        kind: an error that is raised as such in the others too; any other failure is a `ProcessError` there.

    Raises:
        FoveateError: with the number of the process that failed, and why.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    told = gathered(None if failure is None else (isinstance(failure, kind), f"{type(failure).__name__}: {failure}"))
    if failure is not None:
        raise failure
    for rank, problem in enumerate(told):
        if problem is not None:
            alike, text = problem
            raise (kind if alike else ProcessError)(f"process {rank} of {len(told)} failed: {text}")


def divided(work: Callable[[T], R], items: Sequence[T], track: Callable[..., Any] | None = None) -> list[R]:
    """Results of `work` for every item, in order: each process does its share, in threads.

    Args:
        work: its results are sent to the other processes.
        track: a progress bar, called with the results of this process and their number.
    """
    rank, count = world()
    own = items[rank::count]
    done: list[R] = []
    with together(), ThreadPoolExecutor() as pool:
        results = pool.map(work, own)
        done = list(results if track is None else track(results, len(own)))
    shares = gathered(done)
    return [shares[place % count][place // count] for place in range(len(items))]
