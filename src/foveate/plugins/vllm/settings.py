"""What `--hf-overrides '{"foveate": {...}}'` says, and what one request may change of it. Knows nothing of vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from foveate.core.budget import Keep
from foveate.core.method import BEFORE_LLM, Method
from foveate.core.view import ModelInfo
from foveate.errors import ConfigurationError, InputError
from foveate.methods.compose import Compose
from foveate.specs.choose import choose_method
from foveate.specs.grammar import one_budget
from foveate.version import __version__

NAME = "foveate"
"""Key of the overrides."""
KEEP = "foveate_keep"
"""What a request may say in `mm_processor_kwargs`."""
SALT = "foveate_salt"
"""What we add to it, so that no cache mixes features that were pruned differently."""


@dataclass(frozen=True, eq=False)
class Settings:
    """A method with the budgets that requests may choose.

    Attributes:
        method: of a server, configured.
        low, high: shares of the visual tokens that a request may keep.
    """

    method: Method
    low: float = 0.0
    high: float = 1.0

    @classmethod
    def of(cls, given: object, model: str = "") -> Settings:
        """Read the overrides.

        Args:
            given: `{"method": name or path of a foveate.json, "keep": 0.11, "keep_range": [0.1, 0.5], ...}`; what else
                stands there are parameters of the method.

        Raises:
            ConfigurationError: no such method or parameter, or one that vLLM cannot run.
        """
        if not isinstance(given, Mapping) or not isinstance(given.get("method"), str):
            raise ConfigurationError(
                f'--hf-overrides: {NAME} must be an object such as {{"method": "visionzip", "keep": 0.111}}, '
                f"not {given!r}."
            )
        parameters = {str(key): value for key, value in given.items()}
        name, keep = parameters.pop("method"), parameters.pop("keep", None)
        low, high = _range(parameters.pop("keep_range", (0.0, 1.0)))
        if taken := sorted({"name", "model"} & set(parameters)):
            raise ConfigurationError(f"{NAME}: {', '.join(taken)} is no parameter of a method; leave it out.")
        method = choose_method(name, keep=_budget(keep), model=model, **parameters)
        if method is None:
            raise ConfigurationError(f"{NAME}: method {name!r} prunes nothing; leave {NAME} out of --hf-overrides.")
        if not isinstance(method, Compose):  # which is refused for where it selects
            _check_count(method)
            _check_range(method, low, high)
        return cls(method, low, high)

    def asked(self, kwargs: Mapping[str, object]) -> float | None:
        """The share that a request asks for, None if it asks for none or for what the server gives anyway.

        Raises:
            InputError: it asks for anything else, or for more or less than it may.
        """
        others = sorted(str(key) for key in set(kwargs) - {KEEP})
        if others:
            raise InputError(f"mm_processor_kwargs: {', '.join(others)} cannot be set per request here; {KEEP} can.")
        keep = kwargs.get(KEEP)
        if keep is None:
            return None
        if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
            raise InputError(
                f"{KEEP}={_short(keep)} must be a share of the visual tokens in (0, 1], one for all images."
            )
        if not self.low <= keep <= self.high:
            raise InputError(f"{KEEP}={keep!r}: this server takes {self.low:.4g} to {self.high:.4g}.")
        return None if self.salt(keep) == self.salt(None) else float(keep)

    def chosen(self, keep: float | None) -> Method:
        """The method with a request's share; the server's own without one."""
        return self.method if keep is None else replace(self.method, keep=self.method.budget.share(keep))

    def salt(self, keep: float | None) -> str:
        """All that pruned features depend on besides image and model, as text."""
        return f"foveate {__version__} {self.chosen(keep)}"


def check(method: Method, info: ModelInfo, one_axis: bool) -> None:
    """Refuse what vLLM has no place for.

    Args:
        one_axis: whether positions are plain numbers, which can be renumbered.

    Raises:
        ConfigurationError: the method prunes inside the language model, or elsewhere than vLLM could.
    """
    layers = [stage.layer for stage in method.stages(info)]
    if any(layer != BEFORE_LLM for layer in layers) or method.probe(info) is not None:
        raise ConfigurationError(
            f"{method.name} selects inside the language model (before layers {layers}), which vLLM cannot run; use a "
            "method that prunes before it, such as visionzip, or `foveate serve`."
        )
    if method.tower_stages(info):
        raise ConfigurationError(
            f"{method.name} drops tokens inside the vision tower, which vLLM cannot run; use a method that prunes "
            "behind it, such as visionzip, or `foveate serve`."
        )
    if method.positions == "index" or (method.positions == "contiguous" and not one_axis):
        raise ConfigurationError(
            f"{method.name}: positions={method.positions!r} cannot be had on '{info.family}' in vLLM; use "
            + ("original or contiguous." if one_axis else "original.")
        )
    if method.proportional:
        raise ConfigurationError(
            f"{method.name}: proportional attention adds to logits, for which vLLM's attention takes no mask; leave "
            "`proportional` out, or use `foveate serve`."
        )
    method.check(info)


def _check_count(method: Method) -> None:
    """Refuse a number of tokens that is not known before the image is encoded."""
    if method.keep is None or method.budget.threshold is not None:
        raise ConfigurationError(
            f"{method.name} decides by what it sees how many tokens it keeps, but vLLM must know before; give keep as "
            "a share or a count, where the method takes one."
        )
    if method.per == "prompt":
        raise ConfigurationError(
            f"{method.name} has one budget for all images of a prompt, but vLLM encodes images one by one and shares "
            "them between prompts; use per='image'."
        )


def _check_range(method: Method, low: float, high: float) -> None:
    """vLLM makes room for the most that a request may keep: what the server gives unasked must not be more."""
    ratio = method.budget.ratio
    if ratio is None and high < 1:
        raise ConfigurationError(
            f"{NAME}: a number of tokens as keep has no place in keep_range, which has shares; give keep as a share, "
            "or a keep_range that ends with 1."
        )
    if ratio is not None and not low <= ratio <= high:
        raise ConfigurationError(
            f"{NAME}: keep={ratio:.4g}, which requests get that ask for none, is outside keep_range={[low, high]}; "
            "widen the range."
        )


def _short(value: object) -> str:
    """As text for a message, never a long one."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _budget(keep: object) -> float | int | None:
    if isinstance(keep, str):
        return one_budget(keep)
    if keep is None:
        return None
    Keep.of(keep)  # type: ignore[arg-type]  # raises what is wrong with it
    return keep  # type: ignore[return-value]


def _range(given: object) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in given)  # type: ignore[attr-defined]
    except (TypeError, ValueError, OverflowError) as error:
        message = f"{NAME}: keep_range={_short(given)} must be two shares, such as [0.1, 0.5]."
        raise ConfigurationError(message) from error
    if not (0 <= low <= high <= 1 and high):
        raise ConfigurationError(f"{NAME}: keep_range={given!r} must be two shares, 0 <= low <= high <= 1, 0 < high.")
    return low, high
