"""The OCI runtimes' complaints, as the docker CLI must see them to exit with 125, 126 or 127."""

from __future__ import annotations

import pytest

from swarmlet_agent.runtime import failures

MISSING = 'exec: "x": executable file not found in $PATH'
STAT = 'exec: "/x": stat /x: no such file or directory'
DENIED = 'exec: "x": permission denied'
UNABLE = "unable to start container process: "
QUOTED = r"exec: \"x\": permission denied"


@pytest.mark.parametrize(
    ("said", "reason", "code"),
    [
        ("executable file `x` not found in $PATH: No such file or directory", MISSING, 127),
        (
            "executable file `/x` not found: No such file or directory",
            'exec: "/x": stat /x: no such file or directory',
            127,
        ),
        (f"runc create failed: {UNABLE}{MISSING}", MISSING, 127),
        (f'time="2024-01-02T03:04:05Z" level=error msg="runc create failed: {UNABLE}{QUOTED}"', DENIED, 126),
        (f"\x1b[31mERRO\x1b[0m[0000] exec failed: {UNABLE}{MISSING} ", MISSING, 127),
        ("\x1b[1;31m2026-11-23T22:50:09.342018Z: open executable: Permission denied\x1b[0m\r\n", DENIED, 126),
        ("open executable: Operation not permitted", 'exec: "x": is a directory', 126),
        ("chdir: No such file or directory", "chdir: no such file or directory", 127),
        ("mount `proc` to `proc`: Operation not permitted", "mount `proc` to `proc`: operation not permitted", 128),
        ("", "the runtime gave no reason", 128),
    ],
)
def test_words_become_docker_s(said: str, reason: str, code: int) -> None:
    error = failures.create_failed(said, "x")

    assert str(error) == (
        "failed to create task for container: failed to create shim task: OCI runtime create failed: "
        f"runc create failed: unable to start container process: {reason}: unknown"
    )
    assert error.exit_code == code


def test_an_exec_has_its_own_form() -> None:
    error = failures.exec_failed("executable file `x` not found in $PATH: No such file or directory", "x")

    assert str(error) == (
        "OCI runtime exec failed: exec failed: unable to start container process: "
        'exec: "x": executable file not found in $PATH: unknown'
    )


def test_the_last_message_of_a_log_counts() -> None:
    log = '{"msg":"first","level":"warning"}\n{"msg":"last","level":"error","time":"x"}\n{"msg":"cut o'

    assert failures.last_logged(log) == "last"
    assert failures.last_logged("") == ""
