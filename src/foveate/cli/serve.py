"""`foveate serve`: a server of OpenAI's protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


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
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds from arrival to end; answers are cut then.")] = 300,
    patience: Annotated[float, typer.Option(min=1, help="Seconds for a slow client to send or take something.")] = 30,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode and prepare images.")] = 2,
    image_domain: Annotated[list[str], typer.Option(help="Host or host:port that images may come from.")] = [],  # noqa: B006
    image_private: Annotated[bool, typer.Option("--image-private", help="Also at addresses of an intranet.")] = False,
    image_folder: Annotated[Path | None, typer.Option(help="Folder that file: addresses may name.")] = None,
    max_images: Annotated[int, typer.Option(min=0, help="Images and videos of one request.")] = 8,
    max_frames: Annotated[int, typer.Option(min=1, max=768, help="Frames of one video.")] = 32,
    max_megabytes: Annotated[float, typer.Option(min=0.01, help="Size of one image or video.")] = 20,
    max_megapixels: Annotated[float, typer.Option(min=0.01, help="Size of one image or frame.")] = 20,
    max_body: Annotated[float, typer.Option(min=0.01, help="Megabytes of a whole request.")] = 40,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16; default: float32 on CPU.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, auto.")] = None,
    attention: Annotated[str | None, typer.Option(help="eager, sdpa, flash_attention_2.")] = None,
) -> None:
    """Serve one model over HTTP with OpenAI's protocol, pruned, with requests joining the batch as they come."""
    from dataclasses import replace

    from foveate import zoo
    from foveate.files.outputs import check_packages
    from foveate.inference.answer import Asker

    check_packages("foveate serve", "serve", "fastapi", "uvicorn", "prometheus_client", "httpx2")
    from foveate.serve.choices import MethodChoices
    from foveate.serve.options import (
        MediaOptions,
        ServeOptions,
        check_exposure,
        default_kv_bytes,
        parse_size,
        read_keys,
    )
    from foveate.serve.run import announce, server
    from foveate.serve.service import Service
    from foveate.specs.grammar import one_budget

    sizes: dict[str, Any] = {"megabytes": max_megabytes, "megapixels": max_megapixels, "frames": max_frames}
    media = MediaOptions(tuple(image_domain), _folder(image_folder), image_private, max_images, **sizes)
    given: dict[str, Any] = {
        "host": host, "port": port, "name": name or model or zoo.DEFAULT, "methods": tuple(allow_method),
        "keep_range": _range(keep_range), "rows": max_rows, "queue": max_queue, "most_new_tokens": max_new_tokens,
        "new_tokens": min(new_tokens, max_new_tokens), "seconds": time_limit, "patience": patience, "workers": workers,
        "body_megabytes": max_body, "media": media,
    }  # fmt: skip
    options = ServeOptions(**given, keys=read_keys(api_key_file) if api_key_file is not None else ())
    check_exposure(options, anonymous)
    weight = None if kv_memory is None else parse_size(kv_memory)
    asker = Asker.load(model or zoo.DEFAULT, dtype=dtype, device=device, attn_implementation=attention)
    weight = default_kv_bytes(asker.model.device) if weight is None else weight
    own: dict[str, Any] = {"keep": one_budget(keep) if keep else None} | ({"module": module} if module else {})
    choices = MethodChoices(asker.model, method, allowed=options.methods, keep_range=options.keep_range, **own)
    service = Service(asker, choices, replace(options, kv_bytes=weight))
    typer.echo(announce(service.options, str(choices.default or "none"), weight))
    server(service).run()


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
