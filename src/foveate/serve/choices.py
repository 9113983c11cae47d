"""Which pruning a request gets: the server's own, or what it chooses within the operator's range."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

from foveate.core.method import Method
from foveate.engine.attach import prune
from foveate.errors import ConfigurationError
from foveate.inference.pruning import name_of, resolve
from foveate.serve.problems import RequestError
from foveate.serve.schema import FoveateOptions
from foveate.specs.settings import NOTHING, UNPRUNED, Setting, setting

REMEMBERED = 64


class MethodChoices:
    """The methods of a server. Each configuration is made once and remembered, trained modules are read once.

    Args:
        model: that the methods are for.
        method: the server's own: a text (`vitcop:deep_layer=20`), a foveate.json, or `none`. A request that chooses
            another keep has all else of it.
        keep, parameters: its budget and further parameters.
        allowed: other methods that requests may choose by name.
        keep_range: lowest and highest keep that they may choose.

    Raises:
        ConfigurationError: an unknown method, one that does not fit the model, or two of one name.
    """

    def __init__(
        self,
        model: Any,
        method: str | Path,
        keep: float | int | None = None,
        allowed: tuple[str, ...] = (),
        keep_range: tuple[float, float] = (0.0, 1.0),
        **parameters: Any,
    ) -> None:
        self._model, self._range = model, keep_range
        self.default = resolve(model, method, keep, **parameters)
        self.name = _name(self.default)
        own = setting(str(method), keep, name_of(model), **parameters)
        self._settings = self._with_others({self.name: own}, allowed)
        self._made: OrderedDict[tuple[str, float | None], Method | None] = OrderedDict(
            {(self.name, None): self.default}
        )
        self._lock = Lock()
        self._check(self.default)
        for name in self._settings:
            self._make(name, None)
        self.allowed = tuple(dict.fromkeys([*self._settings, NOTHING[0]]))

    def _with_others(self, found: dict[str, Setting], texts: tuple[str, ...]) -> dict[str, Setting]:
        for text in texts:
            one = setting(text, model=name_of(self._model))
            name = NOTHING[0] if one.kind == UNPRUNED else one.kind
            if name in found and one.parameters.keys() - {"module"}:
                raise ConfigurationError(f"Requests choose methods by name, and two are called {name}; leave one out.")
            found.setdefault(name, one)
        return found

    def choose(self, wanted: FoveateOptions) -> Method | None:
        """The method of a request.

        Raises:
            RequestError: not within the operator's range, or no possible configuration.
        """
        if wanted.method is None and wanted.keep is None:
            return self.default
        name = self.name if wanted.method is None else wanted.method.lower().replace("-", "_")
        name = NOTHING[0] if name in NOTHING else name
        if name not in self.allowed:
            raise RequestError(f"this server offers {', '.join(self.allowed)}", param="foveate.method")
        if name == NOTHING[0] and wanted.keep is not None:
            raise RequestError("nothing is pruned, so there is nothing to keep; leave it out", param="foveate.keep")
        low, high = self._range
        if wanted.keep is not None and not low <= wanted.keep <= high:
            raise RequestError(f"this server takes {low:.4g} to {high:.4g}", param="foveate.keep")
        if wanted.keep is None and name == self.name:
            return self.default
        with self._lock:
            return self._make(name, wanted.keep)

    def _make(self, name: str, keep: float | None) -> Method | None:
        key = (name, keep)
        if key not in self._made:
            own = self._settings.get(name, Setting(UNPRUNED))
            method = (own if keep is None else own.with_keep(keep)).make()
            self._check(method)
            self._made[key] = method
        self._made.move_to_end(key)
        while len(self._made) > REMEMBERED:
            self._made.popitem(last=False)
        return self._made[key]

    def _check(self, method: Method | None) -> None:
        """A configuration that does not fit the model shows when a session opens, not in the middle of a prefill."""
        with prune(self._model, method):
            pass


def _name(method: Method | None) -> str:
    return NOTHING[0] if method is None else method.name
