"""Secrets with stock clients: made, listed, given to tasks, changed, removed; and seen by nobody else."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from e2e_cluster import Cluster, eventually
from e2e_dependencies import files_with, place_of, read, remove_all, supplies

VALUE = b"no-eyes-shall-see-7731"


@pytest.fixture
def secrets(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster without secrets and configs; those that a test leaves are removed."""
    remove_all(cluster)
    yield cluster
    remove_all(cluster)


def make(cluster: Cluster, name: str, value: bytes = VALUE, *options: str) -> str:
    return cluster.view("secret", "create", *options, name, "-", input=value)


def refusal(cluster: Cluster, *args: str, input: bytes | None = None) -> str:
    done = cluster.view.run(*args, input=input)
    assert done.returncode == 1, done.stdout
    return done.stderr.decode().strip()


def test_secrets_are_made_listed_shown_and_removed(secrets: Cluster, tmp_path: Path) -> None:
    view = secrets.view
    (tmp_path / "file").write_bytes(VALUE)
    first = view("secret", "create", "-l", "team=a", "-l", "x", "from-file", str(tmp_path / "file"))
    make(secrets, "from-stdin")

    rows = view.rows("secret", "ls")
    assert [(row["Name"], row["Driver"], row["Labels"]) for row in rows] == [
        ("from-file", "", "team=a,x="), ("from-stdin", "", "")
    ]
    assert view("secret", "ls", "-q", "--filter", f"id={first[:9]}") == first
    assert view("secret", "ls", "--filter", "name=from-s", "--format", "{{.Name}}") == "from-stdin"
    assert view("secret", "ls", "--filter", "label=team=a", "--format", "{{.Name}}") == "from-file"
    assert view("secret", "ls", "--filter", "label=team=b", "-q") == ""
    assert "invalid filter 'color'" in refusal(secrets, "secret", "ls", "--filter", "color=red")
    shown = view.json("secret", "inspect", "from-file")[0]
    assert shown["ID"] == first and shown["Spec"] == {"Name": "from-file", "Labels": {"team": "a", "x": ""}}
    assert shown["Version"]["Index"] > 0 and shown["CreatedAt"] == shown["UpdatedAt"]
    assert "from-file" in view("secret", "inspect", "--pretty", "from-file")
    assert "secret from-file already exists" in refusal(secrets, "secret", "create", "from-file", "-", input=b"x")
    assert view("secret", "rm", "from-file", "from-stdin").splitlines() == ["from-file", "from-stdin"]
    assert "secret from-file not found" in refusal(secrets, "secret", "rm", "from-file")
    assert view("secret", "ls", "-q") == ""


def test_a_task_has_its_secrets_as_its_service_says(secrets: Cluster) -> None:
    make(secrets, "one")
    make(secrets, "two", b"\x00\xff two\n")
    secrets.view(
        "service", "create", "-d", "--name", "web", "--user", "1000:1000", "--read-only", "--secret", "one", "--secret",
        "source=two,target=deeper/file,uid=1000,gid=12,mode=0400", "--secret", "source=one,target=/etc/mine",
        "busybox", "sleep", "600",
    )  # fmt: skip
    _, node, ident = place_of(secrets, "web")

    assert node("exec", ident, "cat", "/run/secrets/one", "/etc/mine").encode() == VALUE * 2
    done = node.run("exec", ident, "cat", "/run/secrets/deeper/file")
    assert done.stdout == b"\x00\xff two\n"
    stats = node("exec", ident, "stat", "-c", "%u:%g %a", "/run/secrets/one", "/run/secrets/deeper/file").splitlines()
    assert stats == ["0:0 444", "1000:12 400"]
    mounts = node("exec", ident, "cat", "/proc/mounts").splitlines()
    for target in ("/run/secrets/one", "/run/secrets/deeper/file", "/etc/mine"):
        kind, options = next(line.split()[2:4] for line in mounts if line.split()[1] == target)
        assert kind == "tmpfs" and {"ro", "nosuid", "nodev"} <= set(options.split(","))
    for act in ("echo x > /etc/mine", "rm /etc/mine", "mount -o remount,rw /etc/mine"):
        assert node.run("exec", "-u", "0", ident, "sh", "-c", act).returncode


