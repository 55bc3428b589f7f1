"""What every test relies on: no network, no display, the same seed."""

import os
import random
import sys

# Before anything imports a library that reads them. `HF_HUB_OFFLINE=0 pytest -m hub` opens the hub again.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", os.environ["HF_HUB_OFFLINE"])
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, whichever tests ran before it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="module")
def abacus():
    """The embedded reasoner."""
    from faithlab.models import load_reasoner

    return load_reasoner("abacus")
