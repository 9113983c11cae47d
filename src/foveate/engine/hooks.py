"""Installing and removing the hooks of the seams: once per model, shared by all sessions, safe among threads."""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

from torch import nn

from foveate.core.view import Tap
from foveate.engine import seams, tower, tower_pruning
from foveate.engine.capture import AttentionCall, Listening
from foveate.engine.session import LayerReads, Need, Session, current_session
from foveate.families.tower_layouts import patch_embedding, projections


class Handle(Protocol):
    """What takes a hook off again."""

    def remove(self) -> None: ...


class Hook:
    """A hook that asks which session applies and hands the call on. A copy of it does nothing: a copied model is stock.

    Args:
        owner: the hooks of the model that it was installed for.
        action: called with the session and what torch gives to a hook.
    """

    def __init__(self, owner: Hooks, action: Any) -> None:
        self.owner, self.action = owner, action

    def __call__(self, module: nn.Module, *given: Any) -> Any:
        session = self.owner.session()
        return None if session is None else self.action(session, module, *given)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return Removed()

    def __reduce__(self) -> Any:
        return functools.partial, (sys.audit, "foveate.removed_hook")  # nothing of ours is needed to load a pickle


class Removed:
    """What a hook becomes when its module is copied; it takes itself off at its first call."""

    def __call__(self, module: nn.Module, *given: Any) -> None:
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number in [number for number, hook in hooks.items() if hook is self]:
                del hooks[number]


class Hooks:
    """The hooks on one model.

    Other threads may run the model while a session starts or ends, so hooks are shared and counted: a hook that
    some running session needs is never touched. Each hook asks which session applies to the current context.
    """

    def __init__(self, base: nn.Module) -> None:
        self._base = weakref.ref(base)
        self._lock = threading.Lock()
        self._users: dict[Need, int] = {}
        self._handles: dict[Need, list[Handle]] = {}

    def acquire(self, session: Session) -> None:
        """Install what `session` needs and nobody has installed yet."""
        with self._lock:
            try:
                for need in session.needs:
                    if need not in self._handles:
                        self._handles[need] = []
                        self._handles[need].extend(self._install(session, need))
                    self._users[need] = self._users.get(need, 0) + 1
            except BaseException:
                self._drop(need for need in list(self._handles) if need not in self._users)
                raise

    def release(self, session: Session) -> None:
        """Remove what only `session` needed."""
        with self._lock:
            for need in session.needs:
                self._users[need] -= 1
                if self._users[need] == 0:
                    del self._users[need]
                    self._drop([need])

    def _drop(self, needs: Any) -> None:
        for need in needs:
            for handle in self._handles.pop(need):
                handle.remove()

    def session(self) -> Session | None:
        """The session that applies here and now."""
        base = self._base()
        return None if base is None else current_session(base)

    def _install(self, session: Session, need: Need) -> Iterator[Handle]:
        family, parts = session.family, session.family.parts
        if isinstance(need, LayerReads):
            yield self._listen(family.layer_attention(need.layer), functools.partial(seams.heard, need.layer))
            return
        if isinstance(need, Tap):
            for _, blocks in parts.towers:
                yield self._tap(session, need, blocks)
            return
        if need == "tower":
            for number, block in enumerate(parts.blocks):
                yield self._pre(block, tower_pruning.before_block(number))
            if (embedding := patch_embedding(family)) is not None:
                yield self._pre(embedding, tower_pruning.before_embedding)
                yield self._post(embedding, tower_pruning.after_embedding)
            for module in projections(family):
                yield self._pre(module, tower_pruning.before_projection)
                yield self._post(module, tower_pruning.after_projection)
            return
        for vision, _ in parts.towers:
            yield self._pre(vision, tower.before_tower)
            yield self._post(vision, tower.after_tower, always=True)
        if parts.head is not None:
            yield self._pre(parts.head, seams.before_head)
        yield self._pre(parts.base, seams.before_base)
        yield self._pre(parts.text, seams.before_text)
        for number, layer in enumerate(parts.layers):
            yield self._pre(layer, seams.before_layer(number))
        yield self._post(parts.text, seams.after_text, always=True)
        yield self._post(parts.base, seams.after_base, always=True)

    def _tap(self, session: Session, tap: Tap, blocks: nn.ModuleList) -> Handle:
        family = session.family
        block = blocks[family.block_of(tap)]
        if tap.kind == "received":
            return self._listen(family.block_attention(block), functools.partial(tower.heard, tap))
        if tap.kind == "keys":
            return self._post(family.key_features(block)[0], tower.key_reader(tap))
        return self._post(block, tower.hidden_reader(tap))

    def _listen(self, module: nn.Module, action: Any) -> Handle:
        def listener(call: AttentionCall) -> None:
            if (session := self.session()) is not None:
                action(session, call)

        return Listening(module, listener)

    def _pre(self, module: nn.Module, action: seams.PreHook) -> Handle:
        return module.register_forward_pre_hook(Hook(self, action), with_kwargs=True)

    def _post(self, module: nn.Module, action: seams.PostHook, always: bool = False) -> Handle:
        return module.register_forward_hook(Hook(self, action), always_call=always)


_hooks: weakref.WeakKeyDictionary[nn.Module, Hooks] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def hooks_of(base: nn.Module) -> Hooks:
    """The one `Hooks` of a model."""
    with _lock:
        if base not in _hooks:
            _hooks[base] = Hooks(base)
        return _hooks[base]
