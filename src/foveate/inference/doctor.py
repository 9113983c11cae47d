"""What will work on a model, from its configuration alone: the model is built without weights and probed."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from foveate.core.method import Method
from foveate.engine.checks import check, notes
from foveate.errors import FoveateError, UnsupportedModelError
from foveate.families import adapt
from foveate.families.base import Family
from foveate.families.refusals import type_refusal
from foveate.inference.loading import auto_class, read_config
from foveate.methods import registry


@dataclass(frozen=True)
class Findings:
    """What was found.

    Attributes:
        model_type: of the configuration.
        layers: decoder layers by kind, in words.
        signal: what the tower can be read for.
        modalities: `image`, `video`.
        cannot: methods that cannot run with default parameters, and why.
        otherwise: methods that read something else than they say, and what.
    """

    model_type: str
    layers: str
    signal: str
    modalities: tuple[str, ...]
    cannot: Mapping[str, str]
    otherwise: Mapping[str, str]


def examine(config: Any) -> Findings:
    """Build a model of this configuration on the meta device and probe it.

    Raises:
        UnsupportedModelError: it cannot be pruned; the message says why, or which part was not found.
    """
    if reason := type_refusal(config):
        raise UnsupportedModelError(f"'{config.model_type}' cannot be pruned: {reason}")
    kind = auto_class(config)
    if kind is None:
        raise UnsupportedModelError(f"'{config.model_type}' is no model that reads images and writes text.")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind.from_config(config)
    family = adapt(model)
    cannot, otherwise = {}, {}
    for name, kind in registry().items():
        try:
            method = example(kind, model)
            if method is None:
                continue
            check(family, method)
        except FoveateError as error:
            cannot[name] = str(error)
            continue
        if found := [note for note in notes(family, method) if not note.startswith("received attention")]:
            otherwise[name] = "; ".join(found)
    return Findings(family.name, layers(family), signal(family), family.modalities, cannot, otherwise)


def of_checkpoint(path_or_id: str) -> Findings:
    """The same for the `config.json` of a folder, a Hub id or a model of the zoo; no weights are read."""
    return examine(read_config(path_or_id))


def example(kind: type[Method], model: Any) -> Method | None:
    """A method with its defaults, None if it needs something that has no default."""
    make: Any = getattr(kind, "example", None)
    if make is not None:
        with torch.device("cpu"):
            found: Method = make(0.5, model)
            return found
    try:
        return kind()
    except TypeError:
        return None


def layers(family: Family) -> str:
    """`24 full`, or `20 linear, 4 full`."""
    kinds = Counter("shared" if facts.source != i else facts.kind for i, facts in enumerate(family.layers))
    return ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())


def signal(family: Family) -> str:
    """What received attention is, or why nothing of the tower can be read."""
    if family.unreadable is not None:
        return f"none: {family.unreadable}"
    return "class token" if family.has_class_token else "all patches"
