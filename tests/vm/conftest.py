"""Tests on booted hosts: their mark, their time, and hosts that are gone again however the tests end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from booted_hosts import LAB
from booted_site import PLAYBOOK_S
from container_hosts import left_of

#: They begin first: of two runs beside each other, neither then waits long for the other.
LONGEST = ("test_vm_site.py", "test_vm_etcd.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.vm)
        item.add_marker(pytest.mark.timeout(2 * PLAYBOOK_S))
    items.sort(key=lambda item: 1 + (item.path.name not in LONGEST) if here in item.path.parents else 0)


@pytest.fixture(scope="package", autouse=True)
def told_to_end() -> Iterator[None]:
    """SIGTERM is Ctrl-C: pytest tears down what it has set up."""
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="package", autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    assert left_of(f"{LAB}{os.getpid()}") == []
