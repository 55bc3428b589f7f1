"""With which values notebooks run: a profile's, and those passed by hand, each checked before anything starts."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faithlab.errors import FaithlabError, unknown
from faithlab.formats import EMBEDDED, is_hub_id, unknown_reasoner
from faithlab.notebook_files import Notebook
from faithlab.paths import user_path
from faithlab.yaml_files import read_mapping

PROFILES = Path(__file__).parent / "configs" / "notebooks"
# Set by the runner in every notebook that declares them; nobody passes them by hand.
RESERVED = ("output_dir", "profile")


@dataclass(frozen=True)
class Profile:
    """Values for parameters: `default` for every notebook that declares the name, `sections` for one notebook each."""

    name: str
    default: dict[str, Any]
    sections: dict[str, dict[str, Any]]
    timeout: float | None


def profile_names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(p.stem for p in PROFILES.glob("*.yaml"))


def load_profile(name: str, stems: Sequence[str], *, foreign: bool = False) -> Profile:
    """Read a profile: one that comes with the package, or a YAML file by its path.

    Args:
        name: "tiny", "laptop", "gpu", or a path ending in .yaml or .yml.
        stems: the notebooks there are; a section for any other is an error.
        foreign: the notebooks are not the course's own, so sections of the package's profiles do not concern them.

    Raises:
        FaithlabError: an unknown profile, a file that cannot be read or is no mapping, a `timeout` that is not a number
            above 0, or a section that is no mapping or names no notebook.
    """
    by_path = name.endswith((".yaml", ".yml"))
    if not by_path and name not in profile_names():
        raise unknown("profile", name, [*profile_names(), "or the path of a .yaml file"])
    path = Path(name) if by_path else PROFILES / f"{name}.yaml"
    content = read_mapping(path, "profile")
    timeout = content.pop("timeout", None)
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0):
        raise FaithlabError(f"profile {path}: `timeout` is a number of seconds above 0, not {timeout!r}")
    sections = {str(key): value or {} for key, value in content.items()}
    for key, value in sections.items():
        if not isinstance(value, dict):
            raise FaithlabError(f"profile {path}: section {key!r} must hold lines `name: value`")
        if key != "default" and key not in stems and (by_path or not foreign):
            raise unknown(f"section in profile {path.name}:", key, ["default", *stems])
    return Profile(path.stem, sections.pop("default", {}), sections, timeout)


def place(name: str, value: Any) -> Any:
    """A value passed by hand, checked as far as its name tells what it is, so that a run does not fail minutes later.

    `reasoner` and the like: an embedded reasoner, a folder, or a hub id; `..._path`: a file or folder; `n_...`: a
    number from 1 on. Relative paths are made absolute, for a notebook works in a folder of its own.

    Raises:
        FaithlabError: nothing there, or a number below 1.
    """
    if name.startswith("n_"):
        with contextlib.suppress(ValueError):
            if float(value) < 1:
                raise FaithlabError(f"parameter {name}={value} leaves nothing to run; use 1 or more")
    if not isinstance(value, str) or not value:
        return value
    path = user_path(value)
    if name.endswith("_path"):
        if not path.exists():
            raise FaithlabError(f"parameter {name}: no such file or folder: {path.absolute()}")
        return str(path.absolute())
    if name.endswith("reasoner") and value not in EMBEDDED:
        if path.is_dir():
            return str(path.absolute())
        if not is_hub_id(value):
            raise unknown_reasoner(value)
    return value


def settle(notebooks: Sequence[Notebook], profile: Profile, passed: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The parameters of every notebook: profile default, then its section, then what was passed by hand.

    Returns:
        stem -> {name: value}, only the names that are set; values have the type of the notebook's default.

    Raises:
        FaithlabError: a passed name that no selected notebook has, a name in a profile section that its notebook lacks,
            a value of another type than the default, or a reserved name.
    """
    for name in passed:
        if name in RESERVED:
            raise FaithlabError(f"parameter {name!r} is set by the runner; leave it out")
        if not any(name in nb.parameters for nb in notebooks):
            listing = "; ".join(f"{nb.stem}: {', '.join(nb.parameters) or 'none'}" for nb in notebooks)
            raise FaithlabError(f"no selected notebook has a parameter {name!r}; parameters are: {listing}")
    settled = {}
    for nb in notebooks:
        section = profile.sections.get(nb.stem, {})
        for name in section:
            if name not in nb.parameters:
                raise unknown(f"parameter in profile {profile.name}, section {nb.stem}:", name, nb.parameters)
        values = {k: v for k, v in (profile.default | section | dict(passed)).items() if k in nb.parameters}
        settled[nb.stem] = {k: convert(k, v, nb.parameters[k], nb.stem) for k, v in values.items() if k not in RESERVED}
    return settled


def convert(name: str, value: Any, default: Any, where: str) -> Any:
    """`value` in the type of `default`; text is read as a literal unless the default is text; None takes anything.

    Raises `FaithlabError`, naming the parameter and the notebook `where`, for a value of another type.
    """
    if isinstance(value, str) and not isinstance(default, str):
        # Also what YAML calls text: its 1e-4 is a string.
        words = {"true": True, "false": False, "null": None, "none": None}
        with contextlib.suppress(ValueError, SyntaxError):
            value = words[value.lower()] if value.lower() in words else ast.literal_eval(value.strip())
    if default is None or type(value) is type(default):
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        return type(default)(value)
    want = type(default).__name__
    raise FaithlabError(f"parameter {name!r} of {where} is of type {want} (default {default!r}), not {value!r}")
