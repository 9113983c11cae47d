"""Several processes of one test, as a launcher starts them, but forked: nothing is imported anew."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState


class FailedProcessError(Exception):
    """What a process raised, as text."""


def forked(work: Callable[[], Any], count: int = 2, seconds: float = 240) -> list[Any]:
    """What `work` returns in each of `count` processes; where it raises, a `FailedProcessError`.

    Raises:
        AssertionError: a process hangs.
    """
    method = multiprocessing.get_context("fork")
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        ours, theirs = method.Pipe(duplex=False)
        child = method.Process(target=_child, args=(work, rank, count, port, theirs), daemon=True)
        child.start()
        theirs.close()
        children.append((child, ours))
    return list(_results(children, seconds))


def _results(children: list[Any], seconds: float) -> Iterator[Any]:
    try:
        for rank, (_, result) in enumerate(children):
            assert result.poll(seconds), f"process {rank} hangs"
            yield result.recv()
    finally:
        for child, _ in children:
            child.join(5)
            child.kill()


def _child(work: Callable[[], Any], rank: int, count: int, port: int, result: Any) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)  # threads do not survive a fork
    for state in (AcceleratorState, PartialState, GradientState):  # of runs of the parent
        state._shared_state.clear()
    try:
        found = work()
    except BaseException as error:
        found = FailedProcessError(f"{type(error).__name__}: {error}")
        if os.environ.get("FOVEATE_TEST_TRACEBACKS"):
            traceback.print_exc()
    result.send(found)
    result.close()
    os._exit(0)
