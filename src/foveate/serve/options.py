"""What the operator decides: addresses, limits, where pictures and videos may come from."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from foveate.errors import ConfigurationError

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])i?)?B?", re.IGNORECASE)


@dataclass(frozen=True)
class MediaOptions:
    """Where pictures and videos may come from, and how large they may be. By default only from the request itself.

    Attributes:
        domains: hosts, or host:port, that they are fetched from; without a port 80 and 443 are allowed.
        folder: files below it may be named as `file:` addresses.
        private: also fetch from addresses that are not public (an intranet, this machine).
        images: most pictures and videos of one request.
        frames: most frames of one video.
        megabytes, megapixels: of one picture or video, of one of its frames.
        seconds: to fetch one, redirects included, and to decode a video.
        redirects: followed at most; each is checked as the first address was.
    """

    domains: tuple[str, ...] = ()
    folder: Path | None = None
    private: bool = False
    images: int = 8
    megabytes: float = 20.0
    megapixels: float = 20.0
    seconds: float = 10.0
    redirects: int = 3
    frames: int = 32

    @property
    def most_bytes(self) -> int:
        return int(self.megabytes * 1e6)

    @property
    def most_pixels(self) -> int:
        return int(self.megapixels * 1e6)


@dataclass(frozen=True)
class ServeOptions:
    """How the server behaves.

    Attributes:
        host, port: where it listens.
        name: what clients call the model.
        methods: names that requests may choose besides the server's own and `none`.
        keep_range: lowest and highest keep that requests may choose.
        rows: answers that are generated at the same time.
        queue: requests that may wait besides.
        kv_bytes: of all key and value tensors between steps; None: a share of the memory there is.
        new_tokens, most_new_tokens: of one answer, by default and at most.
        seconds: from a request's arrival to its end; an answer that runs out of time is cut.
        patience: seconds for a client to send its request, or to take a piece of a stream.
        workers: threads that decode and prepare pictures.
        body_megabytes: of a whole request.
        keys: accepted API keys; none: everybody may ask.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str = "foveate"
    methods: tuple[str, ...] = ()
    keep_range: tuple[float, float] = (0.0, 1.0)
    rows: int = 16
    queue: int = 64
    kv_bytes: int | None = None
    new_tokens: int = 256
    most_new_tokens: int = 2048
    seconds: float = 300.0
    patience: float = 30.0
    workers: int = 2
    body_megabytes: float = 40.0
    keys: tuple[str, ...] = field(default=(), repr=False)
    media: MediaOptions = MediaOptions()

    @property
    def longest(self) -> float:
        """Seconds that a request which was let in can take to its last byte; so long a shutdown waits."""
        return self.seconds + 2 * self.patience

    @property
    def most_body(self) -> int:
        return int(self.body_megabytes * 1e6)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(options: ServeOptions, anonymous: bool) -> None:
    """Refuse to answer a whole network without a key, unless that is asked for.

    Raises:
        ConfigurationError: see above.
    """
    if not is_loopback(options.host) and not options.keys and not anonymous:
        raise ConfigurationError(
            f"--host {options.host} lets other machines ask: give --api-key-file, or --anonymous if anyone may."
        )


def read_keys(file: Path) -> tuple[str, ...]:
    """API keys of a file, one a line; empty lines and lines that begin with # are left out.

    Raises:
        ConfigurationError: unreadable, without a key, or a key that no header can hold. No message repeats a key.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--api-key-file {file} cannot be read ({type(error).__name__}).") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigurationError(f"--api-key-file {file} holds no key: write one a line.")
    for number, key in enumerate(keys, 1):
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigurationError(f"--api-key-file {file}: key {number} holds spaces or letters beyond ASCII.")
    return keys


def parse_size(text: str) -> int:
    """`"4GiB"`, `"500 MB"` or `"1000000"` -> bytes (K, M, G, T are powers of 1,024).

    Raises:
        ConfigurationError: no size.
    """
    found = SIZE.fullmatch(text.strip())
    if found is None or float(found[1]) <= 0:
        raise ConfigurationError(f"--kv-memory {text}: write a number of bytes, such as 4GiB or 500MB.")
    return int(float(found[1]) * 1024 ** (" KMGT".index(found[2].upper()) if found[2] else 0))


def default_kv_bytes(device: torch.device) -> int:
    """Half of what is free on an accelerator, an eighth of a computer's memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] // 2)
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8)
