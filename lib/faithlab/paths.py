"""Where data and caches lie, which weights a folder holds, and how a path is shown. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from faithlab.errors import FaithlabError, first_words


def fingerprint(folder: Path) -> str:
    """The first 12 hex digits of the SHA-256 of a checkpoint's weights: says which checkpoint a result is of."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):  # one, or parts
        with path.open("rb") as file:
            while block := file.read(2**24):
                digest.update(block)
    return digest.hexdigest()[:12]


def data_folder() -> Path:
    """The repository's `data/` folder, or what FAITHLAB_DATA names."""
    return Path(os.environ.get("FAITHLAB_DATA") or Path(__file__).resolve().parents[2] / "data")


def cache_folder() -> Path:
    """Where converted weights are kept: FAITHLAB_CACHE, or `faithlab` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FAITHLAB_CACHE") or Path(base) / "faithlab")


def user_path(text: str | Path) -> Path:
    """A path that somebody typed, `~` written out. Raises `FaithlabError` for what the system does not take as one:
    the home of an unknown user, a name that is too long, a folder that may not be looked into."""
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise FaithlabError(f"no such file or folder: {text} ({first_words(error)})") from error
    return path


def make_folder(path: str | Path) -> Path:
    """A folder that is there, with those above it. Raises `FaithlabError` where it cannot be made."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FaithlabError(f"cannot make the folder {path}: {error.strerror}; choose another one") from error
    return Path(path)


def short(path: Path) -> str:
    """A path as short as it can be typed from here."""
    try:
        found = os.path.relpath(path)
    except ValueError:  # on Windows, another drive
        return str(path)
    return str(path) if found.startswith("..") else found