def test_nobody_else_sees_a_secret(secrets: Cluster, tmp_path: Path) -> None:
    make(secrets, "one")
    make(secrets, "templated", VALUE + b" {{.Service.Name}}", "--template-driver", "golang")
    secrets.view("service", "create", "-d", "--name", "web", "--secret", "one", "--secret", "templated", "busybox",
                 "sleep", "600")  # fmt: skip
    number, node, ident = place_of(secrets, "web")
    assert read(secrets, "web", "/run/secrets/templated").encode() == VALUE + b" web"

    told = node("inspect", ident) + secrets.view("service", "inspect", "web") + secrets.view("secret", "inspect", "one")
    exported, committed = tmp_path / "exported.tar", tmp_path / "committed.tar"
    node("export", "-o", str(exported), ident)
    node("commit", ident, "e2e-committed")
    node("save", "-o", str(committed), "e2e-committed")
    node("rmi", "e2e-committed")
    node("cp", f"{ident}:/run/secrets/one", str(tmp_path / "copied"))
    assert VALUE not in told.encode() + exported.read_bytes() + committed.read_bytes()
    assert VALUE not in (tmp_path / "copied").read_bytes()
    assert files_with(secrets, VALUE, base64.b64encode(VALUE)) == []
    assert [len(supplies(secrets, other)) for other in (1, 2, 3)] == [int(other == number) for other in (1, 2, 3)]


def test_an_update_replaces_a_secret_and_the_tasks(secrets: Cluster) -> None:
    make(secrets, "old", b"first")
    make(secrets, "new", b"second")
    secrets.view("service", "create", "--name", "web", "--secret", "source=old,target=word", "busybox", "sleep", "600")
    _, _, before = place_of(secrets, "web")
    assert "secret 'old' is in use by the following service: web" in refusal(secrets, "secret", "rm", "old")

    secrets.view("service", "update", "--secret-rm", "old", "--secret-add", "source=new,target=word", "web")
    assert read(secrets, "web", "/run/secrets/word") == "second"
    assert place_of(secrets, "web")[2] != before
    secrets.view("service", "rollback", "web")
    assert read(secrets, "web", "/run/secrets/word") == "first"
    secrets.view("secret", "rm", "new")
    assert "secret not found: new" in refusal(secrets, "service", "rollback", "-d", "web")
    assert read(secrets, "web", "/run/secrets/word") == "first"


def test_what_a_service_cannot_mean_is_refused(secrets: Cluster) -> None:
    make(secrets, "one")
    create = ("service", "create", "-d", "--name", "bad")
    assert "secret not found: nope" in refusal(secrets, *create, "--secret", "nope", "busybox")
    assert "duplicate mount point: /etc/x" in refusal(
        secrets, *create, "--secret", "source=one,target=/etc/x", "--mount", "type=tmpfs,target=/etc/x", "busybox"
    )
    assert "invalid UID 'root'" in refusal(secrets, *create, "--secret", "source=one,target=x,uid=root", "busybox")
    assert secrets.view("service", "ls", "-q") == ""


def test_a_killed_agent_leaves_the_secrets_and_the_tasks_end_takes_them(secrets: Cluster) -> None:
    make(secrets, "one")
    secrets.view("service", "create", "-d", "--name", "web", "--secret", "one", "busybox", "sleep", "600")
    number, node, ident = place_of(secrets, "web")
    # On a busy machine the next agent may need longer than a node may be silent: the task would move.
    secrets.view("swarm", "update", "--dispatcher-heartbeat", "20s")
    try:
        os.kill(secrets.pid(number, "swarmlet-agent"), signal.SIGKILL)
        eventually(lambda: node("exec", ident, "cat", "/run/secrets/one").encode() == VALUE)
        assert place_of(secrets, "web")[2] == ident
    finally:
        secrets.view("swarm", "update", "--dispatcher-heartbeat", "1s")
    secrets.view("service", "rm", "web")
    eventually(lambda: [supplies(secrets, other) for other in (1, 2, 3)] == [[], [], []])
    eventually(lambda: node("ps", "-aq") == "")


def test_a_host_that_was_off_gets_its_secrets_again(secrets: Cluster) -> None:
    make(secrets, "one")
    secrets.view(
        "service", "create", "-d", "--name", "web", "--secret", "one", "--constraint", "node.hostname==node-3",
        "busybox", "sleep", "600",
    )  # fmt: skip
    _, _, before = place_of(secrets, "web")
    secrets.command("kill", 3)
    secrets.command("start", 3)
    eventually(lambda: place_of(secrets, "web")[2] != before, 60)
    assert read(secrets, "web", "/run/secrets/one").encode() == VALUE
    eventually(lambda: supplies(secrets, 3) == [place_of(secrets, "web")[2]])


def test_an_ended_tasks_secrets_are_gone_though_its_container_is_kept(secrets: Cluster) -> None:
    make(secrets, "one")
    secrets.view(
        "service", "create", "-d", "--name", "web", "--secret", "one", "--restart-condition", "none", "busybox", "cat",
        "/run/secrets/one",
    )  # fmt: skip
    eventually(lambda: [row for row in secrets.tasks("web", desired="shutdown") if "Complete" in row["CurrentState"]])
    assert secrets.view("service", "logs", "--raw", "web").encode() == VALUE
    eventually(lambda: [supplies(secrets, other) for other in (1, 2, 3)] == [[], [], []])
    number = int(secrets.tasks("web", desired="shutdown")[0]["Node"].rpartition("-")[2])
    ident = secrets.node(number)("ps", "-aq")
    said = secrets.node(number).run("start", ident).stderr.decode()
    assert "needs secrets or configs of the cluster, which are not on this host" in said


