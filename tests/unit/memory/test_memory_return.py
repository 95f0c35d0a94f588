"""Memory of a busy moment goes back to the system, or serves the next one, as a process wants it."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Frees a large piece (after which glibc by default takes such pieces from its heap), then all of many pieces but
#: the last one, which holds the heap's end in place; prints what it still holds of 64 MiB.
PROGRAM = """
import sys
from swarmlet.memory import return_early

def resident_mib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024

if sys.argv[1] == "early":
    assert return_early()
del (large := bytearray(30 << 20))[:]
del large
before = resident_mib()
pieces = [bytearray(1 << 20) for _ in range(64)]
for piece in pieces:
    piece[::4096] = bytes(256)
del pieces[:-1]
print(resident_mib() - before)
"""


@pytest.mark.parametrize(("how", "keeps_it"), [("early", False), ("default", True)])
def test_pieces_freed_behind_one_that_is_kept_go_back_to_the_system(how: str, keeps_it: bool) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    assert (float(done.stdout) > 32) == keeps_it


#: Prints how many pages the system had to clear for 16 MiB, 16 times.
REUSE = """
import resource, sys
from swarmlet.memory import keep_for_reuse

assert sys.argv[1] == "default" or keep_for_reuse()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    pieces = [bytearray(b"x") * (1 << 20) for _ in range(16)]
    del pieces
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize(("how", "clears_each"), [("reuse", False), ("default", True)])
def test_a_process_that_ends_soon_has_pages_cleared_once(how: str, clears_each: bool) -> None:
    done = subprocess.run([sys.executable, "-c", REUSE, how], capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 20_000) == clears_each
