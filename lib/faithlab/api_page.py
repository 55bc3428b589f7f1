"""The page of the public interface, `lib/API.md`, made from the docstrings.

python -m faithlab.api_page          (part of `make notebooks`)

A module's page has its docstring, its public constants and names of types, with their values where these are short and
the comment beside them, and every public function and class that it defines, with signature and docstring; of a class
its public methods and properties too.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from functools import cached_property
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
SHORT = 90  # characters of a constant's value
# Made for one purpose of this repository, and of no use to others; of `exercises` but the package itself.
INTERNAL = ("abacus", "exercises", "api_page", "readme", "cli")


def modules() -> Iterator[ModuleType]:
    """The package's modules, in alphabetical order, those of subpackages behind their package."""
    for found in pkgutil.walk_packages(faithlab.__path__, "faithlab."):
        is_internal = found.name.split(".")[1] in INTERNAL and found.name != "faithlab.exercises"
        if not is_internal and not any(part.startswith("_") for part in found.name.split(".")):
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


def constants(module: ModuleType) -> Iterator[str]:
    """A line for each public constant (NAME) and name of a type (`Name = Literal[...]`) that a module defines."""
    source = Path(module.__file__ or "").read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in ast.parse(source).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names = [t.id for target in targets for t in getattr(target, "elts", [target]) if isinstance(t, ast.Name)]
        value = " ".join((ast.get_source_segment(source, node.value) or "").split()) if names and node.value else ""
        of_type = value.startswith("Literal[")
        names = [n for n in names if not n.startswith("_") and (n.isupper() or of_type) and n != "COMMANDS"]
        if names:
            line = lines[(node.end_lineno or 1) - 1][node.end_col_offset or 0 :]
            said = f"  # {line.split('#', 1)[1].strip()}" if "#" in line else ""
            yield f"{', '.join(names)} = {value if len(value) <= SHORT else '...'}{said}"


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
        if values := "\n".join(constants(module)):
            entries.insert(0, f"```python\n{values}\n```\n")
        if entries:
            listing.append(f"[{short}](#{short.replace('.', '')})")
            parts.append("\n".join([f"## {short}\n", _block(module), *entries]))
    return "\n".join([HEAD, " · ".join(listing) + "\n", *parts]).rstrip() + "\n"


def _entry(name: str, thing: Any) -> str:
    lines = [f"### `{signature(name, thing)}`\n", _block(thing)]
    if inspect.isclass(thing):
        for method, value in vars(thing).items():
            is_property = isinstance(value, property | cached_property)
            function = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", value)
            if method.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
                continue
            called = method if is_property else signature(method, function)
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
