"""`swarmlet doctor`: is this host fit to be a node? Exit status 1 if there is a problem."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

from swarmlet.config import DEFAULT_CONFIG, load_agent
from swarmlet.errors import InvalidArgument
from swarmlet_agent.doctor.findings import Finding, Verdict, examine
from swarmlet_agent.doctor.lookup import look

_COLOURS = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "red"}


@click.command()
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help=f"The agent's settings [{DEFAULT_CONFIG}]"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON array, for programs.")
def main(config: Path | None, as_json: bool) -> None:
    """Look whether this host is fit to be a node of a cluster, and say what to do where it is not."""
    try:
        findings = examine(look(load_agent(config, os.environ)))
    except InvalidArgument as err:
        findings = [Finding(Verdict.PROBLEM, "settings", str(err), "correct the file or the environment")]
    if as_json:
        click.echo(json.dumps([asdict(finding) | {"verdict": finding.verdict.value} for finding in findings]))
    else:
        _print(findings)
    sys.exit(any(finding.verdict is Verdict.PROBLEM for finding in findings))


def _print(findings: list[Finding]) -> None:
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        verdict = click.style(f"{finding.verdict.value:9}", fg=_COLOURS[finding.verdict])
        click.echo(f"{verdict}{finding.what:{width}}  {finding.found}")
        if finding.remedy:
            click.echo(f"{'':9}{'':{width}}  → {finding.remedy}")


if __name__ == "__main__":
    main(prog_name="swarmlet doctor")
