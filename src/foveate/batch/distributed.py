"""The same parts by the actors of a Ray cluster.

Each actor commits its parts itself, into the folder that every machine must see; Ray carries numbers of parts only.
What a run still has to do is read from the folder, so Ray's own checkpoint (which `from_items` ignores in silence) is
not used: a part that Ray computes twice, after a machine was lost, replaces itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from foveate.batch.job import BatchDone, BatchJob
from foveate.batch.parts import BatchError, BatchFolder
from foveate.cluster.connection import Cluster, told
from foveate.files.outputs import check_folder, check_packages

_MOST_BLOCKS = 4096


class _Worker:
    """A model that answers parts; Ray makes one in each actor."""

    def __init__(self, job: BatchJob, expected: str, retry_errors: bool) -> None:
        self.job, self.retry = job, retry_errors
        self.manifest, self.asker = job.manifest(), job.load()
        self.answering, self.parts = job.answering(self.asker), job.parts(self.manifest, self.asker)
        if self.parts.hash != expected:
            raise BatchError(f"A machine sees another model or manifest than the first: {dict(self.parts.spec)}")

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        numbers = [int(part) for part in batch["part"]]
        for part in numbers:
            if self.parts.lacks(part, self.retry):
                self.parts.commit(part, self.answering.answer(self.manifest, self.parts.range(part)))
        return {"rows": [len(self.parts.range(part)) for part in numbers]}


def _describe(job: BatchJob) -> BatchFolder:
    """The folder as a machine of the cluster sees it: its dtype depends on whether there is a GPU."""
    return job.parts(job.manifest(), job.load())


def run_distributed(
    job: BatchJob,
    cluster: Cluster,
    actors: int = 1,
    retry_errors: bool = False,
    on_start: Callable[[int, int], None] = lambda total, done: None,
    on_rows: Callable[[int], None] = lambda n: None,
) -> BatchDone:
    """Like `job.run`, by actors of a cluster; the folder and the manifest must lie where all of them see them.

    Args:
        actors: models loaded at a time.

    Raises:
        ClusterError: no cluster answers, or an actor failed; otherwise as `job.run`.
    """
    check_packages("foveate batch --ray", "ray", "ray")
    check_folder(job.out)
    job.manifest()  # a wrong one shows before a cluster is started
    job = job.absolute()
    with cluster.connected() as ray, told(ray):
        parts: BatchFolder = ray.get(ray.remote(**cluster.share)(_describe).remote(job))
        with parts.held():
            missing = parts.missing(retry_errors)
            computed = sum(len(parts.range(part)) for part in missing)
            on_start(parts.rows, parts.rows - computed)
            for rows in _compute(missing, (job, parts.hash, retry_errors), cluster, actors):
                on_rows(rows)
            return BatchDone(parts, computed, parts.errors())


def _compute(missing: Sequence[int], job: tuple[Any, ...], cluster: Cluster, actors: int) -> Iterator[int]:
    """Let actors commit the missing parts; the number of rows of each, as it is done."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the progress is ours
    if not missing:
        return
    ray.data.DataContext.get_current().enable_progress_bars = False
    items = [{"part": part} for part in missing]
    done = ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_BLOCKS)).map_batches(
        _Worker,
        fn_constructor_args=job,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        **cluster.share,
    )
    for row in done.iter_rows():
        yield int(row["rows"])
