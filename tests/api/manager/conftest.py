from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from manager_lab import Lab, manager_lab


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with manager_lab(tmp_path) as made:
        yield made
