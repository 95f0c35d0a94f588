"""`swarmlet backup`, `swarmlet restore` and `swarmlet uninstall`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec

import click

from swarmlet.config import DEFAULT_CONFIG, AgentSettings, load_agent
from swarmlet.errors import Conflict, Forbidden, SwarmletError
from swarmlet_agent.app import only_one
from swarmlet_agent.upkeep import backups
from swarmlet_agent.upkeep.removal import remove_everything

P = ParamSpec("P")

config_option = click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help=f"The agent's settings [{DEFAULT_CONFIG}]"
)
file_argument = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))


def _answers_errors(command: Callable[P, None]) -> Callable[P, None]:
    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            if os.geteuid() != 0:
                raise Forbidden("run it as root")
            command(*args, **kwargs)
        except SwarmletError as err:
            raise click.ClickException(str(err)) from err

    return wrapped


def _settings(config: Path | None) -> AgentSettings:
    return load_agent(config, os.environ)


@contextlib.contextmanager
def _without_agent(settings: AgentSettings, what: str) -> Iterator[None]:
    try:
        with only_one(Path(settings.data_dir)):
            yield
    except Conflict as err:
        raise Conflict(f"{err}: stop it before {what}") from err


@click.group()
def main() -> None:
    """The host's own things."""


@main.command()
@config_option
@file_argument
@_answers_errors
def backup(config: Path | None, file: Path) -> None:
    """Write this manager's state into FILE: the cluster's, and who this manager is.

    The cluster goes on meanwhile. Whoever reads the file owns the cluster.
    """
    backups.save(_settings(config), file.absolute())
    click.echo(f"The cluster's state is in {file}. It holds the cluster's keys: keep it as such.")


@main.command()
@config_option
@click.option("--yes", is_flag=True, help="Give up the cluster's state of now without being asked.")
@file_argument
@_answers_errors
def restore(config: Path | None, yes: bool, file: Path) -> None:
    """Make this host the manager that the backup FILE is of. The agent must be stopped, and the address the same.

    With an etcd of your own restore that first, from the file etcd.snapshot in FILE, while no manager runs.
    """
    settings = _settings(config)
    Path(settings.data_dir).mkdir(parents=True, exist_ok=True, mode=0o711)
    with _without_agent(settings, "restoring"):
        if not yes:
            click.confirm("The state that this host's manager has now will be lost. Go on?", abort=True)
        asyncio.run(backups.restore(settings, file.absolute()))
    if settings.etcd.endpoints:
        click.echo("Who this manager is has been restored; the cluster's state is what your etcd has. Start the agent.")
    else:
        click.echo("Restored: start the agent.")


@main.command()
@config_option
@click.option("--yes", is_flag=True, help="Remove all without being asked.")
@_answers_errors
def uninstall(config: Path | None, yes: bool) -> None:
    """Remove every container, network, volume and image, and the host's part in a cluster. The agent must be stopped.

    What is left are the programs and the settings.
    """
    settings = _settings(config)
    if not Path(settings.data_dir).exists() and not Path(settings.run_dir).exists():
        click.echo("There is nothing to remove.")
        return
    with _without_agent(settings, "uninstalling"):
        if not yes:
            click.confirm("Every container, volume and image of this host will be lost. Go on?", abort=True)
        removed = asyncio.run(remove_everything(settings))
    click.echo("Everything is removed." if removed else "There is nothing to remove.")


if __name__ == "__main__":
    main(prog_name="swarmlet")
