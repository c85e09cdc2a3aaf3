"""The folder where whit keeps what can be fetched or computed again.

`WHIT_CACHE` names it; else it is the system's usual place for a user's caches. Never holds anything
that cannot be made anew.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The cache folder (it may not exist yet)."""
    named = os.environ.get("WHIT_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("whit"))


def bases_folder() -> Path:
    """Where pulled bases lie."""
    return cache_folder() / "bases"
