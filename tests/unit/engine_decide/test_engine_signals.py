"""Signals: names, numbers, and whether a program is ready for one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.errors import InvalidArgument
from swarmlet_agent.decide.signals import catches, parse_signal


@pytest.mark.parametrize(
    ("text", "number"), [("KILL", 9), ("SIGTERM", 15), ("sigint", 2), ("15", 15), ("RTMIN+3", 37), ("SIGRTMAX", 64)]
)
def test_names_and_numbers_mean_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "-1", "SIGNOTHING", "TERM KILL"])
def test_what_is_no_signal_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid signal: "):
        parse_signal(text)


@given(st.sets(st.integers(1, 64)), st.integers(1, 64))
def test_a_handler_is_seen_in_the_mask_of_caught_signals(caught: set[int], number: int) -> None:
    mask = sum(1 << (caught_number - 1) for caught_number in caught)
    status = f"Name:\tsh\nSigIgn:\tffffffffffffffff\nSigCgt:\t{mask:016x}\nCapInh:\t0000000000000000\n"
    assert catches(status, number) is (number in caught)


def test_the_kernels_own_words_are_understood() -> None:
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        status = Path(f"/proc/{os.getpid()}/status").read_text()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert catches(status, signal.SIGUSR2) and not catches(status, signal.SIGKILL) and not catches("", signal.SIGUSR2)
