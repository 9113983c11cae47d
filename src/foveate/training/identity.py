"""What a run was started with, so that nothing goes on with another model, other data or other settings unnoticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.data.rows import Row, Stored
from foveate.data.videos import Clip
from foveate.errors import ConfigurationError, DataError
from foveate.files.atomic import write_text


def image_digest(source: Path | str | Stored | Image.Image | Clip) -> str:
    """Digest of an image's or video's content, which is not decoded. Addresses stand for themselves."""
    digest = hashlib.sha256()
    try:
        for part in _content(source):
            digest.update(part)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from error
    return digest.hexdigest()[:16]


def _content(source: Any) -> Iterator[bytes]:
    if isinstance(source, Stored):
        value = source.read()
        held = value.get("bytes") or value.get("path") if isinstance(value, Mapping) else value
        folder = source.table.folder
        source = folder / held if isinstance(held, str) and held[:5].lower() != "data:" else held
    if isinstance(source, Image.Image):
        yield from (f"{source.mode} {source.size}".encode(), source.tobytes())
    elif isinstance(source, Clip):
        yield from (f"{source.frames.shape} {source.indices} {source.fps}".encode(), source.frames.tobytes())
    elif isinstance(source, Path):
        yield source.read_bytes()
    else:
        yield source if isinstance(source, bytes) else str(source).encode()


def row_digest(row: Row) -> str:
    """Digest of a question and the content of its images and videos."""
    content = json.dumps([row.question, *map(image_digest, (*row.images, *row.videos))])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def table_digest(data: str) -> str:
    """Digest of a table's file, or of what a saved dataset says of itself (its fingerprint); of the built-in scenes,
    their name."""
    path = Path(data)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path] if path.is_file() else []
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16] if files else data


def differences(known: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """What differs between two sets of plain values, each as `name was X, is Y`; nested names are joined by dots."""
    one, other = dict(_flat(known)), dict(_flat(given))
    names = [*one, *(name for name in other if name not in one)]
    return [
        f"{name} was {_shown(one, name)}, is {_shown(other, name)}"
        for name in names
        if one.get(name) != other.get(name)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name], ensure_ascii=False) if name in values else "not set"


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they come back from a JSON file."""
    found: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return found


def record(path: Path, values: Mapping[str, Any]) -> None:
    """Write what a run is started with; what else was noted of it stays."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_text(path, json.dumps(known | plain(values), indent=2) + "\n")


def compare(path: Path, values: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was started with something else.

    Raises:
        ConfigurationError: naming every difference.
    """
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} cannot be read ({error}), so it is unknown what this run was started with; choose another folder."
        ) from error
    if found := differences({name: known.get(name) for name in values}, plain(values)):
        raise ConfigurationError(
            f"{path.parent} holds a run that was started otherwise: {'; '.join(found)}. Go on as it was started, or "
            "choose another folder."
        )
