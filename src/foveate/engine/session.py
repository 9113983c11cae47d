"""Which pruning applies to a call, and the readings that travel from the vision tower to the language model."""

from __future__ import annotations

import threading
import weakref
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foveate.core.grid import Grid
from foveate.core.method import Method
from foveate.core.timing import Stopwatch
from foveate.core.tower import TowerStage
from foveate.core.view import Tap
from foveate.engine.call import Call
from foveate.engine.layout import TowerImage
from foveate.engine.standins import needs_stand_ins
from foveate.engine.tower_pruning import TowerPruning
from foveate.errors import SessionError
from foveate.families.base import Family
from foveate.trace.records import PrefillTrace
from foveate.trace.trace import Trace

MAX_UNUSED = 16
"""Calls of the tower whose readings are kept although nobody holds their features and no text followed."""


@dataclass(frozen=True)
class LayerReads:
    """Queries and keys of a decoder layer are to be read."""

    layer: int


Need = Literal["seams", "tower"] | Tap | LayerReads


@dataclass
class TowerCall:
    """One finished call of the vision tower.

    Attributes:
        images: what it encoded.
        output: the tensor that it returned, as long as somebody holds it.
        used: whether its images were joined with text. Without a cache they are joined again at every step, so they
            are kept until the next images come.
    """

    images: list[TowerImage]
    output: weakref.ref[Tensor] | None
    used: bool = False

    @property
    def is_held(self) -> bool:
        return self.output is not None and self.output() is not None


class ThreadState(threading.local):
    """What one thread is doing with one session.

    Attributes:
        call: the call of the base model in progress, or the latest.
        draft: tokens behind the prompt in the call of the head in progress (assisted decoding).
        prompt_states: hidden states of a prompt that was read apart from the draft behind it.
        tower_calls: images that went through the tower and are not superseded by newer ones.
        grids, readings: of the tower call in progress.
        pruning: what that call drops, or the latest, as its projector may run behind it.
        started: start of the tower call in progress.
        trace: under `attach`: of this thread's latest prefill.
    """

    def __init__(self) -> None:
        self.call: Call | None = None
        self.draft = 0
        self.prompt_states: Tensor | None = None
        self.tower_calls: list[TowerCall] = []
        self.grids: list[Grid] = []
        self.patches: list[int] = []
        self.readings: dict[Tap, list[Tensor]] = {}
        self.pruning: TowerPruning | None = None
        self.started: float | torch.cuda.Event | None = None
        self.vision = Stopwatch()
        self.tapping = Stopwatch()
        self.trace: Trace | None = None

    def remember(self, call: TowerCall) -> None:
        """Keep what a tower call read; forget old calls whose features nobody holds any more."""
        self.tower_calls = [found for found in self.tower_calls if not found.used] + [call]
        old, recent = self.tower_calls[:-MAX_UNUSED], self.tower_calls[-MAX_UNUSED:]
        self.tower_calls = [found for found in old if found.is_held] + recent


@dataclass(eq=False)
class Session:
    """A method in force on a model, from `prune` or `attach` on until it is closed.

    Attributes:
        method: None if nothing can be dropped.
        attached: in force for every thread until `detach`.
        every_thread: also applies to threads that opened no session of their own.
        full_length: give hidden states back at the unpruned length, zero where a token was dropped.
    """

    family: Family
    method: Method | None
    trace: Trace
    attached: bool = False
    every_thread: bool = False
    full_length: bool = False
    closed: bool = False
    local: ThreadState = field(default_factory=ThreadState)
    taps: tuple[Tap, ...] = ()
    tower_stages: tuple[TowerStage, ...] = ()
    needs: tuple[Need, ...] = ("seams",)

    def __post_init__(self) -> None:
        if self.method is None:
            return
        info = self.family.info
        self.tower_stages = tuple(self.method.tower_stages(info))
        read = [tap for stage in self.tower_stages for tap in stage.taps]
        own = () if needs_stand_ins(self.family, self.method) else self.method.taps(info)
        self.taps = tuple(dict.fromkeys([*read, *own]))
        stages = [stage for stage in self.method.stages(info) if stage.reads != "nothing" and stage.layer]
        reads = {layer for stage in stages if (layer := info.reading_layer(stage.layer)) is not None}
        probe = self.method.probe(info)
        layers = sorted(reads | set(probe.reads if probe is not None else ()))
        tower: tuple[Need, ...] = ("tower",) if self.tower_stages else ()
        self.needs = ("seams", *tower, *self.taps, *(LayerReads(layer) for layer in layers))

    def new_prefill(self) -> PrefillTrace:
        """The record of a prefill that begins now."""
        prefill = PrefillTrace(self.trace.method, self.trace.layers, self.trace.notes)
        prefill.vision, prefill.tapping = self.local.vision, self.local.tapping
        self.local.vision, self.local.tapping = Stopwatch(), Stopwatch()
        if self.attached:  # a server runs for weeks, in many threads: each remembers its last prefill only
            self.local.trace = Trace(self.trace.method, self.trace.layers)
            self.local.trace.prefills.append(prefill)
            return prefill
        if self.trace.prefills:  # what is finished needs no device memory
            self.trace.prefills[-1].to_host()
        self.trace.prefills.append(prefill)
        return prefill


_own: ContextVar[tuple[Session, ...]] = ContextVar("foveate_sessions", default=())
_live: weakref.WeakKeyDictionary[nn.Module, list[Session]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


_offsets: weakref.WeakKeyDictionary[nn.Module, tuple[Tensor, Tensor]] = weakref.WeakKeyDictionary()


def take_offsets(base: Any, deltas: Tensor) -> None:
    """M-RoPE offsets that stock code left on the model: zeros stand there for as long as conversations of ours know
    theirs, the real ones come back with `give_offsets_back`."""
    with _lock:
        known = _offsets.get(base)
        if known is None or known[1] is not deltas:
            _offsets[base] = deltas, deltas.new_zeros(1, 1)
            base.rope_deltas = _offsets[base][1]


def give_offsets_back(base: Any) -> None:
    """When the last session ends: stock code continues its latest conversation by them."""
    with _lock:
        known = None if _live.get(base) else _offsets.pop(base, None)
        if known is not None and base.rope_deltas is known[1]:
            base.rope_deltas = known[0]


def open_session(session: Session) -> None:
    with _lock:
        _live.setdefault(session.family.parts.base, []).append(session)
    if not session.attached:
        _own.set((*_own.get(), session))


def close_session(session: Session) -> None:
    with _lock:
        _live[session.family.parts.base].remove(session)
    session.closed = True
    _own.set(tuple(s for s in _own.get() if s is not session))


def sessions_on(base: nn.Module) -> list[Session]:
    with _lock:
        return list(_live.get(base, ()))


def current_session(base: nn.Module) -> Session | None:
    """The session that applies here and now: the innermost one opened in this context, else the attached one, else the
    one that was opened for every thread.

    Raises:
        SessionError: several were opened for every thread, and this one has not said which it wants.
    """
    for session in reversed(_own.get()):
        if session.family.parts.base is base and not session.closed:
            return session
    live = [session for session in sessions_on(base) if session.attached or session.every_thread]
    attached = [session for session in live if session.attached]
    if attached:
        return attached[-1]
    if len(live) > 1:
        raise SessionError(
            f"{len(live)} prunings are active for every thread on this model. Open one in this thread "
            "(`with foveate.prune(model, method):`, method=None for no pruning), or start the thread with "
            "`contextvars.copy_context().run`."
        )
    return live[0] if live else None
