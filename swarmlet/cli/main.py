"""The `swarmlet` command: clusters on this machine, and the tools to try failures on them.

Everything else is done with the docker command: `eval $(swarmlet env)` and go on.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import click
from click.shell_completion import get_completion_class
from rich.console import Console
from rich.table import Table

from swarmlet.config import EtcdSettings
from swarmlet.errors import Forbidden, SwarmletError
from swarmlet.local import cluster as clusters
from swarmlet.local import hosts
from swarmlet.local.layout import ClusterLayout, HostLayout, plan_cluster
from swarmlet.release import RELEASE

P = ParamSpec("P")
R = TypeVar("R")

name_option = click.option(
    "--name", default=clusters.DEFAULT_NAME, show_default=True, envvar="SWARMLET_CLUSTER", help="Which cluster."
)


def _answers_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Our errors become one line and exit code 1; a defect keeps its traceback."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except SwarmletError as err:
            raise click.ClickException(str(err)) from err

    return wrapped


def _need_root() -> None:
    if os.geteuid() != 0:
        raise Forbidden("this makes namespaces and cgroups: run it as root")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(RELEASE, prog_name="swarmlet")
def main() -> None:
    """Swarmlet: containers across hosts, driven by the docker command."""


@main.command()
@click.option("--nodes", type=int, help=f"How many hosts.  [default: as many as it has, or {clusters.DEFAULT_NODES}]")
@click.option("--managers", type=int, help="How many of them are managers; more than one needs --etcd.  [default: 1]")
@click.option("--demo", is_flag=True, help="Deploy the demo web service as well.")
@click.option("--etcd", multiple=True, metavar="URL", help="Keep the state in this etcd of yours (may repeat).")
@click.option("--etcd-ca", default="", metavar="FILE", help="The CA of that etcd's certificate (PEM).")
@click.option("--etcd-cert", default="", metavar="FILE", help="The client certificate for it (PEM).")
@click.option("--etcd-key", default="", metavar="FILE", help="The client certificate's key (PEM).")
@name_option
@_answers_errors
def up(
    nodes: int | None, managers: int | None, demo: bool, etcd: tuple[str, ...], etcd_ca: str, etcd_cert: str,
    etcd_key: str, name: str,
) -> None:
    """Start a cluster on this machine, or what is missing of it."""
    _need_root()
    from swarmlet.local.demo import ensure_demo
    from swarmlet.local.images import ensure_images

    ca, cert, key = (os.path.abspath(file) if file else "" for file in (etcd_ca, etcd_cert, etcd_key))
    settings = EtcdSettings(endpoints=etcd, ca=ca, cert=cert, key=key)
    plan_cluster(name, 1, 0)
    with clusters.changing(name):
        cluster = clusters.up(name, nodes, lambda line: click.echo(line, err=True), settings, managers)
        ensure_images(cluster)
        urls = ensure_demo(cluster) if demo else []
    option = "" if name == clusters.DEFAULT_NAME else f" --name {name}"
    click.echo(f"\nThe cluster is up. To use it:\n\n    eval $({_self()} env{option})\n    docker node ls")
    if urls:
        click.echo(f"\nThe demo service runs in {len(urls)} replicas; each has a port of its node:\n")
        click.echo("".join(f"    curl {url}\n" for url in urls))
        click.echo(
            "What to try next:\n\n"
            "    docker service ps demo\n"
            "    docker service scale demo=10\n"
            "    docker service update --env-add COLOUR=blue --update-parallelism 2 demo\n"
            f"    {_self()} host kill node-3{option}      # and look at: docker service ps demo\n"
            f"    {_self()} host start node-3{option}\n"
            "    docker run -it --rm busybox sh"
        )


@main.command()
@name_option
@click.option("--all", "everything", is_flag=True, help="Every cluster on this machine.")
@_answers_errors
def down(name: str, everything: bool) -> None:
    """Remove a cluster: processes, mounts, namespaces, cgroups, links and data."""
    _need_root()
    names = clusters.all_names() if everything else [name]
    for each in names:
        if each not in clusters.all_names():
            click.echo(f"There is no cluster {each!r} on this machine.", err=True)
            continue
        with clusters.changing(each):
            clusters.down(each)
        click.echo(f"Cluster {each!r} is gone.", err=True)


@main.command()
@click.argument("node", required=False)
@name_option
@_answers_errors
def env(node: str | None, name: str) -> None:
    """Print the DOCKER_HOST of the cluster view, or of one node's own engine."""
    cluster = clusters.find(name)
    socket = cluster.node(node).agent_socket if node else cluster.nodes[0].manager_socket
    click.echo(f"export DOCKER_HOST=unix://{socket}")


