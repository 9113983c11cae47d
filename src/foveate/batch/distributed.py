"""The same parts by the actors of a Ray cluster.

Each actor commits its parts itself, into the folder that every machine must see; Ray carries numbers of parts only.
What a run still has to do is read from the folder, so Ray's own checkpoint (which `from_items` ignores in silence) is
not used: a part that Ray computes twice, after a machine was lost, replaces itself.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from foveate.batch.answering import answer_rows
from foveate.batch.job import BatchDone, BatchJob
from foveate.batch.parts import BatchError, BatchFolder
from foveate.errors import FoveateError
from foveate.files.outputs import check_folder, check_packages

_MOST_BLOCKS = 4096


@dataclass(frozen=True)
class Cluster:
    """Where to run.

    Attributes:
        address: of a running cluster (`auto`, `host:6379`, `ray://host:10001`); None: one started for this run.
        actors: models loaded at a time.
        cpus, gpus: of each actor.
    """

    address: str | None = None
    actors: int = 1
    cpus: float = 1
    gpus: float = 0


class _Worker:
    """A model that answers parts; Ray makes one in each actor."""

    def __init__(self, job: BatchJob, expected: str, retry_errors: bool) -> None:
        self.job, self.retry = job, retry_errors
        self.manifest, self.asker = job.manifest(), job.load()
        self.method, self.parts = job.setting.make(), job.parts(self.manifest, self.asker)
        if self.parts.hash != expected:
            raise BatchError(f"A machine sees another model or manifest than the first: {dict(self.parts.spec)}")

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        numbers = [int(part) for part in batch["part"]]
        for part in numbers:
            if self.parts.lacks(part, self.retry):
                rows = self.parts.range(part)
                self.parts.commit(part, answer_rows(self.asker, self.method, self.manifest, rows, self.job.batch))
        return {"rows": [len(self.parts.range(part)) for part in numbers]}


def _describe(job: BatchJob) -> BatchFolder:
    """The folder as a machine of the cluster sees it: its dtype depends on whether there is a GPU."""
    return job.parts(job.manifest(), job.load())


def run_distributed(
    job: BatchJob,
    cluster: Cluster,
    retry_errors: bool = False,
    on_start: Callable[[int, int], None] = lambda total, done: None,
    on_rows: Callable[[int], None] = lambda n: None,
) -> BatchDone:
    """Like `job.run`, by actors of a cluster; the folder and the manifest must lie where all of them see them.

    Raises:
        BatchError: an actor failed; otherwise as `job.run`.
    """
    check_packages("foveate batch --ray", "ray", "ray")
    check_folder(job.out)
    job.manifest()  # a wrong one shows before a cluster is started
    job = job.absolute()
    with _connected(cluster) as ray, _told(ray):
        placed = {"num_cpus": cluster.cpus, "num_gpus": cluster.gpus}
        parts: BatchFolder = ray.get(ray.remote(**placed)(_describe).remote(job))
        with parts.held():
            missing = parts.missing(retry_errors)
            computed = sum(len(parts.range(part)) for part in missing)
            on_start(parts.rows, parts.rows - computed)
            if missing:
                items = [{"part": part} for part in missing]
                ray.data.DataContext.get_current().enable_progress_bars = False
                done = ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_BLOCKS)).map_batches(
                    _Worker,
                    fn_constructor_args=(job, parts.hash, retry_errors),
                    batch_size=1,
                    compute=ray.data.ActorPoolStrategy(size=cluster.actors),
                    **placed,
                )
                for row in done.iter_rows():
                    on_rows(int(row["rows"]))
            return BatchDone(parts, computed, parts.errors())


@contextmanager
def _connected(cluster: Cluster) -> Iterator[Any]:
    """The library, connected; a cluster started here ends here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the progress is ours
    ours = not ray.is_initialized()
    if ours:
        local = {} if cluster.address else {"include_dashboard": False}
        try:
            ray.init(address=cluster.address or "local", log_to_driver=False, logging_level="error", **local)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise BatchError(f"No Ray cluster answers at {cluster.address or 'this machine'}: {error}") from error
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _told(ray: Any) -> Iterator[None]:
    """What failed in an actor as it was raised there, if it is an error of ours."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None:
            inner = getattr(cause, "cause", None) or cause.__cause__
            if isinstance(inner, FoveateError):
                raise inner from error
            cause = inner
        raise BatchError(f"A Ray actor failed: {str(error).strip().splitlines()[-1]}") from error