def test_the_largest_secret_arrives_whole(secrets: Cluster) -> None:
    value = os.urandom(512_000 - 1)
    make(secrets, "large", value)
    assert "less than 512000 bytes" in refusal(secrets, "secret", "create", "more", "-", input=value + b"x")
    secrets.view("service", "create", "-d", "--name", "web", "--secret", "large", "busybox", "sleep", "600")
    _, node, ident = place_of(secrets, "web")
    assert node.run("exec", ident, "cat", "/run/secrets/large").stdout == value


def test_docker_py_and_labels(secrets: Cluster) -> None:
    client = docker.DockerClient(base_url=secrets.view.url)
    try:
        api = client.api
        ident = api.create_secret("low", VALUE, labels={"a": "1"})["ID"]
        assert [each["ID"] for each in api.secrets(filters={"names": ["low"]})] == [ident]
        shown = api.inspect_secret(ident)
        assert shown["Spec"] == {"Name": "low", "Labels": {"a": "1"}}

        def update(body: object, version: int) -> tuple[int, str]:
            done = subprocess.run(
                ["curl", "-s", "-w", " %{http_code}", "--unix-socket", str(secrets.view.socket), "-X", "POST", "-H",
                 "Content-Type: application/json", "-d", json.dumps(body),
                 f"http://x/v1.50/secrets/{ident}/update?version={version}"],
                capture_output=True, text=True, check=True, timeout=30,
            )  # fmt: skip
            text, _, status = done.stdout.rpartition(" ")
            return int(status), text

        index = shown["Version"]["Index"]
        assert update({"Name": "low", "Labels": {"b": "2"}}, index) == (200, "")
        assert api.inspect_secret("low")["Spec"]["Labels"] == {"b": "2"}
        status, text = update({"Name": "low", "Labels": {}}, index)
        assert status == 500 and "update out of sequence" in text
        now = api.inspect_secret("low")["Version"]["Index"]
        status, text = update({"Name": "low", "Data": base64.b64encode(b"other").decode()}, now)
        assert status == 400 and "only updates to Labels are allowed" in text
        reference = docker.types.SecretReference(ident, "low", filename="here", uid="5", gid="6", mode=0o440)
        service = client.services.create("busybox", ["sleep", "600"], name="web", secrets=[reference])
        assert read(secrets, "web", "/run/secrets/here").encode() == VALUE
        assert service.attrs["Spec"]["TaskTemplate"]["ContainerSpec"]["Secrets"][0]["SecretID"] == ident
        service.remove()
        assert client.secrets.get("low").name == "low" and api.remove_secret(ident)
    finally:
        client.close()


def test_events_tell_of_secrets(secrets: Cluster) -> None:
    since = str(time.time())
    ident = make(secrets, "one")
    secrets.view("secret", "rm", "one")
    until = str(time.time())  # the client makes whole seconds of a duration
    said = secrets.view("events", "--since", since, "--until", until, "-f", "type=secret", "--format", "{{json .}}")
    events = [json.loads(line) for line in said.splitlines()]
    assert [(event["Type"], event["Action"], event["scope"]) for event in events] == [
        ("secret", "create", "swarm"), ("secret", "remove", "swarm")
    ]
    assert {event["Actor"]["ID"] for event in events} == {ident}
    assert events[0]["Actor"]["Attributes"] == {"name": "one"}


def test_a_stack_brings_its_secrets_and_takes_them_away(secrets: Cluster, tmp_path: Path) -> None:
    make(secrets, "outside", b"from outside")
    (tmp_path / "word").write_bytes(VALUE)
    (tmp_path / "stack.yml").write_text(
        """
services:
  web:
    image: busybox
    command: sleep 600
    secrets:
      - own
      - source: named
        target: /etc/named
        mode: 0400
      - outside
secrets:
  own: {file: ./word}
  named: {file: ./word, name: chosen-name, labels: {a: b}}
  outside: {external: true}
"""
    )
    deploy = ("stack", "deploy", "--detach=true", "-c", str(tmp_path / "stack.yml"), "st")
    secrets.view(*deploy)
    _, node, ident = place_of(secrets, "st_web")
    assert node("exec", ident, "cat", "/run/secrets/own", "/etc/named", "/run/secrets/outside").encode() == (
        VALUE * 2 + b"from outside"
    )
    names = {row["Name"] for row in secrets.view.rows("secret", "ls")}
    assert names == {"st_own", "chosen-name", "outside"}
    secrets.view(*deploy)  # nothing is new
    assert place_of(secrets, "st_web")[2] == ident
    (tmp_path / "word").write_bytes(b"changed")
    assert "only updates to Labels are allowed" in refusal(secrets, *deploy)
    secrets.view("stack", "rm", "st")
    assert secrets.view("secret", "ls", "--format", "{{.Name}}") == "outside"
