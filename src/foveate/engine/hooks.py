"""Installing and removing the hooks of the seams: once per model, shared by all sessions, safe among threads."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from foveate.core.method import Tap
from foveate.engine import seams
from foveate.engine.session import Session, current_session


class Hooks:
    """The hooks on one model.

    Other threads may run the model while a session starts or ends, so hooks are shared and counted: a hook that
    some running session needs is never touched. Each hook asks which session applies to the current thread.
    """

    def __init__(self, base: nn.Module) -> None:
        self._base = weakref.ref(base)
        self._lock = threading.Lock()
        self._users: dict[str | Tap, int] = {}
        self._handles: dict[str | Tap, list[RemovableHandle]] = {}

    def acquire(self, session: Session) -> None:
        """Install what `session` needs and nobody has installed yet."""
        with self._lock:
            for need in session.needs:
                if need not in self._handles:
                    self._handles[need] = list(self._install(session, need))
                self._users[need] = self._users.get(need, 0) + 1

    def release(self, session: Session) -> None:
        """Remove what only `session` needed."""
        with self._lock:
            for need in session.needs:
                self._users[need] -= 1
                if self._users[need] == 0:
                    del self._users[need]
                    for handle in self._handles.pop(need):
                        handle.remove()

    def _install(self, session: Session, need: str | Tap) -> Iterator[RemovableHandle]:
        parts = session.family.parts
        if isinstance(need, Tap):
            block = parts.blocks[session.family.block_of(need)]
            if need.kind == "hidden":
                yield self._post(block, seams.hidden_reader(need))
            else:
                yield self._pre(session.family.attention_module(block), seams.attention_reader(need))
            return
        yield self._pre(parts.tower, seams.before_tower)
        yield self._post(parts.tower, seams.after_tower)
        yield self._pre(parts.base, seams.before_base)
        yield self._pre(parts.text, seams.before_text)
        for number, layer in enumerate(parts.layers):
            yield self._pre(layer, seams.before_layer(number))
        yield self._post(parts.text, seams.after_text, always=True)
        yield self._post(parts.base, seams.after_base, always=True)

    def _pre(self, module: nn.Module, hook: seams.PreHook) -> RemovableHandle:
        def guarded(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
            # without kwargs: torch is just (un)registering this hook in another thread, which is not concerned
            session = None if kwargs is None else self._session()
            return None if session is None or kwargs is None else hook(session, module, args, kwargs)

        return module.register_forward_pre_hook(guarded, with_kwargs=True)

    def _post(self, module: nn.Module, hook: seams.PostHook, always: bool = False) -> RemovableHandle:
        def guarded(module: nn.Module, args: Any, output: Any) -> None:
            if (session := self._session()) is not None:
                hook(session, output)

        return module.register_forward_hook(guarded, always_call=always)

    def _session(self) -> Session | None:
        base = self._base()
        return None if base is None else current_session(base)


_hooks: weakref.WeakKeyDictionary[nn.Module, Hooks] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def hooks_of(base: nn.Module) -> Hooks:
    """The one `Hooks` of a model."""
    with _lock:
        if base not in _hooks:
            _hooks[base] = Hooks(base)
        return _hooks[base]