def _of_the_agent(name: str, help_text: str, *argv: str) -> None:
    """A command of the agent's, which this package does not know: `argv` runs it."""

    @click.argument("options", nargs=-1, type=click.UNPROCESSED)
    def command(options: tuple[str, ...]) -> None:
        os.execv(sys.executable, [sys.executable, "-m", *argv, *options])

    takes_all = {"ignore_unknown_options": True, "help_option_names": []}
    main.command(name, help=help_text, context_settings=takes_all)(command)


_UPKEEP = "swarmlet_agent.upkeep"
_of_the_agent("doctor", "Look whether this host is fit to be a node, and what to do where it is not.",
              "swarmlet_agent.doctor")
_of_the_agent("backup", "Write this manager's state into a file.", _UPKEEP, "backup")
_of_the_agent("restore", "Make this host the manager that a backup is of.", _UPKEEP, "restore")
_of_the_agent("uninstall", "Remove containers, networks, volumes and data from this host.", _UPKEEP, "uninstall")


@main.command("version")
def show_version() -> None:
    """Print the version of this installation; `docker version` tells that of an engine."""
    click.echo(RELEASE)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes this command's words: eval "$(swarmlet completion bash)"."""
    found = get_completion_class(shell)
    assert found is not None  # the choices above are click's own shells
    click.echo(found(main, {}, "swarmlet", "_SWARMLET_COMPLETE").source())


@main.group()
def host() -> None:
    """The simulated hosts: look at them, run commands on them, break them."""


@host.command("ls")
@name_option
@_answers_errors
def host_ls(name: str) -> None:
    """List the hosts and what the cluster thinks of them."""
    rows = clusters.status(clusters.find(name))
    table = Table("HOST", "ADDRESS", "AGENT", "PROCESSES", "NODE", box=None, header_style="")
    for row in rows:
        table.add_row(
            row["name"], row["address"], "running" if row["running"] else "stopped", str(row["processes"]), row["node"]
        )
    Console(soft_wrap=True).print(table)


@host.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@name_option
@_answers_errors
def host_exec(node: str, command: tuple[str, ...], name: str) -> None:
    """Run a command inside a host's namespaces; the exit code is the command's."""
    _need_root()
    target = clusters.find(name).node(node)
    sys.exit(subprocess.run(hosts.enter_argv(target, command)).returncode)


def _on_host(
    label: str, act: Callable[[ClusterLayout, HostLayout], None], help_text: str
) -> Callable[[str, str], None]:
    @_answers_errors
    def command(node: str, name: str) -> None:
        _need_root()
        cluster = clusters.find(name)
        act(cluster, cluster.node(node))

    return host.command(label, help=help_text)(click.argument("node")(name_option(command)))


_on_host("cut", lambda _, target: hosts.set_cable(target, plugged=False), "Pull a host's network cable.")
_on_host("heal", lambda _, target: hosts.set_cable(target, plugged=True), "Plug a host's network cable in again.")
_on_host("kill", clusters.kill, "SIGKILL everything on a host, containers included, as a power cut would.")
_on_host("start", clusters.start, "Boot a killed host again.")


def _self() -> str:
    """How the user can call this command again."""
    name = os.path.basename(sys.argv[0])
    on_path = any(os.path.join(folder, name) == sys.argv[0] for folder in os.environ.get("PATH", "").split(":"))
    return name if on_path else sys.argv[0]
