"""Health checks with stock clients: verdicts, their log and events, images' own checks, restarts and crashes."""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from datetime import datetime
from typing import Any

from e2e_cluster import Cluster, View, eventually

FAST = ("--health-interval", "200ms", "--health-timeout", "2s")


def health(view: View, name: str) -> dict[str, Any]:
    found: dict[str, Any] = view.json("inspect", name)[0]["State"].get("Health") or {}
    return found


def moment(text: str) -> datetime:
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", text))


def verdict(view: View, name: str) -> str:
    return str(health(view, name).get("Status"))


def test_a_check_turns_healthy_unhealthy_and_healthy_again_and_events_tell(view: View) -> None:
    view("run", "-d", "--name", "box", "--health-cmd", "test -e /ok", *FAST, "--health-retries", "3",
         "busybox", "sh", "-c", "touch /ok; sleep 600")  # fmt: skip
    assert verdict(view, "box") in ("starting", "healthy")
    eventually(lambda: verdict(view, "box") == "healthy")
    assert view.rows("ps")[0]["Status"].endswith("(healthy)")
    view("exec", "box", "rm", "/ok")
    eventually(lambda: verdict(view, "box") == "unhealthy")
    assert health(view, "box")["FailingStreak"] >= 3
    assert view("ps", "-q", "--filter", "health=unhealthy") and not view("ps", "-q", "--filter", "health=healthy")
    view("exec", "box", "touch", "/ok")
    eventually(lambda: verdict(view, "box") == "healthy")
    assert health(view, "box")["FailingStreak"] == 0

    ident = view("inspect", "-f", "{{.Id}}", "box")
    told = view("events", "--since", "60s", "--until", f"{time.time():.6f}", "--filter", f"container={ident}",
                "--filter", "event=health_status", "--format", "{{.Action}}").splitlines()  # fmt: skip
    assert told == ["health_status: healthy", "health_status: unhealthy", "health_status: healthy"]
    probes = view("events", "--since", "60s", "--until", f"{time.time():.6f}", "--filter", f"container={ident}",
                  "--filter", "event=exec_create", "--filter", "event=exec_start", "--filter", "event=exec_die",
                  "--format", "{{.Action}} {{.Actor.Attributes.exitCode}}").splitlines()  # fmt: skip
    assert probes[:3] == [
        "exec_create: /bin/sh -c test -e /ok <no value>", "exec_start: /bin/sh -c test -e /ok <no value>", "exec_die 0",
    ]
    assert "exec_die 1" in probes


def test_the_last_five_results_are_kept_with_the_beginning_of_their_output(view: View) -> None:
    script = "echo beginning; head -c 6000 /dev/zero | tr '\\0' x; echo to stderr >&2; exit 4"
    view("run", "-d", "--name", "box", "--health-cmd", script, *FAST, "busybox", "sleep", "600")
    eventually(lambda: health(view, "box")["FailingStreak"] > 5)
    log = health(view, "box")["Log"]
    assert len(log) == 5 and [each["ExitCode"] for each in log] == [4] * 5
    assert all(each["Output"].startswith("beginning\nxxx") and len(each["Output"]) == 4096 + 3 for each in log)
    assert all(first["End"] <= second["Start"] for first, second in itertools.pairwise(log))


def test_a_check_that_lasts_too_long_fails_and_is_killed(view: View) -> None:
    view("run", "-d", "--name", "box", "--health-cmd", "echo began; sleep 611", "--health-interval", "200ms",
         "--health-timeout", "500ms", "--health-retries", "1", "busybox", "sleep", "600")  # fmt: skip
    eventually(lambda: verdict(view, "box") == "unhealthy")
    result = health(view, "box")["Log"][0]
    assert result["ExitCode"] == -1 and result["Output"].startswith("Health check exceeded timeout (500ms)")
    view("stop", "-t", "0", "box")
    assert verdict(view, "box") == "unhealthy"


def test_failures_in_the_start_period_do_not_count_and_its_checks_are_more_frequent(view: View) -> None:
    view("run", "-d", "--name", "box", "--health-cmd", "test -e /ok", "--health-interval", "30s",
         "--health-retries", "1",
         "--health-start-period", "30s", "--health-start-interval", "200ms", "busybox", "sleep", "600")  # fmt: skip
    eventually(lambda: len(health(view, "box")["Log"] or []) >= 3)
    assert (verdict(view, "box"), health(view, "box")["FailingStreak"]) == ("starting", 0)
    assert view.rows("ps")[0]["Status"].endswith("(health: starting)")
    view("exec", "box", "touch", "/ok")
    eventually(lambda: verdict(view, "box") == "healthy", 20)  # the usual interval would be 30 s


def test_an_images_check_is_used_changed_or_turned_off(cluster: Cluster) -> None:
    node = cluster.node(2)
    node("create", "--name", "base", "busybox", "sleep", "600")
    change = 'HEALTHCHECK --interval=200ms --retries=2 CMD ["test", "-e", "/ok"]'
    node("commit", "--change", change, "base", "checked")
    try:
        changes = ["--health-cmd", "true", "--health-interval", "300ms"]
        for name, options in (("own", []), ("off", ["--no-healthcheck"]), ("changed", changes)):
            node("run", "-d", "--name", name, *options, "checked")
        assert node.json("inspect", "own")[0]["Config"]["Healthcheck"]["Test"] == ["CMD", "test", "-e", "/ok"]
        eventually(lambda: verdict(node, "own") == "unhealthy")
        eventually(lambda: verdict(node, "changed") == "healthy")
        changed = node.json("inspect", "changed")[0]["Config"]["Healthcheck"]
        assert (changed["Test"], changed["Interval"], changed["Retries"]) == (["CMD-SHELL", "true"], 300_000_000, 2)
        assert "Health" not in node.json("inspect", "off")[0]["State"]
        assert node("ps", "-q", "--filter", "health=none", "--no-trunc") == node("inspect", "-f", "{{.Id}}", "off")
    finally:
        node("rm", "-f", "base", "own", "off", "changed")
        node("rmi", "checked")


def test_a_restart_begins_anew_and_an_agents_death_does_not(cluster: Cluster) -> None:
    node = cluster.node(2)
    node("run", "-d", "--name", "box", "--health-cmd", "test -e /ok", *FAST, "--health-retries", "1", "busybox",
         "sh", "-c", "sleep 600")  # fmt: skip
    node("exec", "box", "touch", "/ok")
    eventually(lambda: verdict(node, "box") == "healthy")
    os.kill(cluster.pid(2, "swarmlet-agent"), signal.SIGKILL)
    assert eventually(lambda: verdict(node, "box"), 30) == "healthy"
    node("exec", "box", "rm", "/ok")
    eventually(lambda: verdict(node, "box") == "unhealthy")

    node("restart", "-t", "0", "box")
    again = node.json("inspect", "box")[0]["State"]
    assert again["Health"]["Status"] in ("starting", "unhealthy")
    assert all(moment(each["Start"]) > moment(again["StartedAt"]) for each in again["Health"]["Log"] or ())
    node("pause", "box")

    def rests() -> bool:
        results = health(node, "box")["Log"]
        time.sleep(0.6)
        return bool(health(node, "box")["Log"] == results)

    eventually(rests)  # nobody asks a paused one, but for what was under way
