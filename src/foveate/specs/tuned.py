"""`foveate.json`: a method with its parameters, and the evidence that it was chosen by.

{"format": "foveate.tuned/1", "method": "vitcop", "parameters": {"keep": 0.33}, "evidence": {...}}

Of several methods in a row the method is `compose`, and its parameter `methods` lists their texts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError

FORMAT = "foveate.tuned/1"


class TunedFileError(FoveateError, ValueError):
    """A foveate.json that cannot be used.

    Remedy: write it again with `foveate tune --write foveate.json`; it is not meant to be edited.
    """


@dataclass(frozen=True)
class Tuned:
    """What the file says.

    Attributes:
        method: registry name.
        parameters: of the method, JSON values.
        evidence: what was measured, for people.
    """

    method: str
    parameters: dict[str, Any]
    evidence: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        content = {
            "format": FORMAT, "method": self.method, "parameters": self.parameters, "evidence": self.evidence,
        }  # fmt: skip
        return json.dumps(content, indent=1) + "\n"


def load(path: str | Path) -> Tuned:
    """Read and check the file, without making the method.

    Raises:
        TunedFileError: missing, no JSON, of another format or with fields of the wrong kind.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TunedFileError(f"Cannot read {path}: {error.strerror}. `foveate tune` writes such a file.") from error
    except ValueError as error:
        raise TunedFileError(f"{path} is no JSON ({error}). `foveate tune` writes such a file.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise TunedFileError(f"{path} has format {found!r}, not {FORMAT!r}; write it anew with `foveate tune`.")
    method, parameters, evidence = (content.get(name) for name in ("method", "parameters", "evidence"))
    if not isinstance(method, str):
        raise TunedFileError(f"{path}: 'method' must be a name of `foveate methods`, not {method!r}.")
    if not isinstance(parameters, dict):
        raise TunedFileError(f"{path}: 'parameters' must be an object such as {{\"keep\": 0.33}}, not {parameters!r}.")
    return Tuned(method, parameters, evidence if isinstance(evidence, dict) else {})
