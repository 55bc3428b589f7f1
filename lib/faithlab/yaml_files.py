"""YAML that people write, in files and on the command line: read, or refused in one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from faithlab.errors import FaithlabError, first_words


def read_mapping(path: Path, what: str = "") -> dict[str, Any]:
    """The content of a YAML file that holds `key: value` lines; an empty file gives an empty mapping.

    Raises `FaithlabError`, which calls the file `what` and its path, if it cannot be read, is no YAML, or holds
    something else.
    """
    import yaml

    name = f"{what} {path}".strip()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise FaithlabError(f"cannot read {name}: {error.strerror}; give the path of a YAML file") from error
    except (yaml.YAMLError, ValueError) as error:
        raise FaithlabError(f"{name} is no YAML: {first_words(error)}") from error
    if not isinstance(content, dict):
        raise FaithlabError(f"{name} must hold `key: value` lines; got a {type(content).__name__}")
    return content


def read_options(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The values of `-o NAME VALUE` options, each read as YAML. Raises `FaithlabError`, naming the option, for a value
    that is none."""
    import yaml

    options = {}
    for name, value in pairs:
        try:
            options[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            raise FaithlabError(f"the value of option {name} cannot be read: {first_words(error)}") from error
    return options
