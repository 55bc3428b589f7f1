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
        content = yaml.load(path.read_text(encoding="utf-8"), _once()) or {}
    except OSError as error:
        raise FaithlabError(f"cannot read {name}: {error.strerror}; give the path of a YAML file") from error
    except (yaml.YAMLError, ValueError) as error:
        raise FaithlabError(f"{name} is no YAML: {first_words(error)}") from error
    if not isinstance(content, dict):
        raise FaithlabError(f"{name} must hold `key: value` lines; got a {type(content).__name__}")
    return content


def _once() -> type:
    """PyYAML's safe loader, but a key that comes twice is an error: of two values one would be passed over."""
    import yaml

    class Once(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            merged = "tag:yaml.org,2002:merge"  # `<<: *others`, whose keys may come again
            keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merged]
            twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
            if twice is not None:
                raise yaml.YAMLError(f"the key {twice!r} comes twice")
            return super().construct_mapping(node, deep)

    return Once


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
