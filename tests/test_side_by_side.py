"""Two processes that share a suite: nothing is lost, nothing runs twice, and both end in order."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CONFTEST = """
import os
import time
from pathlib import Path
import pytest
from side_by_side import SHARE, Shared

def pytest_configure(config):
    config.pluginmanager.register(Shared(Path(os.environ[SHARE])))

@pytest.fixture(scope="session", autouse=True)
def cluster(request):
    name = os.environ["SWARMLET_E2E_NAME"]
    Path(f"up-{name}").touch()
    deadline = time.monotonic() + 60
    while len(list(Path().glob("up-*"))) < 2:  # neither is done before the other has begun
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield name
    Path(f"down-{name}").touch()

@pytest.fixture(autouse=True)
def note(request, cluster):
    with open("ran", "a") as file:
        file.write(f"{cluster} {request.node.nodeid}\\n")
"""
TESTS = "import pytest\n@pytest.mark.parametrize('number', range({count}))\ndef test_it(number):\n    {body}\n"


def suite(folder: Path, body: str = "pass", count: int = 3) -> set[str]:
    """Files of e2e and of two other folders; the ids of their tests."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    files = [f"{where}_{n}.py" for where in ("e2e/test_e", "unit/a/test_a", "unit/b/test_b") for n in range(4)]
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(TESTS.format(count=count, body=body))
    return {f"{file}::test_it[{number}]" for file in files for number in range(count)}


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(HERE), "SWARMLET_E2E_NAME": "one"}
    return subprocess.Popen(
        [sys.executable, str(HERE / "side_by_side.py"), *arguments], cwd=folder, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(run: subprocess.Popen[str]) -> str:
    said, _ = run.communicate(timeout=60)
    return said


def ran(folder: Path) -> list[tuple[str, str]]:
    """(who, test) in order."""
    pairs = (line.split(" ", 1) for line in (folder / "ran").read_text().splitlines())
    return [(who, test) for who, test in pairs]


def test_every_test_runs_once_and_a_folder_of_unit_tests_in_one_process(tmp_path: Path) -> None:
    tests = suite(tmp_path)
    run = start(tmp_path)
    said = finish(run)

    assert run.returncode == 0, said
    assert sorted(test for _, test in ran(tmp_path)) == sorted(tests)
    for folder in ("unit/a", "unit/b"):
        assert len({who for who, test in ran(tmp_path) if test.startswith(folder)}) == 1
    assert {path.name for path in tmp_path.glob("*-one*")} == {"up-one", "up-oneb", "down-one", "down-oneb"}
    counts = re.findall(r"^[12]\| (\d+) passed", said, re.M)
    assert len(counts) == 4 and sum(map(int, counts)) == 2 * len(tests), said  # as each ends, and once more at the end


def test_a_failure_in_either_is_one_of_the_whole(tmp_path: Path) -> None:
    suite(tmp_path)
    (tmp_path / "e2e/test_e_2.py").write_text("def test_it():\n    assert 'what' == 'is wrong'\n")
    run = start(tmp_path)
    said = finish(run)

    assert run.returncode == 1
    assert re.search(r"^[12]\| E .*'what' == 'is wrong'", said, re.M) and "1 failed" in said
    assert len(ran(tmp_path)) == 12 * 3 - 2


@pytest.mark.parametrize("status", [0, 3])
def test_what_runs_beside_them_counts(tmp_path: Path, status: int) -> None:
    tests = suite(tmp_path)
    run = start(tmp_path, "--beside", f"echo looked at; exit {status}", "-q")
    said = finish(run)

    assert run.returncode == status, said
    assert "+| looked at\n" in said and len(ran(tmp_path)) == len(tests)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_interrupted_ends_both_which_clear_away(tmp_path: Path, number: signal.Signals) -> None:
    suite(tmp_path, "import time; time.sleep(60)")
    run = start(tmp_path)
    deadline = time.monotonic() + 60
    while not ((tmp_path / "ran").exists() and len(ran(tmp_path)) == 2):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.05)
    run.send_signal(number)
    said = finish(run)

    assert run.returncode == 2, said
    assert {path.name for path in tmp_path.glob("down-*")} == {"down-one", "down-oneb"}
