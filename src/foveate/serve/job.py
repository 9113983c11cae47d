"""What is served: names and numbers, from which any process makes a service."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from foveate.inference.answer import Asker
from foveate.serve.choices import MethodChoices
from foveate.serve.options import ServeOptions, default_kv_bytes
from foveate.serve.service import Service


@dataclass(frozen=True)
class ServeJob:
    """What to serve; it can be sent to another machine that sees the same files.

    Attributes:
        model: folder, Hub id or name of the zoo.
        method, keep, module: the server's own pruning.
        options: limits, and what requests may choose.
    """

    model: str
    method: str
    options: ServeOptions
    keep: float | int | None = None
    module: str | None = None
    dtype: str | None = None
    device: str | None = None
    attention: str | None = None

    def absolute(self) -> ServeJob:
        """The same for a process with another working directory."""
        media = self.options.media
        folder = media.folder and media.folder.resolve()
        return replace(
            self,
            model=_absolute(self.model),
            method=str(Path(self.method).resolve()) if Path(self.method).is_file() else self.method,
            module=self.module and _absolute(self.module),
            options=replace(self.options, media=replace(media, folder=folder)),
        )

    def load(self) -> Service:
        """The model with its scheduler, not started yet.

        Raises:
            CheckpointError, UnsupportedModelError, DeviceError, ConfigurationError, MissingTapError.
        """
        asker = Asker.load(self.model, dtype=self.dtype, device=self.device, attn_implementation=self.attention)
        options = self.options
        if options.kv_bytes is None:
            options = replace(options, kv_bytes=default_kv_bytes(asker.model.device))
        module = {} if self.module is None else {"module": self.module}
        choices = MethodChoices(asker.model, self.method, self.keep, options.methods, options.keep_range, **module)
        return Service(asker, choices, options)


def _absolute(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).exists() else name
