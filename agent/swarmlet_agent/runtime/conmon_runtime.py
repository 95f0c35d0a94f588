"""The runtime: containers' processes by conmon and an OCI runtime (crun, or runc), on this host.

Truth is in files and the kernel, never in this object: another agent that finds the same run folder can wait for,
attach to, exec into, signal and delete every container an earlier one has made.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from swarmlet.errors import Conflict, Internal
from swarmlet.log import get_logger
from swarmlet_agent.decide.remap import Remap
from swarmlet_agent.runtime import attach, cdi, devices, facts, failures, oci, resources, userns
from swarmlet_agent.runtime.bundle import Bundle, Meta, write_control
from swarmlet_agent.runtime.cgroups import Cgroups
from swarmlet_agent.runtime.conmon import Command
from swarmlet_agent.runtime.devices import Devices
from swarmlet_agent.runtime.execs import ExecStarter, RunningExec
from swarmlet_agent.runtime.facts import HostFacts
from swarmlet_agent.runtime.filters import FilterCache
from swarmlet_agent.runtime.host import RuntimeInfo, choose
from swarmlet_agent.runtime.launch import Launcher
from swarmlet_agent.runtime.mounts import DEFAULT_SHM_BYTES
from swarmlet_agent.runtime.seccomp_default import DEFAULT_PROFILE
from swarmlet_agent.runtime.shared import ensure_shared, release_shared
from swarmlet_agent.runtime.spawner import Child, process_end
from swarmlet_agent.runtime.types import ContainerPlan, ExecPlan, Exit, Usage
from swarmlet_agent.runtime.watch import FolderWatch

log = get_logger(__name__)

#: How long conmon may take to end after its container has.
CONMON_END_TIMEOUT_S = 10.0
#: Exit code of a container whose conmon was killed: nobody was told the real one.
UNKNOWN_EXIT_CODE = 255


class ConmonRuntime:
    """run_dir: short-lived files (on a tmpfs such as /run); data_dir: where root file systems lie.

    cgroup_parent: the cgroup above containers' ("/swarmlet"); conmon itself runs in `<parent>/conmon`.
    runtime: "auto" (crun, else runc), "crun" or "runc". Everything but the constructor needs `open` first.
    """

    _facts: HostFacts
    _launcher: Launcher
    _filters: FilterCache
    _starter: ExecStarter

    def __init__(
        self,
        run_dir: Path,
        *,
        data_dir: Path,
        cgroup_parent: str,
        runtime: str = "auto",
        seccomp_profile: Path | None = DEFAULT_PROFILE,
        open_files: tuple[int, int] | None = None,
    ) -> None:
        """open_files: (soft, hard) limit for containers where the user asks for none; None: what they inherit."""
        self._run_dir, self._data_dir = run_dir.resolve(), data_dir.resolve()
        self._parent = cgroup_parent
        self._wanted = runtime
        self._profile = seccomp_profile
        self._open_files = open_files
        self._info = RuntimeInfo()
        self._cgroups = Cgroups.of_this_host()
        self._watch = FolderWatch()
        self._keeper = attach.Keeper()
        self._children: dict[str, Child] = {}
        self._execs: set[RunningExec] = set()
        self._opened = False
        # More at a time only share the same processors, and each holds memory while it waits.
        self._turns = asyncio.Semaphore(max(4, 2 * (os.cpu_count() or 1)))

    async def open(self) -> None:
        """Look at the host and get ready. Internal if conmon or an OCI runtime is missing; OSError."""
        for name in ("containers", "exits", "oci", "execs"):
            (self._run_dir / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._facts = await asyncio.to_thread(facts.probe, self._profile, open_files=self._open_files)
        programs, self._info = await choose(self._wanted, self._facts, self._cgroups)
        commands = {name: self._command(program) for name, program in programs.items()}
        commands[""] = commands[self._info.name]
        isolated = self._facts.hybrid and any(command.is_crun for command in commands.values())
        folders = (self._run_dir, self._data_dir)
        if isolated:
            for folder in folders:
                await asyncio.to_thread(ensure_shared, folder)
        self._launcher = Launcher(commands, self._cgroups, self._parent, isolated=isolated, shared=folders)
        await self._launcher.start()
        self._filters = FilterCache(self._data_dir / "seccomp", f"{self._info.name} {self._info.version}")
        self._watch.open(self._run_dir / "exits", self._run_dir / "execs")
        self._starter = ExecStarter(self._launcher, self._watch, self._run_dir / "execs")
        self._opened = True

    def _command(self, program: str) -> Command:
        args = ("--cgroup-manager=cgroupfs",) if os.path.basename(program) == "crun" else ()
        return Command(self._info.conmon_path, program, (*args, "--root", str(self._run_dir / "oci")))

    async def close(self) -> None:
        """Let go of everything; containers run on. May be repeated."""
        if not self._opened:
            return
        self._opened = False
        for running in list(self._execs):
            await running.forget()
        self._execs.clear()
        for child in self._children.values():
            child.forget()
        self._children.clear()
        self._keeper.close()
        self._watch.close()
        await self._launcher.close()

    async def teardown(self) -> None:
        """Close, and undo what `open` did to the host's mounts and cgroups. For `down`, with no containers left."""
        await self.close()
        await asyncio.to_thread(userns.release, self._run_dir / "userns")
        for folder in (self._run_dir, self._data_dir):
            await asyncio.to_thread(release_shared, folder)
        await asyncio.to_thread(self._cgroups.remove_if_empty, f"{self._parent}/conmon")
        await asyncio.to_thread(self._cgroups.remove_if_empty, self._parent)

    def supports(self) -> RuntimeInfo:
        """What `info` tells of the runtime and the host."""
        return self._info

    async def user_namespace(self, remap: Remap) -> str:
        """See the engine's Runtime protocol."""
        return str(await asyncio.to_thread(userns.ensure_namespace, self._run_dir / "userns", remap))

    def containers(self) -> list[str]:
        """Ids of every container with files here, whoever made it."""
        return sorted(os.listdir(self._run_dir / "containers"))

    async def create(self, plan: ContainerPlan, *, log_path: Path) -> int:
        """conmon and the OCI runtime's `create`: the pid of the waiting init process.

        What an earlier run of the same id left behind is deleted first. StartFailed; InvalidArgument and
        NotSupported for impossible options. After an error nothing is left.
        """
        async with self._turns:
            box = Bundle(self._run_dir, plan.id)
            if box.exists or box.exit_file.exists():
                await self.delete(plan.id)
            try:
                return await self._create(box, plan, log_path)
            except BaseException:  # cancelled, too: undo, and pass it on
                await asyncio.shield(asyncio.ensure_future(self.delete(plan.id)))
                raise

    async def start(self, container_id: str) -> None:
        """Run the user's program. StartFailed; NotFound if it was not created."""
        box = Bundle(self._run_dir, container_id)
        meta = box.meta()
        if self._launcher.command(meta.runtime).is_crun and box.open_gate():
            return
        code, text = await self._launcher.command_output(meta.runtime, "start", container_id)
        if code:
            raise failures.create_failed(text, meta.program)

    async def attach(self, container_id: str, *, tty: bool) -> attach.ConmonStreams:
        """Conflict if it does not run. tty makes no difference here: conmon sends a terminal's output as stdout."""
        box = Bundle(self._run_dir, container_id)
        init = box.process("init")
        if init is None:
            raise Conflict(f"container {container_id} is not running")
        try:
            connection = attach.connect(box.path)
        except OSError as err:
            raise Conflict(f"container {container_id} cannot be attached to: {err.strerror}") from err
        return attach.ConmonStreams(
            connection, init_pid=init.pid, closes_stdin=box.meta().stdin_closes, keep=self._keeper.keep
        )

    async def resize(self, container_id: str, rows: int, columns: int) -> None:
        """Of its terminal. Conflict if it does not run."""
        box = Bundle(self._run_dir, container_id)
        try:
            write_control(box.path / "ctl", f"1 {rows} {columns}\n")
        except OSError as err:
            raise Conflict(f"container {container_id} is not running") from err

    async def reopen_log(self, container_id: str) -> None:
        """After its log file was renamed: conmon goes on with a new one. Conflict if it does not run."""
        box = Bundle(self._run_dir, container_id)
        try:
            write_control(box.path / "ctl", "2 0 0\n")
        except OSError as err:
            raise Conflict(f"container {container_id} is not running") from err

    async def exec(self, container_id: str, plan: ExecPlan) -> RunningExec:
        """StartFailed with 126 or 127 as Docker has them; Conflict if the container does not run."""
        box = Bundle(self._run_dir, container_id)
        if box.process("init") is None:
            raise Conflict(f"container {container_id} is not running")
        process = oci.exec_process(plan, box.process_config(), self._facts.available_caps)
        owner = plan.remap.on_host(plan.uid, plan.gid) if plan.remap is not None else None
        running = await self._starter.start(
            container_id, plan, process, runtime=box.meta().runtime, owner=owner
        )
        self._execs = {known for known in self._execs if not known.ended} | {running}
        return running

    async def kill(self, container_id: str, number: int, *, everything: bool = False) -> None:
        """Signal init, or every process. A container that is gone is fine."""
        box = Bundle(self._run_dir, container_id)
        init = box.process("init")
        if everything and box.exists:
            await asyncio.to_thread(self._cgroups.signal_all, box.meta().cgroup_path, number)
        elif init is not None:
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(init.pid)
                try:
                    if init.alive:  # asked again: from here on the descriptor, not the number, names it
                        signal.pidfd_send_signal(pidfd, number)
                finally:
                    os.close(pidfd)

    async def pause(self, container_id: str) -> None:
        """NotFound; Internal if the kernel does not freeze it in time."""
        path = Bundle(self._run_dir, container_id).meta().cgroup_path
        await asyncio.to_thread(self._cgroups.freeze, path)

    async def resume(self, container_id: str) -> None:
        """NotFound. One that is not paused is fine."""
        await asyncio.to_thread(self._cgroups.thaw, Bundle(self._run_dir, container_id).meta().cgroup_path)

    async def wait(self, container_id: str) -> Exit:
        """The exit, whenever it comes. NotFound if there is no such container.

        If conmon was killed nobody knows the code: UNKNOWN_EXIT_CODE, once init has ended.
        """
        box = Bundle(self._run_dir, container_id)
        meta = box.meta()
        while True:
            told = self._watch.expect(box.exit_file)
            try:
                if (found := self._exit(box, meta)) is not None:
                    return found
                watcher = box.process("conmon")
                if watcher is None:
                    return await self._unwatched_exit(box, meta)
                ending = asyncio.ensure_future(self._end_of_conmon(container_id, watcher.pid))
                try:
                    await asyncio.wait({told, ending}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    ending.cancel()
            finally:
                told.cancel()

    async def alive(self, container_id: str) -> int | None:
        """The pid of init while it lives, by the kernel."""
        init = Bundle(self._run_dir, container_id).process("init")
        return None if init is None else init.pid

    async def delete(self, container_id: str) -> None:
        """Kill what is left, remove every file and the cgroup. Nothing there is fine."""
        box = Bundle(self._run_dir, container_id)
        if not box.exists:
            box.exit_file.unlink(missing_ok=True)
            return
        path = box.cgroup_path()
        if path and (box.process("init") is not None or self._cgroups.pids(path)):
            await asyncio.to_thread(self._kill_all, path)
        if (watcher := box.process("conmon")) is not None:
            try:
                async with asyncio.timeout(CONMON_END_TIMEOUT_S):
                    await self._end_of_conmon(container_id, watcher.pid)
            except TimeoutError:
                log.warning("conmon did not end with its container", container_id=container_id, pid=watcher.pid)
                with suppress(ProcessLookupError):
                    os.kill(watcher.pid, signal.SIGKILL)
                await self._end_of_conmon(container_id, watcher.pid)
        await asyncio.to_thread(self._remove, box, path)

    async def usage(self, container_id: str) -> Usage:
        """NotFound."""
        path = Bundle(self._run_dir, container_id).meta().cgroup_path
        return await asyncio.to_thread(self._cgroups.usage, path)

    async def pids(self, container_id: str) -> list[int]:
        """NotFound."""
        path = Bundle(self._run_dir, container_id).meta().cgroup_path
        return await asyncio.to_thread(self._cgroups.pids, path)

    async def update(self, plan: ContainerPlan) -> None:
        """Apply plan.host's limits now. NotFound; Internal with the runtime's words if the kernel refuses."""
        box = Bundle(self._run_dir, plan.id)
        meta = box.meta()
        path = meta.cgroup_path
        found = await asyncio.to_thread(devices.resolve, plan.host)
        limits = resources.resources(
            plan.host,
            found.numbers,
            swap_accounting=self._facts.swap_accounting,
            cgroup_version=self._facts.cgroup_version,
        )
        if plan.host.pids_limit is not None and plan.host.pids_limit <= 0:
            # An explicit "no limit" must undo an earlier one; the runtimes do not agree on a number for it.
            await asyncio.to_thread(self._cgroups.lift_pids_limit, path)
        if plan.host.cpu_quota < 0:
            await asyncio.to_thread(self._cgroups.lift_cpu_quota, path)
        file = box.path / "resources.json"
        file.write_bytes(msgspec.json.encode(limits))
        try:
            code, text = await self._launcher.command_output(meta.runtime, "update", "--resources", str(file), plan.id)
        finally:
            file.unlink(missing_ok=True)
        if code:
            raise Internal(f"Cannot update container {plan.id}: {text.strip()}")

    async def _create(self, box: Bundle, given: ContainerPlan, log_path: Path) -> int:
        mounts = tuple(
            replace(mount, source=str(box.mapped(number))) if mount.mapped else mount
            for number, mount in enumerate(given.mounts)
        )
        plan = replace(given, mounts=mounts)
        shares_ipc = plan.host.ipc_mode == "shareable" and "ipc" not in plan.joined
        shm = str(box.path / "shm") if shares_ipc else self._joined_shm(plan.joined.get("ipc"))
        sources = {number: mount.source for number, mount in enumerate(given.mounts) if mount.mapped}
        config = oci.build(plan, self._facts, await self._look_for_devices(plan), shm_source=shm)
        if plan.host.device_requests:
            await asyncio.to_thread(cdi.inject, config, plan.host.device_requests)
        command = self._launcher.command(plan.host.runtime)
        key = self._filters.prepare(config, crun=command.is_crun and self._info.name == "crun")
        # Docker's StdinOnce means the pipe's end goes with its first client; a terminal outlives its clients.
        closes = plan.config.stdin_once and not plan.config.tty
        meta = Meta(
            cgroup_path=plan.cgroup_path, program=plan.args[0], stdin_closes=closes, runtime=plan.host.runtime
        )
        box.write(msgspec.json.encode(config), meta)
        if given.ids is not None and sources:
            await asyncio.to_thread(box.map, sources, given.ids.namespace)
        if shares_ipc:
            box.make_shm(
                plan.host.shm_size or DEFAULT_SHM_BYTES, plan.ids.remap.root if plan.ids is not None else (0, 0),
                plan.labels.mount,
            )
        await self._launcher.see([str(plan.rootfs), plan.netns_path or "", *(mount.source for mount in plan.mounts)])
        log_path.parent.mkdir(parents=True, exist_ok=True)
        argv = command.conmon_argv(
            box, log_path, tty=plan.config.tty, stdin=plan.config.open_stdin, leave_stdin_open=not closes
        )
        child, answer = await self._launcher.conmon(box, argv)
        self._children[plan.id] = child
        child.on_end(lambda: self._forget(plan.id, child))
        if answer.data < 0:
            raise failures.create_failed(answer.message, plan.args[0])
        box.remember("init", answer.data)
        if plan.ids is not None and not plan.config.tty:
            _give_streams(answer.data, plan.ids.remap.on_host(plan.uid, plan.gid))
        if key is not None:
            self._filters.keep(key, box.state / "seccomp.bpf")
        return answer.data

    async def _look_for_devices(self, plan: ContainerPlan) -> Devices:
        host = plan.host
        limited = (
            host.blkio_weight_device,
            host.blkio_device_read_bps,
            host.blkio_device_write_bps,
            host.blkio_device_read_iops,
            host.blkio_device_write_iops,
        )
        if not (host.privileged or host.devices or any(limited)):
            return Devices()
        return await asyncio.to_thread(devices.resolve, host)

    def _joined_shm(self, path: str | None) -> str:
        """The host folder to mount as /dev/shm for a joined ipc namespace: the host's, or the owner's; "" for none."""
        if path is None:
            return ""
        if path == "":
            return "/dev/shm"
        for container_id in self.containers():
            box = Bundle(self._run_dir, container_id)
            init = box.process("init")
            if init is not None and path == f"/proc/{init.pid}/ns/ipc" and (box.path / "shm").exists():
                return str(box.path / "shm")
        return ""

    def _exit(self, box: Bundle, meta: Meta) -> Exit | None:
        found = box.exit()
        if found is None or found.oom_killed:
            return found
        return Exit(found.code, found.at, self._cgroups.oom_kills(meta.cgroup_path) > 0)

    async def _unwatched_exit(self, box: Bundle, meta: Meta) -> Exit:
        """conmon is not there (any more): its last words, or the end of init without a code."""
        if (found := self._exit(box, meta)) is not None:
            return found
        if (init := box.process("init")) is not None:
            log.warning("a container runs without conmon", container_id=box.id, pid=init.pid)
            await process_end(init.pid)
        return Exit(UNKNOWN_EXIT_CODE, time.time_ns(), self._cgroups.oom_kills(meta.cgroup_path) > 0)

    async def _end_of_conmon(self, container_id: str, pid: int) -> None:
        child = self._children.get(container_id)
        if child is not None and child.pid == pid:
            await child.wait()
        else:
            await process_end(pid)

    def _forget(self, container_id: str, child: Child) -> None:
        if self._children.get(container_id) is child:
            del self._children[container_id]

    def _kill_all(self, path: str) -> None:
        self._cgroups.signal_all(path, signal.SIGKILL)
        self._cgroups.thaw(path)  # a frozen process dies only once it may run

    def _remove(self, box: Bundle, path: str) -> None:
        if path:
            self._cgroups.remove(path)
        box.remove()


def _give_streams(pid: int, owner: tuple[int, int]) -> None:
    """conmon's pipes belong to the host's root, so that a remapped program could not open /dev/stdout."""
    for number in (0, 1, 2):
        stream = f"/proc/{pid}/fd/{number}"
        if stat.S_ISFIFO(os.stat(stream).st_mode):
            os.chown(stream, *owner)
