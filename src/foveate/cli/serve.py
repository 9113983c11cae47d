"""`foveate serve`: a server of OpenAI's protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli.options import Address, Attention, Cpus, Device, Dtype, Gpus, OnRay, check_ray, make_cluster

if TYPE_CHECKING:
    from foveate.cluster.connection import Cluster
    from foveate.serve.job import ServeJob


def serve(
    model: Annotated[str | None, typer.Argument(help="Folder or Hub id; default: the zoo model.")] = None,
    method: Annotated[str, typer.Option(help="A name of `foveate methods`, a tuned foveate.json, or none.")] = "vitcop",
    keep: Annotated[str | None, typer.Option(help="What to keep: 0.11, 1/9, or a number of visual tokens.")] = None,
    module: Annotated[str | None, typer.Option(help="Glimpse module; default: `glimpse` beside the model.")] = None,
    allow_method: Annotated[list[str], typer.Option(help="Further method that requests may choose.")] = [],  # noqa: B006
    keep_range: Annotated[str, typer.Option(help="LOW:HIGH, what requests may choose as keep.")] = "0:1",
    name: Annotated[str | None, typer.Option(help="What clients call the model; default: MODEL.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    api_key_file: Annotated[Path | None, typer.Option(help="Accepted keys, one a line.")] = None,
    anonymous: Annotated[bool, typer.Option("--anonymous", help="Let other machines ask without a key.")] = False,
    kv_memory: Annotated[str | None, typer.Option(help="Most memory of keys and values, such as 4GiB.")] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Answers generated at the same time.")] = 16,
    max_queue: Annotated[int, typer.Option(min=0, help="Requests that may wait besides.")] = 64,
    new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer unless the request says.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer that a request may ask for.")] = 2048,
    time_limit: Annotated[
        float, typer.Option(min=1, max=1e6, help="Seconds from arrival to end; answers are cut then.")
    ] = 300,
    patience: Annotated[
        float, typer.Option(min=1, max=1e6, help="Seconds for a slow client to send or take something.")
    ] = 30,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode and prepare images.")] = 2,
    image_domain: Annotated[list[str], typer.Option(help="Host or host:port that images may come from.")] = [],  # noqa: B006
    image_private: Annotated[bool, typer.Option("--image-private", help="Also at addresses of an intranet.")] = False,
    image_folder: Annotated[Path | None, typer.Option(help="Folder that file: addresses may name.")] = None,
    max_images: Annotated[int, typer.Option(min=0, help="Images and videos of one request.")] = 8,
    max_frames: Annotated[int, typer.Option(min=1, max=768, help="Frames of one video.")] = 32,
    max_megabytes: Annotated[float, typer.Option(min=0.01, max=1e6, help="Size of one image or video.")] = 20,
    max_megapixels: Annotated[float, typer.Option(min=0.01, max=1e6, help="Size of one image or frame.")] = 20,
    max_body: Annotated[float, typer.Option(min=0.01, max=1e6, help="Megabytes of a whole request.")] = 40,
    ray: OnRay = False,
    replicas: Annotated[str, typer.Option(help="With --ray: copies of the model, N or LEAST:MOST.")] = "1",
    autoscaling: Annotated[
        list[str], typer.Option(metavar="FIELD=VALUE", help="With --ray: of Ray Serve's AutoscalingConfig.")
    ] = [],  # noqa: B006
    address: Address = None,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Serve one model over HTTP with OpenAI's protocol, pruned, with requests joining the batch as they come."""
    from foveate import zoo
    from foveate.files.outputs import check_packages

    check_packages("foveate serve", "serve", "fastapi", "uvicorn", "prometheus_client", "httpx2")
    from foveate.serve.job import ServeJob
    from foveate.serve.options import MediaOptions, ServeOptions, check_exposure, parse_size, read_keys
    from foveate.specs.grammar import one_budget

    sizes: dict[str, Any] = {"megabytes": max_megabytes, "megapixels": max_megapixels, "frames": max_frames}
    media = MediaOptions(tuple(image_domain), _folder(image_folder), image_private, max_images, **sizes)
    given: dict[str, Any] = {
        "host": host, "port": port, "name": name or model or zoo.DEFAULT, "methods": tuple(allow_method),
        "keep_range": _range(keep_range), "rows": max_rows, "queue": max_queue, "most_new_tokens": max_new_tokens,
        "new_tokens": min(new_tokens, max_new_tokens), "seconds": time_limit, "patience": patience, "workers": workers,
        "body_megabytes": max_body, "media": media, "kv_bytes": None if kv_memory is None else parse_size(kv_memory),
    }  # fmt: skip
    options = ServeOptions(**given, keys=read_keys(api_key_file) if api_key_file is not None else ())
    check_exposure(options, anonymous)
    budget = one_budget(keep) if keep else None
    job = ServeJob(model or zoo.DEFAULT, method, options, budget, module, dtype, device, attention)
    check_ray(ray, replicas=replicas != "1", autoscaling=autoscaling, address=address, gpus=gpus)
    if ray:
        _run_replicas(job, make_cluster(address, cpus, gpus), replicas, autoscaling)
    else:
        _run(job)


def _run(job: ServeJob) -> None:
    from foveate.serve.run import announce, server

    service = job.load()
    typer.echo(announce(service.options, str(service.method or "none")))
    server(service).run()


def _run_replicas(job: ServeJob, cluster: Cluster, replicas: str, autoscaling: list[str]) -> None:
    from foveate.errors import ConfigurationError
    from foveate.serve.replicas import Scaling, run_replicas
    from foveate.serve.run import announce

    low, _, high = replicas.partition(":")
    pairs = [text.partition("=") for text in autoscaling]
    if not (low.isdecimal() and (high or low).isdecimal()) or not all(sep and value for _, sep, value in pairs):
        raise ConfigurationError("Write --replicas N or LEAST:MOST, and --autoscaling FIELD=VALUE.")
    scaling = Scaling(int(low), int(high or low), {name: value for name, _, value in pairs})

    def ready() -> None:
        typer.echo(f"{replicas} replicas of this: {announce(job.options, job.method)}")

    run_replicas(job, cluster, scaling, ready)


def _range(text: str) -> tuple[float, float]:
    from foveate.errors import ConfigurationError
    from foveate.specs.grammar import parse_keeps

    low, _, high = text.partition(":")
    try:
        found = float(parse_keeps([low])[0]), float(parse_keeps([high])[0])
    except (ConfigurationError, IndexError) as error:
        raise ConfigurationError(f"--keep-range {text}: write LOW:HIGH, such as 1/9:1/2.") from error
    if not 0 <= found[0] <= found[1] <= 1:
        raise ConfigurationError(f"--keep-range {text}: LOW and HIGH are shares, 0 <= LOW <= HIGH <= 1.")
    return found


def _folder(folder: Path | None) -> Path | None:
    from foveate.errors import ConfigurationError

    if folder is not None and not folder.is_dir():
        raise ConfigurationError(f"--image-folder {folder}: there is no such folder.")
    return folder
