"""`prune`, `attach` and `detach` as users call them: a method is an object, a name or a tuned file."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from foveate.core.method import Method
from foveate.engine import attach as engine
from foveate.errors import ConfigurationError
from foveate.inference.weights import warn_if_tuned_elsewhere
from foveate.specs import tuned
from foveate.specs.choose import choose_method
from foveate.trace.trace import Trace

Choice = Method | str | Path | None
"""What users may give as a method."""


class PruningBlock(AbstractContextManager[Trace]):
    """What `prune` returns: a method in force within its `with` block. Without one it does nothing, and says so."""

    def __init__(self, block: AbstractContextManager[Trace]) -> None:
        self._block, self._entered = block, False

    def __enter__(self) -> Trace:
        self._entered = True
        return self._block.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._block.__exit__(kind, error, traceback)

    def __del__(self) -> None:
        if not self._entered:
            warnings.warn(
                "foveate.prune(...) prunes nothing by itself: write `with foveate.prune(...) as trace:` around "
                "`generate`, or call foveate.attach(...).",
                stacklevel=2,
            )


def prune(
    model: nn.Module,
    method: Choice,
    *,
    keep: float | int | None = None,
    full_length: bool = False,
    every_thread: bool = False,
    **parameters: Any,
) -> PruningBlock:
    """Prune visual tokens of `model` within a `with` block.

    Args:
        model: a stock transformers model of a supported family; it is not changed.
        method: a configured method, a name of `foveate methods` (`"vitcop"`), the path of a `foveate.json` written
            by `foveate tune`, or None for no new pruning (a pruned KV cache can be continued).
        keep: with a name, what to keep: a ratio in (0, 1] or a whole number of visual tokens.
        full_length: return hidden states and logits of the unpruned length, zero where a token was dropped, so that
            `labels` fit: for training. Gradients flow through; run the backward pass inside the block if layers
            are checkpointed.
        every_thread: also prune calls in threads that opened no block themselves.
        parameters: with a name, the method's other parameters.

    Returns:
        A context manager; what stands after its `as` is a `Trace`, filled by every prefill inside the block.

    The innermost block of the current context wins; a worker thread belongs to it when it is started with
    `contextvars.copy_context().run`.

    Raises:
        UnsupportedModelError: unknown family, compiled model, or a part is missing.
        ConfigurationError: unknown name or parameter, or a configuration that does not fit the model.
        MissingTapError: the family cannot give what the method reads.
    """
    chosen = resolve(model, method, keep, **parameters)
    return PruningBlock(engine.prune(model, chosen, full_length=full_length, every_thread=every_thread))


def attach(
    model: nn.Module,
    method: Choice,
    *,
    keep: float | int | None = None,
    full_length: bool = False,
    **parameters: Any,
) -> engine.Attached:
    """Put a method in force until `detach`, for every thread: the form for servers.

    Args:
        model: as in `prune`.
        method: as in `prune`.
        keep: as in `prune`.
        full_length: as in `prune`.
        parameters: as in `prune`.

    Returns:
        A handle; its `trace` holds the latest prefill of the current thread.

    Raises:
        SessionError: if a method is attached already; otherwise as `prune`.
    """
    return engine.attach(model, resolve(model, method, keep, **parameters), full_length=full_length)


def detach(model: nn.Module) -> None:
    """Take an attached method off; the model is exactly as before.

    Raises:
        SessionError: if nothing is attached.
    """
    engine.detach(model)


def name_of(model: Any) -> str:
    """The folder or Hub id that a model was loaded from, empty if that is not known."""
    return str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")


def resolve(model: Any, method: Choice, keep: float | int | None = None, **parameters: Any) -> Method | None:
    """The method itself. A foveate.json that was measured on other weights than `model`'s warns.

    Raises:
        ConfigurationError, TunedFileError: see `choose_method`.
    """
    if isinstance(method, str | Path):
        if str(method).endswith(".json"):
            warn_if_tuned_elsewhere(str(method), tuned.load(method).evidence, model)
        return choose_method(str(method), keep=keep, model=name_of(model), **parameters)
    given = parameters if keep is None else {"keep": keep, **parameters}
    if given:
        raise ConfigurationError(
            f"{', '.join(given)}: parameters belong to a method given by name; this one is {method}, which has its own."
        )
    if method is not None and not isinstance(method, Method):
        raise ConfigurationError(
            "method must be a foveate Method (for example ViTCoP(keep=1/9)), a name of `foveate methods`, the path of "
            f"a foveate.json or None, got {type(method).__name__}."
        )
    return method
