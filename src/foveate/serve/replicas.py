"""The same server as a Ray Serve deployment: replicas of one model behind Ray's proxies.

Ray hands the requests on as they are (ASGI), so a replica is what `foveate serve` is in one process: its own scheduler,
places, limits and keys. What is between client and replica is Ray's.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI

from foveate.cluster.connection import Cluster, told
from foveate.errors import ClusterError, ConfigurationError
from foveate.serve.app import build
from foveate.serve.job import ServeJob

NAME = "foveate"
REFUSALS = 64
"""Requests that a replica takes in beyond its places, to refuse them itself, with 429 and when to come back."""
MOST_UNASSIGNED = 1024
"""Requests that a proxy holds until a replica takes them; beyond that it answers 503."""
PROXY_SECONDS = "60"
"""For each try of Ray's to reach a proxy that starts. After three of Ray's own 5 s, which a busy machine needs for its
imports alone, the proxy would be killed, and the start with it."""


@dataclass(frozen=True)
class Scaling:
    """How many replicas.

    Attributes:
        least, most: equal for a fixed number; otherwise Ray chooses between them.
        autoscaling: further fields of Ray's `AutoscalingConfig`.
    """

    least: int = 1
    most: int = 1
    autoscaling: Mapping[str, str] = field(default_factory=dict)

    def options(self, rows: int) -> dict[str, Any]:
        """As a deployment takes it.

        Args:
            rows: answers of one replica at the same time: with so many requests each, a further replica is worth it.

        Raises:
            ConfigurationError: no number of replicas, or nothing that Ray's autoscaling knows.
        """
        from ray.serve.config import AutoscalingConfig

        if not 0 <= self.least <= self.most or not self.most:
            raise ConfigurationError(f"--replicas {self.least}:{self.most}: write N or LEAST:MOST, LEAST <= MOST.")
        if self.least == self.most:
            if self.autoscaling:
                raise ConfigurationError("--autoscaling is for a range of replicas: --replicas LEAST:MOST.")
            return {"num_replicas": self.most}
        unknown = sorted(self.autoscaling.keys() - AutoscalingConfig.model_fields.keys())
        if unknown:
            raise ConfigurationError(
                f"--autoscaling: Ray knows no {', '.join(unknown)}; it knows "
                f"{', '.join(sorted(AutoscalingConfig.model_fields))}."
            )
        given = {"target_ongoing_requests": rows} | dict(self.autoscaling)
        try:
            found = AutoscalingConfig(**given | {"min_replicas": self.least, "max_replicas": self.most})
        except ValueError as error:
            raise ConfigurationError(f"--autoscaling: {error}") from error
        return {"autoscaling_config": found, "num_replicas": None}


def application(job: ServeJob, cluster: Cluster, scaling: Scaling) -> Any:
    """The deployment, bound: give it to `ray.serve.run`.

    Raises:
        ConfigurationError: see `Scaling.options`.
    """
    from ray import serve

    def app() -> FastAPI:
        return build(job.load())

    class Replica:
        """A replica is healthy while its scheduler lives; Ray replaces one that is not."""

        def check_health(self) -> None:
            if not self.app.state.service.scheduler.alive:  # type: ignore[attr-defined]
                raise RuntimeError("the scheduler has ended")

    options = job.options
    deployment = serve.deployment(
        serve.ingress(app)(Replica),
        name=NAME,
        max_ongoing_requests=options.rows + options.queue + REFUSALS,
        max_queued_requests=MOST_UNASSIGNED,
        graceful_shutdown_timeout_s=options.longest,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options=dict(cluster.share),
        **scaling.options(options.rows),
    )
    return deployment.bind()


def run_replicas(job: ServeJob, cluster: Cluster, scaling: Scaling, on_ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; then no new requests are taken, and those that replicas have are finished.

    Args:
        on_ready: called when the replicas answer.

    Raises:
        ClusterError: none answers, it lacks room, another `foveate` runs there, or the replicas do not start.
        FoveateError: what `ServeJob.load` raises, as it was raised over there.
    """
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", PROXY_SECONDS)  # goes to a cluster started here
    with cluster.connected() as ray, _sigterm_interrupts(), told(ray):
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # what is said is ours
        bound = application(job.absolute(), cluster, scaling)
        _check_room(ray, cluster, scaling)
        ray.get(ray.remote(**cluster.share)(_check).remote(job.absolute()))
        serve.start(http_options={"host": job.options.host, "port": job.options.port})
        if NAME in serve.status().applications:
            raise ClusterError(f"An application named {NAME} runs on this cluster already: end it first.")
        with suppress(KeyboardInterrupt), _deployed(serve, bound, cluster, job.options.longest):
            on_ready()
            while True:
                signal.pause()


@contextmanager
def _deployed(serve: Any, bound: Any, cluster: Cluster, seconds: float) -> Iterator[None]:
    try:
        try:
            serve.run(bound, name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise ClusterError(f"The replicas did not start: {error}") from error
        yield
    finally:
        end = time.monotonic() + seconds
        with suppress(TimeoutError):  # Ray waits for a minute; replicas may have longer to finish what they have
            serve.delete(NAME)
        while NAME in serve.status().applications and time.monotonic() < end:
            time.sleep(0.5)
        if cluster.address is None:
            serve.shutdown()


def _check(job: ServeJob) -> None:
    """A model or method that cannot be served shows here, as an error of ours; a replica would be tried again."""
    job.load()


def _check_room(ray: Any, cluster: Cluster, scaling: Scaling) -> None:
    """Replicas beyond what this machine has would be waited for without an end; a cluster may grow."""
    if cluster.address is not None:
        return
    there = ray.cluster_resources()
    for name, each in (("CPU", cluster.cpus), ("GPU", cluster.gpus)):
        need, has = each * max(1, scaling.least), there.get(name, 0)
        if need > has:
            raise ClusterError(
                f"The replicas need {need:g} {name}s, this machine has {has:g}. Ask for fewer, or shares."
            )


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM as Ctrl-C; a second one ends what is still being finished."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
