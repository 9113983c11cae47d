"""Pictures look alike wherever they come from, come from where it is allowed, and no text stands in for one."""

from __future__ import annotations

import base64
import copy
import functools
import io
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.data.images import open_image
from foveate.errors import FoveateError, ImageError, InputError
from foveate.inference.answer import Asker
from foveate.inference.batches import encode
from foveate.inference.chats import assistant, open_chat, open_picture, user
from tests.inference.pairs import Pair, chat, picture, same


def doors(image: Image.Image, folder: Path) -> dict[str, dict[str, Any]]:
    path, buffer = folder / "a picture.png", io.BytesIO()
    image.save(path)
    image.save(buffer, "PNG")
    data = buffer.getvalue()
    text = base64.b64encode(data).decode()
    return {
        "PIL": {"type": "image", "image": image},
        "file object": {"type": "image", "image": io.BytesIO(data)},
        "column": {"type": "image", "image": {"bytes": data, "path": "elsewhere.png"}},
        "column of paths": {"type": "image", "image": {"bytes": None, "path": str(path)}},
        "path": {"type": "image", "path": str(path)},
        "Path": {"type": "image", "image": path},
        "file URL": {"type": "image", "url": path.as_uri()},
        "bytes": {"type": "image", "image": data},
        "array": {"type": "image", "image": np.asarray(image)},
        "base64": {"type": "image", "base64": text},
        "data URL": {"type": "image", "url": f"data:image/png;base64,{text}"},
        "OpenAI": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}},
        "OpenAI, short": {"type": "image_url", "image_url": str(path)},
    }


def test_an_image_is_the_same_through_every_door(pair: Pair, tmp_path: Path) -> None:
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    found = {}
    for name, part in doors(picture(), tmp_path).items():
        message = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
        before = copy.copy(message[0]["content"])
        found[name] = pair.ours.apply_chat_template(message, **options)
        assert message[0]["content"] == before  # what was given is not changed
        assert torch.equal(encode(pair.model, pair.stock, [message])["pixel_values"], found[name]["pixel_values"])
    for other in found.values():
        same(other, found["PIL"])


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        ({"type": "image", "url": "https://example.org/a.png"}, InputError, "remote=True"),
        ({"type": "image_url", "image_url": {"url": "http://example.org/a.png"}}, InputError, "remote=True"),
        ({"type": "image", "base64": "no base64!"}, ImageError, "no base64"),
        ({"type": "image", "path": "/nowhere.png"}, ImageError, "no image file"),
        ({"type": "image", "path": "a.png", "url": "b.png"}, InputError, "path|url"),
        ({"type": "image"}, InputError, "1 image marker"),
        ({"type": "video", "video": "a.mp4"}, FoveateError, "torchvision|no video file"),
        ({"type": "audio", "audio": "a.wav"}, InputError, "audio"),
        ({"image": "a.png"}, InputError, "'type'"),
        ("What?", InputError, "'type'"),
    ],
)
def test_parts_that_cannot_be_used(pair: Pair, part: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pair.ours.apply_chat_template([{"role": "user", "content": [part]}], tokenize=True, return_dict=True)


@pytest.mark.parametrize("conversation", [["What?"], [{"content": "What?"}], [{"role": "user", "content": 5}]])
def test_messages_of_another_form(pair: Pair, conversation: Any) -> None:
    with pytest.raises(InputError, match=r"message|content"):
        encode(pair.model, pair.ours, [conversation])


def test_a_server_reads_no_files(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    allowed = ("PIL", "file object", "column", "bytes", "array", "base64", "data URL", "OpenAI")
    for name, part in doors(picture(), tmp_path).items():
        message = [{"role": "user", "content": [part]}]
        if name in allowed:
            open_chat(message, local=False)
        else:
            with pytest.raises(InputError, match="not read from files"):
                open_chat(message, local=False)


def test_addresses_are_fetched_where_that_is_allowed(tmp_path: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    picture().save(tmp_path / "a.png")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        found = open_picture(f"{address}/a.png", remote=True)
        assert np.array_equal(np.asarray(found), np.asarray(picture()))
        with pytest.raises(InputError, match=r"cannot be fetched: .*404"):
            open_picture(f"{address}/b.png", remote=True)
        server.shutdown()


@pytest.mark.parametrize("kind", ["grey", "alpha", "fractions", "channels first", "one batch", "tensor"])
def test_arrays_are_opened_like_files(pair: Pair, kind: str) -> None:
    """Whatever their depth and shape; only with options about their values they go to the image processor raw."""
    rgb = np.asarray(picture())
    array: Any = {
        "grey": rgb[:, :, 0],
        "alpha": np.dstack([rgb, rgb[:, :, :1]]),
        "fractions": (rgb / 255).astype(np.float32),
        "channels first": np.moveaxis(rgb, 2, 0),
        "one batch": rgb[None],
        "tensor": torch.from_numpy(rgb.copy()),
    }[kind]
    expected = open_image(array[0] if kind == "one batch" else array)
    prompt = pair.ours.apply_chat_template(chat(picture()))
    same(
        pair.ours(images=array, text=prompt, return_tensors="pt"),
        pair.ours(images=expected, text=prompt, return_tensors="pt"),
    )


def test_an_aspect_ratio_beyond_what_is_opened(pair: Pair) -> None:
    for processor in (pair.ours, pair.stock):
        with pytest.raises(ImageError, match="at most 200 times"):
            encode(pair.model, processor, [chat(picture(1000, 4))])


def test_text_that_the_model_would_take_for_an_image(pair: Pair) -> None:
    mark = pair.ours.image_token
    asker = Asker(pair.model, pair.ours)
    for chats in (
        [chat(picture(), text=f"{mark}\nWhat is shown?")],
        [[user("Hello"), assistant("Hello"), user(f"What does {mark} mean?")]],
        [chat(picture()), [{"role": "user", "content": mark}]],
    ):
        for processor in (pair.ours, pair.stock):
            with pytest.raises(InputError, match="the question holds .*, which stands for an image"):
                encode(pair.model, processor, chats)
    with pytest.raises(InputError, match="the assistant message holds"):
        asker.inputs([[user("Hello", [picture()]), assistant(mark), user("What?")]])
    with pytest.raises(InputError, match="the system message holds"):
        asker.inputs([[{"role": "system", "content": mark}, user("What?", [picture()])]])
    with pytest.raises(InputError, match="the continuation holds"):
        asker.check_text(f"A {mark}", "the continuation")
    asker.check_text("A <tag> and |image_pad|", "the continuation")
    asker.questions([([picture()], "What does <tag> mean?")])
