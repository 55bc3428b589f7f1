"""The page of the public interface, `lib/API.md`, made from the docstrings.

python -m faithlab.api_page          (part of `make notebooks`)

A module's page has its docstring and every public function and class that it defines, with signature and docstring;
of a class its public methods and properties too.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import faithlab
from faithlab.results import write_atomically

PATH = Path(__file__).resolve().parents[1] / "API.md"
HEAD = """# The library, module by module

Made from the docstrings by `python -m faithlab.api_page`; do not edit. The way data flows through these modules
is drawn in the [README](../README.md); every command also describes itself: `faithlab COMMAND --help`.
"""
LONGEST = 800  # characters of a signature
# Made for one purpose of this repository, and of no use to others.
INTERNAL = ("abacus", "exercises", "api_page", "readme", "cli")


def modules() -> Iterator[ModuleType]:
    """The package's modules, in alphabetical order, those of subpackages behind their package."""
    for found in pkgutil.walk_packages(faithlab.__path__, "faithlab."):
        if found.name.split(".")[1] not in INTERNAL and not any(part.startswith("_") for part in found.name.split(".")):
            yield importlib.import_module(found.name)


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The public functions and classes that a module defines, in the order of its source."""
    own = [
        (name, thing)
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(thing) or inspect.isclass(thing))
        and getattr(thing, "__module__", "") == module.__name__
        and name not in ("add_arguments", "command", "main")
    ]
    yield from sorted(own, key=lambda pair: inspect.getsourcelines(pair[1])[1])


def signature(name: str, thing: Any) -> str:
    """`name(arguments) -> result` as written in the source, without default values that name this machine."""
    try:
        text = str(inspect.signature(thing))
    except (TypeError, ValueError):
        return name
    if len(text) > LONGEST:  # of a class that inherits a hundred settings
        return f"{name}(...)"
    text = re.sub(r"<([\w.]+)[^<>]*>", r"\1", text)
    text = re.sub(r"ForwardRef\('([^']*)'[^)]*\)", r"\1", text)
    return name + re.sub(r"((?:: |-> ))'((?:[^'\\]|\\.)*)'", r"\1\2", text)  # annotations only, not default values


def page() -> str:
    """The whole page."""
    parts, listing = [], []
    for module in modules():
        short = module.__name__.removeprefix("faithlab.")
        entries = [_entry(name, thing) for name, thing in public(module)]
        if entries:
            listing.append(f"[{short}](#{short.replace('.', '')})")
            parts.append("\n".join([f"## {short}\n", _block(module), *entries]))
    return "\n".join([HEAD, " · ".join(listing) + "\n", *parts]).rstrip() + "\n"


def _entry(name: str, thing: Any) -> str:
    lines = [f"### `{signature(name, thing)}`\n", _block(thing)]
    if inspect.isclass(thing):
        for method, value in vars(thing).items():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if method.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
                continue
            called = method if isinstance(value, property) else signature(method, function)
            lines += [f"#### `{name}.{called}`\n", _block(function)]
    return "\n".join(lines)


def _block(thing: Any) -> str:
    """A docstring as a block of plain text, since ours use indentation and not Markdown."""
    text = inspect.cleandoc(thing.__doc__ or "").rstrip()
    return f"```text\n{text}\n```\n" if text else ""


def main() -> None:
    """Command line: write the page."""
    write_atomically(PATH, page())
    print(f"{PATH.name}: written")


if __name__ == "__main__":
    main()
