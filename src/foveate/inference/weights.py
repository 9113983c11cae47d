"""Which weights these are: to notice another checkpoint of the same name."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate import zoo
from foveate.errors import TunedElsewhereWarning


def fingerprint(model: Any) -> str:
    """Digest of a few numbers of every parameter."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(str(parameter.detach().flatten()[:8].tolist()).encode())
    return digest.hexdigest()[:16]


def warn_if_tuned_elsewhere(what: str, evidence: Mapping[str, Any], model: Any) -> None:
    """Warn if the evidence of a foveate.json was measured on other weights than `model`'s.

    Numbers of another dtype cannot be compared; then the name under which the model was loaded decides.

    Args:
        what: the file, for the message.
        evidence: its field `evidence`; one without a run tells nothing, and nothing is said.
    """
    run = evidence.get("run")
    if not isinstance(run, Mapping) or "model" not in run:
        return
    if run.get("dtype") == str(model.dtype).removeprefix("torch."):
        same = run.get("weights") == fingerprint(model)
    else:
        same = _place(str(run["model"])) == _place(str(getattr(model.config, "_name_or_path", "")))
    if not same:
        warnings.warn(
            f"{what} was tuned on {run['model']}, and this is another model: what it retains here is unknown. Run "
            "`foveate tune` on this one.",
            TunedElsewhereWarning,
            stacklevel=3,
        )


def _place(name: str) -> str:
    try:
        name = zoo.resolve(name)
    except zoo.UnknownZooModelError:
        return name
    return str(Path(name).resolve()) if Path(name).exists() else name
