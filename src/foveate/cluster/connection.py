"""A connection to a Ray cluster, and what failed over there as an error of ours."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from foveate.errors import ClusterError, FoveateError


@dataclass(frozen=True)
class Cluster:
    """Where to run.

    Attributes:
        address: of a running cluster (`auto`, `host:6379`, `ray://host:10001`); None: one started for this run.
        cpus, gpus: of each model.
    """

    address: str | None = None
    cpus: float = 1
    gpus: float = 0

    @property
    def share(self) -> Mapping[str, float]:
        """What Ray reserves for one model."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """The library, connected; a cluster started here ends here.

        Raises:
            ClusterError: none answers at the address.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        ours = not ray.is_initialized()
        if ours:
            local = {} if self.address else {"include_dashboard": False}
            try:
                ray.init(address=self.address or "local", log_to_driver=False, logging_level="error", **local)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ClusterError(f"No Ray cluster answers at {self.address or 'this machine'}: {error}") from error
        try:
            yield ray
        finally:
            if ours:
                ray.shutdown()


@contextmanager
def told(ray: Any) -> Iterator[None]:
    """What failed over there as it was raised, if it is an error of ours.

    Raises:
        ClusterError: it is none.
    """
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None:
            inner = getattr(cause, "cause", None) or cause.__cause__
            if isinstance(inner, FoveateError):
                raise inner from error
            cause = inner
        raise ClusterError(f"A Ray actor failed: {str(error).strip().splitlines()[-1]}") from error
