"""`foveate.toml`: what options are where the command line does not say.

    method = "vitcop:keep=1/9"      # of every command that has such an option

    [ask]                           # of one command
    max-new-tokens = 128

    [train.glimpse]
    data = "questions.jsonl"

Looked for in the working directory, then in each folder above it; `foveate --config FILE` names another. The command
line wins, then the command's own table, then what stands above all tables.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foveate.errors import ConfigurationError

NAME = "foveate.toml"


def nearest(folder: Path) -> Path | None:
    """The file in a folder or the first one above it."""
    return next((file for place in (folder, *folder.parents) if (file := place / NAME).is_file()), None)


def read(file: Path, group: Any) -> dict[str, Any]:
    """The file as defaults of a command group, by name of command and parameter.

    Raises:
        ConfigurationError: it cannot be read, or names an option or command that there is none of.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is no TOML: {error}.") from error
    shared = {key: value for key, value in content.items() if not isinstance(value, dict)}
    everywhere = {flag for _, command in _commands(group) for flag in _flags(command)}
    for key in shared:
        if key not in everywhere:
            raise _unknown(file, key, everywhere | set(group.commands))
    return _of(group, content, shared, file)


def _of(group: Any, own: Mapping[str, Any], shared: Mapping[str, Any], file: Path, path: str = "") -> dict[str, Any]:
    tables = {key: value for key, value in own.items() if isinstance(value, dict)}
    for name in tables:
        if name not in group.commands:
            raise _unknown(file, f"[{path}{name}]", {f"[{path}{known}]" for known in group.commands})
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        table = tables.get(name, {})
        if hasattr(command, "commands"):
            found[name] = _of(command, table, shared, file, f"{path}{name}.")
            continue
        flags = _flags(command)
        for key in table:
            if key not in flags:
                raise _unknown(file, f"{key} in [{path}{name}]", {f"{flag} in [{path}{name}]" for flag in flags})
        given = {key: value for key, value in shared.items() if key in flags} | table
        found[name] = {flags[key].name: _value(flags[key], value) for key, value in given.items()}
    return found


def _value(parameter: Any, value: Any) -> Any:
    """As click takes it: of an option that may be repeated a list, of a switch a truth value, else text."""
    if parameter.multiple:
        return [str(one) for one in (value if isinstance(value, list) else [value])]
    return value if isinstance(value, bool) else str(value)


def _commands(group: Any) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command)
        else:
            yield name, command


def _flags(command: Any) -> dict[str, Any]:
    """Options by their long name, without dashes in front."""
    return {
        flag.removeprefix("--"): parameter
        for parameter in command.params
        for flag in parameter.opts
        if flag.startswith("--") and flag != "--help"
    }


def _unknown(file: Path, key: str, known: set[str]) -> ConfigurationError:
    near = difflib.get_close_matches(key, sorted(known), 1)
    hint = f"did you mean {near[0]}?" if near else "`foveate COMMAND --help` lists the options."
    return ConfigurationError(f"{file}: there is no {key}; {hint}")
