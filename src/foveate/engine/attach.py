"""`prune`, `attach` and `detach`: put a method in force on a stock model, and take it off again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from foveate.core.method import Method
from foveate.engine.checks import check, notes
from foveate.engine.hooks import hooks_of
from foveate.engine.session import Session, close_session, give_offsets_back, open_session, sessions_on
from foveate.errors import ConfigurationError, SessionError, UnsupportedModelError
from foveate.families import adapt
from foveate.trace.trace import Trace


@contextmanager
def prune(
    model: nn.Module, method: Method | None, *, full_length: bool = False, every_thread: bool = False
) -> Iterator[Trace]:
    """Prune visual tokens of `model` within a `with` block.

    Args:
        model: a stock transformers model of a supported family; it is not changed.
        method: a configured method, or None for no new pruning (a pruned KV cache can be continued).
        full_length: return hidden states and logits of the unpruned length, zero where a token was dropped, so that
            `labels` fit: for training. Gradients flow through; run the backward pass inside the block if layers
            are checkpointed.
        every_thread: also prune calls in threads that opened no block themselves. Otherwise a worker thread is only
            concerned if it runs in this context (`Thread(target=contextvars.copy_context().run, args=(f,))`).

    Yields:
        A `Trace`, filled by every prefill inside the block.

    The innermost block of the current context wins.

    Raises:
        UnsupportedModelError: unknown family, compiled model, or a part is missing.
        ConfigurationError: the method's configuration does not fit the model.
        MissingTapError: the family cannot give what the method reads.
    """
    session = _session(model, method, full_length)
    session.every_thread = every_thread
    hooks = hooks_of(session.family.parts.base)
    hooks.acquire(session)
    open_session(session)
    try:
        yield session.trace
    finally:
        _close(session)


@dataclass(frozen=True)
class Attached:
    """A method in force on a model for every thread, until `detach`."""

    session: Session

    @property
    def trace(self) -> Trace:
        """The latest prefill of the current thread: requests in other threads have their own."""
        return self.session.local.trace or Trace(self.session.trace.method, self.session.trace.layers)


def attach(model: nn.Module, method: Method | None, *, full_length: bool = False) -> Attached:
    """Put a method in force until `detach`, for every thread: the form for servers.

    Args:
        model, method, full_length: as in `prune`.

    Raises:
        SessionError: if a method is attached already; otherwise as `prune`.
    """
    session = _session(model, method, full_length)
    session.attached = True
    base = session.family.parts.base
    if any(other.attached for other in sessions_on(base)):
        raise SessionError("A method is attached to this model already; call foveate.detach(model) first.")
    hooks_of(base).acquire(session)
    open_session(session)
    return Attached(session)


def detach(model: nn.Module) -> None:
    """Take an attached method off; the model is exactly as before.

    Raises:
        SessionError: if nothing is attached.
    """
    for session in sessions_on(adapt(model).parts.base):
        if session.attached:
            _close(session)
            return
    raise SessionError("Nothing is attached to this model.")


def _close(session: Session) -> None:
    base = session.family.parts.base
    close_session(session)
    hooks_of(base).release(session)
    give_offsets_back(base)
    for prefill in session.trace.prefills[-1:]:
        prefill.to_host()


def _session(model: nn.Module, method: Method | None, full_length: bool) -> Session:
    if method is not None and not isinstance(method, Method):
        raise ConfigurationError(
            f"method must be a foveate Method (for example ViTCoP(keep=1/9)) or None, got {type(method).__name__}."
        )
    for module in (model, getattr(model, "model", None)):
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        if compiled or type(module).__name__ == "OptimizedModule":
            raise UnsupportedModelError(
                "A compiled model cannot be pruned: its graph has fixed shapes and skips hooks. Pass the model "
                "before torch.compile."
            )
    family = adapt(model)
    prunes = method is not None and method.prunes
    if method is not None and prunes:
        check(family, method)
    trace = Trace(str(method) if method else "none", family.info.layers)
    if method is not None and prunes:
        trace.notes = notes(family, method)
    return Session(family, method if prunes else None, trace, full_length=full_length)
