"""Pictures from where the operator allows, and not from anywhere else."""

from __future__ import annotations

import asyncio
import io
import ipaddress
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from foveate.serve.fetch import Fetcher, is_public
from foveate.serve.options import MediaOptions, ServeOptions
from foveate.serve.pictures import Pictures
from foveate.serve.problems import RequestError
from tests.serve.live import body, data_uri, post, scenes, served


def png(size: tuple[int, int] = (48, 32)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


class Host(BaseHTTPRequestHandler):
    """A web server with pictures, redirects and worse."""

    seen: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["Host"]))
        port = self.server.server_address[1]
        redirects = {
            "/moved": "/a.png", "/loop": "/loop", "/inside": f"http://127.0.0.1:{port}/a.png", "/file": "file:///etc/passwd",
            "/other": "https://example.org/a.png",
        }  # fmt: skip
        if self.path in redirects:
            self.send_response(302)
            self.send_header("Location", redirects[self.path])
            self.end_headers()
            return
        self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()
        if self.path == "/endless":
            try:
                while True:
                    self.wfile.write(bytes(65536))
            except OSError:
                return
        if self.path == "/slow":
            threading.Event().wait(3)
        self.wfile.write(png())

    def log_message(self, *given: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def fetch(url: str, **options: Any) -> Image.Image:
    pictures = Pictures(MediaOptions(megabytes=1, seconds=1, **options))
    return pictures.open(asyncio.run(pictures.fetch(url)))


def test_a_listed_host(port: int) -> None:
    image = fetch(f"http://localhost:{port}/a.png?x=1", domains=(f"localhost:{port}",), private=True)
    assert image.size == (48, 32)
    assert Host.seen[-1] == ("/a.png?x=1", f"localhost:{port}")
    assert fetch(f"http://LOCALHOST:{port}/moved", domains=(f"localhost:{port}",), private=True).size == (48, 32)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/loop", "redirects too often"),
        ("/inside", "does not fetch from there"),
        ("/file", "no address that can be fetched"),
        ("/other", "does not fetch from there"),
        ("/none", "answered 404"),
        ("/endless", "more than 1 MB"),
        ("/slow", "too long"),
    ],
)
def test_what_a_listed_host_may_not_do(port: int, path: str, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        fetch(f"http://localhost:{port}{path}", domains=(f"localhost:{port}",), private=True)


def test_names_that_point_inside(port: int) -> None:
    before = len(Host.seen)
    with pytest.raises(RequestError, match="not public"):  # the name is listed; where it leads is not
        fetch(f"http://localhost:{port}/a.png", domains=(f"localhost:{port}",))
    for url in (
        f"http://127.0.0.1:{port}/a.png", f"http://localhost.:{port}/a.png", f"http://a@localhost:{port}/a.png",
        f"http://localhost:{port}@127.0.0.1:{port}/", f"http://localhost:{port + 1}/a.png", "http://localhost/a.png",
        f"http://localhost\\@127.0.0.1:{port}/", f"http://localhost:{port}/\r\nHost: x", f"http://ⓛocalhost:{port}/a.png",
        "http://localhost:99999/a.png", "http://[::1/a.png", "http:///a.png",
    ):  # fmt: skip
        with pytest.raises(RequestError):
            fetch(url, domains=(f"localhost:{port}",), private=True)
    assert len(Host.seen) == before


def test_the_checked_address_is_the_one_connected_to(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that resolves to this machine at its second asking: it is asked once."""
    asked: list[str] = []

    def getaddrinfo(host: Any, number: Any, *rest: Any, **more: Any) -> Any:
        asked.append(str(host))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", int(number or 0)))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    name = f"rebound.example:{port}"
    assert fetch(f"http://{name}/a.png", domains=(name,), private=True).size == (48, 32)
    assert asked.count("rebound.example") == 1


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
     "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2001:db8::1"],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_ports_of_a_domain() -> None:
    fetcher = Fetcher(MediaOptions(domains=("pics.example", "odd.example:8443")))
    assert (
        fetcher.parse("https://pics.example/a?b=c").at(ipaddress.ip_address("2606::1")) == "https://[2606::1]:443/a?b=c"
    )
    assert fetcher.parse("https://odd.example:8443/").authority == "odd.example:8443"
    for url in (
        "http://pics.example:22/",
        "https://odd.example/",
        "https://sub.pics.example/",
        "https://pics.example.evil/",
    ):
        with pytest.raises(RequestError):
            fetcher.parse(url)


def test_a_folder(tmp_path: Path) -> None:
    folder, secret = tmp_path / "pictures", tmp_path / "secret.png"
    (folder / "sub dir").mkdir(parents=True)
    for file in (folder / "a.png", folder / "sub dir" / "b.png", secret):
        file.write_bytes(png())
    (folder / "big.png").write_bytes(png() + bytes(2_000_000))
    (folder / "link.png").symlink_to(secret)
    (folder / "text.png").write_text("no picture")
    for url in (
        "file:///a.png",
        "file:///sub%20dir/b.png",
        f"file://{folder}/a.png",
        "file://localhost/a.png",
        "FILE:///a.png",
    ):
        assert fetch(url, folder=folder).size == (48, 32)
    answers = set()
    for url in (
        "file:///../secret.png", "file:///%2e%2e/secret.png", f"file://{secret}", "file:///link.png", "file:///none.png",
        "file:///sub dir", "file:///", "file://host/a.png", "file:///etc/passwd", "file:///a.png%00.png",
        "file:///dev/zero", "file:///" + "x" * 5000, "file:a.png", "file:///%ff",
    ):  # fmt: skip
        with pytest.raises(RequestError) as caught:
            fetch(url, folder=folder)
        answers.add(str(caught.value))
    assert len(answers) == 1  # nobody learns what there is elsewhere
    for url, why in (("file:///big.png", "more than 1 MB"), ("file:///text.png", "no picture of a known format")):
        with pytest.raises(RequestError, match=why):
            fetch(url, folder=folder)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_formats(kind: str) -> None:
    image = scenes(1)[0][0]
    assert Pictures(MediaOptions()).open(data_uri(image, kind)).size == image.size


def test_pictures_from_a_folder_and_a_host_are_answered_alike(port: int, tmp_path: Path) -> None:
    image, question = scenes(1)[0]
    image.save(tmp_path / "scene.png")
    media = MediaOptions(folder=tmp_path, domains=(f"localhost:{port}",), private=True)
    with served(ServeOptions(media=media)) as (address, _):
        replies = [post(address, body([source], question)).json() for source in (image, "file:///scene.png")]
        assert replies[0]["choices"] == replies[1]["choices"]
        assert post(address, body([f"http://localhost:{port}/a.png"])).status_code == 200
