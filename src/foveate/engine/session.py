"""Which pruning applies to a call, and the readings that travel from the vision tower to the language model."""

from __future__ import annotations

import threading
import weakref
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from foveate.core.grid import Grid
from foveate.core.method import Method, Tap
from foveate.core.timing import Stopwatch
from foveate.engine.forward import ForwardPass
from foveate.engine.layout import EncodedImage
from foveate.errors import SessionError
from foveate.families.base import Family
from foveate.trace.records import PrefillTrace, Trace


@dataclass
class Call:
    """One call of the base model, from its pre-hook to its post-hook.

    Attributes:
        visual: per modality, `[B, n]` bool on the host: the placeholder tokens.
        features: per modality, pre-encoded features of each image (`generate` encodes before it calls).
        incoming: per modality, grids of the raw images that were given to this call.
        fresh: per modality, which of these images stand in this call's tokens (the others are cached).
    """

    visual: dict[str, Tensor]
    features: dict[str, list[Tensor]]
    incoming: dict[str, list[Grid]]
    fresh: dict[str, list[int]] = field(default_factory=dict)
    forward: ForwardPass | None = None
    started: float | torch.cuda.Event | None = None

    @property
    def sizes(self) -> dict[str, list[int]]:
        """Per modality, tokens of every image given."""
        encoded = {modality: [len(f) for f in features] for modality, features in self.features.items()}
        return encoded | {modality: [grid.size for grid in grids] for modality, grids in self.incoming.items()}

    @property
    def has_images(self) -> bool:
        return any(bool(mask.any()) for mask in self.visual.values())


class Local(threading.local):
    """What one thread is doing with one session.

    Attributes:
        calls: stack of calls of the base model.
        encoded: images that went through the tower and are not superseded by newer ones.
        grids, readings: of the tower call in progress.
        used: whether `encoded` was already joined with text (then the next tower call starts afresh).
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.encoded: list[EncodedImage] = []
        self.used = True
        self.grids: list[Grid] = []
        self.readings: dict[Tap, list[Tensor]] = {}
        self.started: float | torch.cuda.Event | None = None
        self.vision = Stopwatch()
        self.tapping = Stopwatch()


@dataclass(eq=False)
class Session:
    """A method in force on a model, from `prune` or `attach` on until it is closed.

    Attributes:
        full_length: give hidden states back at the unpruned length, zero where a token was dropped.
    """

    family: Family
    method: Method | None
    trace: Trace
    attached: bool = False
    full_length: bool = False
    local: Local = field(default_factory=Local)
    taps: tuple[Tap, ...] = ()

    def __post_init__(self) -> None:
        if self.method is not None:
            self.taps = tuple(dict.fromkeys(self.method.taps(self.family.info)))

    @property
    def needs(self) -> tuple[str | Tap, ...]:
        """The hooks it needs: those of the three seams, and one per tap."""
        return ("seams", *self.taps)

    def new_trace(self) -> PrefillTrace:
        prefill = PrefillTrace(self.trace.method, self.trace.layers)
        prefill.vision, prefill.tapping = self.local.vision, self.local.tapping
        self.local.vision, self.local.tapping = Stopwatch(), Stopwatch()
        if self.attached:  # a server runs for weeks: remember the last prefill only
            self.trace.prefills.clear()
        self.trace.prefills.append(prefill)
        return prefill


_own: ContextVar[tuple[Session, ...]] = ContextVar("foveate_sessions", default=())
_live: weakref.WeakKeyDictionary[nn.Module, list[Session]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def open_session(session: Session) -> None:
    with _lock:
        _live.setdefault(session.family.parts.base, []).append(session)
    if not session.attached:
        _own.set((*_own.get(), session))


def close_session(session: Session) -> None:
    with _lock:
        _live[session.family.parts.base].remove(session)
    _own.set(tuple(s for s in _own.get() if s is not session))


def sessions_on(base: nn.Module) -> list[Session]:
    with _lock:
        return list(_live.get(base, ()))


def current_session(base: nn.Module) -> Session | None:
    """The session that applies here and now: the innermost one opened in this thread, else the attached one,
    else the only one there is (so that `generate` may run in a worker thread while streaming).

    Raises:
        SessionError: other threads prune this model in different ways and this one has not said how it wants it.
    """
    for session in reversed(_own.get()):
        if session.family.parts.base is base:
            return session
    live = sessions_on(base)
    attached = [session for session in live if session.attached]
    if attached:
        return attached[-1]
    if len(live) > 1:
        raise SessionError(
            f"{len(live)} prunings are active on this model, none of them opened in this thread. Open one here "
            "(`with foveate.prune(model, method):`, method=None for no pruning), or start the thread with "
            "`contextvars.copy_context().run`."
        )
    return live[0] if live else None
