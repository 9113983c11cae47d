"""Pictures and videos of requests: from where they may come, how large they may be; checked before decoding."""

from __future__ import annotations

import base64
import binascii
import io
import re
import stat
import warnings
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image

from foveate.data.images import open_image
from foveate.errors import ImageError
from foveate.serve.fetch import Fetcher
from foveate.serve.options import MediaOptions
from foveate.serve.problems import RequestError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Decoders that a request may reach: fewer than those that a user's own files do."""
DATA = r"data:%s/[\w.+-]{1,40};base64,"


class MediaReader:
    """Gets the bytes of what requests hold, from where the operator allows.

    Args:
        options: where from, how large.
        kind: `image` or `video`, as in the parts of messages.
        example: of a data URI, for messages.
    """

    def __init__(self, options: MediaOptions, kind: str, example: str) -> None:
        self.options, self.kind, self._example = options, kind, example
        self._data = re.compile(DATA % kind, re.IGNORECASE)
        self._folder = None if options.folder is None else options.folder.resolve()
        self._fetcher = Fetcher(options, kind)

    async def fetch(self, url: str) -> str | bytes:
        """What stands at an address on the network; any other address unchanged, for `open`.

        Raises:
            RequestError: an address that is not allowed, does not answer or answers too much.
        """
        if url[:8].lower().startswith(("http://", "https://")):
            return await self._fetcher.get(url)
        return url

    def read(self, source: str | bytes) -> bytes:
        """The encoded file. Blocks: call it in a worker thread.

        Args:
            source: a data URI, a `file:` address or the bytes themselves.

        Raises:
            RequestError: not allowed, not there or too large.
        """
        raw = source if isinstance(source, bytes) else self._read(source)
        if len(raw) > self.options.most_bytes:
            raise self._too_large()
        return raw

    def _read(self, url: str) -> bytes:
        if found := self._data.match(url[:64]):
            if len(url) - found.end() > (self.options.most_bytes * 4) // 3 + 4:
                raise self._too_large()
            try:
                return base64.b64decode(url[found.end() :], validate=True)
            except (binascii.Error, ValueError) as error:
                raise self._refused("the data URI holds no valid base64") from error
        if url[:5].lower() == "file:":
            return self._read_file(url)
        raise self._refused(f"write a data URI ({self._example})")

    def _read_file(self, url: str) -> bytes:
        """A file below the folder. One answer for all that is not there: what exists elsewhere is nobody's business."""
        if self._folder is None:
            raise self._refused("this server reads no files; send a data URI")
        nothing = self._refused(f"there is no such {self.kind} in the server's folder")
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
            raise nothing
        try:
            place = Path(unquote(parts.path, errors="strict"))
            file = (
                self._folder / place.relative_to("/") if not place.is_relative_to(self._folder) else place
            ).resolve()
            if not file.is_relative_to(self._folder):
                raise nothing
            about = file.stat()
            if not stat.S_ISREG(about.st_mode):
                raise nothing
            if about.st_size > self.options.most_bytes:
                raise self._too_large()
            return file.read_bytes()
        except (OSError, ValueError) as error:
            if isinstance(error, RequestError):
                raise
            raise nothing from error

    def _too_large(self) -> RequestError:
        return self._refused(f"more than {self.options.megabytes:g} MB; send a smaller {self.kind}")

    def _refused(self, why: str) -> RequestError:
        text = f"{self.kind}_url: {why}.".replace("..", ".")
        return RequestError(text, param="messages", code=f"invalid_{self.kind}")


class PictureReader(MediaReader):
    """Reads the pictures of requests."""

    def __init__(self, options: MediaOptions) -> None:
        super().__init__(options, "image", "data:image/png;base64,...")

    def open(self, source: str | bytes) -> Image.Image:
        """The picture itself, upright and RGB. Blocks: call it in a worker thread.

        Args:
            source: as `read` takes.

        Raises:
            RequestError: not allowed, too large, or no picture.
        """
        raw = self.read(source)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
                image = Image.open(io.BytesIO(raw), formats=FORMATS)  # reads the header only
        except Image.DecompressionBombError as error:
            raise self._refused(f"too many pixels; the limit is {self.options.megapixels:g} megapixels") from error
        except Exception as error:  # decoders raise anything at all on hostile bytes
            raise self._refused(f"no picture of a known format ({', '.join(FORMATS)})") from error
        try:
            with image:
                return open_image(image, max_pixels=self.options.most_pixels)
        except ImageError as error:
            raise self._refused(str(error)) from error
