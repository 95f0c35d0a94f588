"""`docker top`: the host's view of a container's processes.

The usual form (`-ef`) is read from /proc, which needs no ps on the host and starts no process; any other
arguments go to the host's ps, whose lines are then picked by process id.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shlex
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from swarmlet.errors import Internal, InvalidArgument, NotSupported

TITLES = ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD")
_PS_TIMEOUT_S = 10.0
_DAY_S = 86400


async def processes(pids: Collection[int], ps_args: str) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Titles and rows. Internal for arguments that ps refuses or that leave out the PID column, as dockerd."""
    if ps_args.split() in ([], ["-ef"]):
        return TITLES, await asyncio.to_thread(_from_proc, sorted(pids))
    return await _from_ps(pids, ps_args)


def _from_proc(pids: Sequence[int]) -> list[list[str]]:
    boot_s, tick = _boot_time_s(), os.sysconf("SC_CLK_TCK")
    now = time.time()
    rows = []
    for pid in pids:
        try:
            rows.append(_row(pid, boot_s, tick, now))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
    return rows


def _row(pid: int, boot_s: float, tick: int, now: float) -> list[str]:
    folder = Path("/proc") / str(pid)
    stat = (folder / "stat").read_text()
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    fields = stat[stat.rindex(")") + 2 :].split()
    used_s = (int(fields[11]) + int(fields[12])) / tick
    started = boot_s + int(fields[19]) / tick
    uid = folder.stat().st_uid
    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    share = int(100 * used_s / max(now - started, 1e-6))
    return [
        _user(uid), str(pid), fields[1], str(min(share, 99)), _start(started, now), _tty(int(fields[4])),
        time.strftime("%H:%M:%S", time.gmtime(used_s)), command or f"[{name}]",
    ]  # fmt: skip


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _start(started: float, now: float) -> str:
    return time.strftime("%H:%M" if now - started < _DAY_S else "%b%d", time.localtime(started))


def _tty(number: int) -> str:
    major, minor = (number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00)
    if major in range(136, 144):
        return f"pts/{(major - 136) * 256 + minor}"
    return f"tty{minor}" if major == 4 else "?"


def _boot_time_s() -> float:
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    raise Internal("/proc/stat has no boot time")


async def _from_ps(pids: Collection[int], ps_args: str) -> tuple[list[str], list[list[str]]]:
    try:
        words = shlex.split(ps_args)
    except ValueError as err:
        raise InvalidArgument(f"invalid ps arguments: {ps_args}") from err
    program = shutil.which("ps")
    if program is None:
        raise NotSupported("ps arguments other than -ef need the ps program on the host (package procps)")
    # Not every form of ps takes a list of processes: then all are listed and the container's are picked.
    code, output, errors = await _run(program, *words, "-q", ",".join(map(str, sorted(pids))))
    if code:
        code, output, errors = await _run(program, *words)
    if code:
        raise Internal(f"ps: {errors.partition(chr(10))[0] or f'exit status {code}'}")  # as dockerd: its first line
    return parse_ps(output, pids)


async def _run(program: str, *words: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        program, *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_PS_TIMEOUT_S):
            output, errors = await process.communicate()
    except TimeoutError as err:
        process.kill()
        await process.wait()
        raise Internal("ps did not end in time") from err
    return process.returncode or 0, output.decode("utf-8", "replace"), errors.decode("utf-8", "replace")


def parse_ps(output: str, pids: Collection[int]) -> tuple[list[str], list[list[str]]]:
    """Titles and the rows of these processes, the last column with its spaces. Internal without a PID column."""
    lines = output.splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise Internal("Couldn't find PID field in ps output")
    column = titles.index("PID")
    rows = []
    for line in lines[1:]:
        fields = line.split(None, len(titles) - 1)
        if len(fields) > column and fields[column].isdigit() and int(fields[column]) in pids:
            rows.append(fields)
    return titles, rows
