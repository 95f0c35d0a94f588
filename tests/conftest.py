"""What every test needs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import settings
from side_by_side import SHARE, Shared

# pytest-asyncio asks for the main thread's loop before it sets its own. Unless told that there is none, Python
# 3.11 makes one for that question, and nobody closes it.
asyncio.set_event_loop(None)

# A busy machine makes single examples slow; what must be fast is measured by the benchmarks.
settings.register_profile("swarmlet", deadline=None)
settings.load_profile("swarmlet")


def pytest_configure(config: pytest.Config) -> None:
    if claims := os.environ.get(SHARE):
        config.pluginmanager.register(Shared(Path(claims)))
