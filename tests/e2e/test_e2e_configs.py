"""Configs with stock clients, and templates of both kinds."""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from e2e_cluster import Cluster, eventually
from e2e_dependencies import place_of, read, remove_all


@pytest.fixture
def configs(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster; secrets and configs that a test leaves are removed."""
    yield cluster
    remove_all(cluster)


def make(cluster: Cluster, name: str, value: bytes, *options: str) -> str:
    return cluster.view("config", "create", *options, name, "-", input=value)


def refusal(cluster: Cluster, *args: str, input: bytes | None = None) -> str:
    done = cluster.view.run(*args, input=input)
    assert done.returncode == 1, done.stdout
    return done.stderr.decode().strip()


def test_configs_are_made_listed_shown_with_their_data_and_removed(configs: Cluster, tmp_path: Path) -> None:
    view = configs.view
    (tmp_path / "file").write_bytes(b"key=value\n")
    ident = view("config", "create", "-l", "team=a", "site", str(tmp_path / "file"))
    make(configs, "other", b"x")

    assert [row["Name"] for row in view.rows("config", "ls")] == ["other", "site"]
    assert view("config", "ls", "-q", "--filter", "name=si", "--filter", "label=team") == ident
    shown = view.json("config", "inspect", "site")[0]
    assert shown["Spec"] == {"Name": "site", "Labels": {"team": "a"}, "Data": base64.b64encode(b"key=value\n").decode()}
    assert "key=value" in view("config", "inspect", "--pretty", "site")
    assert "config site already exists" in refusal(configs, "config", "create", "site", "-", input=b"x")
    assert "invalid name, only 64" in refusal(configs, "config", "create", "a/b", "-", input=b"x")
    view("config", "rm", "site", "other")
    assert "config site not found" in refusal(configs, "config", "inspect", "site")


def test_a_task_has_its_configs_where_its_service_says(configs: Cluster) -> None:
    make(configs, "plain", b"plain\n")
    make(configs, "program", b"#!/bin/sh\necho started with $1\nexec sleep 600\n")
    configs.view(
        "service", "create", "-d", "--name", "web", "--config", "plain", "--config",
        "source=program,target=/bin/entry,mode=0755", "--config",
        "source=plain,target=/data/deep/it,uid=5,gid=6,mode=0640", "--mount", "type=volume,target=/data",
        "--entrypoint", "/bin/entry", "busybox", "words",
    )  # fmt: skip
    _, node, ident = place_of(configs, "web")

    assert node("exec", ident, "cat", "/plain", "/data/deep/it") == "plain\nplain"
    assert node("exec", ident, "stat", "-c", "%u:%g %a", "/data/deep/it") == "5:6 640"
    assert node.run("exec", ident, "sh", "-c", "echo x >> /plain").returncode
    eventually(lambda: configs.view("service", "logs", "--raw", "web") == "started with words")
    assert "in use by the following service: web" in refusal(configs, "config", "rm", "plain")


def test_an_update_changes_configs_one_by_one(configs: Cluster) -> None:
    make(configs, "v1", b"1")
    make(configs, "v2", b"2")
    configs.view("service", "create", "--name", "web", "--config", "source=v1,target=/v", "busybox", "sleep", "600")
    configs.view("service", "update", "--config-rm", "v1", "--config-add", "source=v2,target=/v", "web")
    assert read(configs, "web", "/v") == "2"
    configs.view("config", "rm", "v1")
    spec = configs.view.json("service", "inspect", "web")[0]["Spec"]["TaskTemplate"]["ContainerSpec"]
    assert [each["ConfigName"] for each in spec["Configs"]] == ["v2"]


def test_templates_are_resolved_on_the_node(configs: Cluster) -> None:
    text = (
        b"{{.Service.Name}}|{{.Node.Hostname}}|{{.Task.Slot}}|{{.Task.Name}}|{{ env \"WHERE\" }}|"
        b"{{ secret \"word\" }}|{{ config \"/plain\" }}|{{- /* nothing */ -}}  {{ env \"NO\" }}\n"
    )
    configs.view("secret", "create", "word", "-", input=b"s3")
    make(configs, "plain", b"{{.Service.Name}}")
    make(configs, "made", text, "--template-driver", "golang")
    configs.view(
        "service", "create", "-d", "--name", "web", "--secret", "word", "--config", "source=plain,target=/plain",
        "--config", "source=made,target=/made", "--env", "WHERE=at-{{.Node.Hostname}}", "busybox", "sleep", "600",
    )  # fmt: skip
    number, node, ident = place_of(configs, "web")
    name = node("inspect", "-f", "{{.Name}}", ident).removeprefix("/")

    assert read(configs, "web", "/made") == f"web|node-{number}|1|{name}|at-node-{number}|s3|{{{{.Service.Name}}}}|"
    assert configs.view.json("config", "inspect", "made")[0]["Spec"]["Templating"] == {"Name": "golang"}
    wrong = ("config", "create", "--template-driver", "golang", "wrong", "-")
    assert "range is not supported here" in refusal(configs, *wrong, input=b"{{ range .Things }}")
    assert "use golang" in refusal(configs, "config", "create", "--template-driver", "jinja", "w", "-", input=b"x")


def test_many_large_configs_reach_one_task_and_outlive_a_killed_manager(configs: Cluster) -> None:
    values = {f"large{number}": os.urandom(1_024_000 - 1) for number in range(8)}
    words: list[str] = []
    for name, value in values.items():
        make(configs, name, value)
        words += ["--config", f"source={name},target=/large/{name}"]
    os.kill(configs.pid(1, "swarmlet-manager"), signal.SIGKILL)
    eventually(lambda: configs.view.run("config", "ls").returncode == 0)
    eventually(lambda: len(configs.ready()) == 3)
    configs.view("service", "create", "-d", "--name", "web", *words, "busybox", "sleep", "600")
    _, node, ident = place_of(configs, "web")
    for name, value in values.items():
        assert node.run("exec", ident, "cat", f"/large/{name}").stdout == value
    shown = configs.view.json("config", "inspect", "large7")[0]
    assert base64.b64decode(shown["Spec"]["Data"]) == values["large7"]


def test_docker_py(configs: Cluster) -> None:
    client = docker.DockerClient(base_url=configs.view.url)
    try:
        api = client.api
        templating = {"name": "golang"}
        ident = api.create_config("low", b"{{.Service.Name}}", labels={"a": "1"}, templating=templating)["ID"]
        assert [each["Spec"]["Name"] for each in api.configs(filters={"name": "low"})] == ["low"]
        assert api.inspect_config("low")["ID"] == ident
        reference = docker.types.ConfigReference(ident, "low", filename="/here", mode=0o444)
        client.services.create("busybox", ["sleep", "600"], name="web", configs=[reference])
        assert read(configs, "web", "/here") == "web"
        client.services.get("web").remove()
        assert client.configs.get(ident).name == "low" and api.remove_config(ident)
    finally:
        client.close()


def test_events_tell_of_configs(configs: Cluster) -> None:
    ident = make(configs, "one", b"x")
    configs.view("config", "rm", "one")
    until = str(time.time())  # the client makes whole seconds of a duration
    said = configs.view("events", "--since", "5m", "--until", until, "-f", "config=one", "--format", "{{json .}}")
    events = [json.loads(line) for line in said.splitlines() if ident in line]
    assert [(event["Type"], event["Action"]) for event in events] == [("config", "create"), ("config", "remove")]


def test_a_stack_brings_its_configs_and_takes_them_away(configs: Cluster, tmp_path: Path) -> None:
    make(configs, "outside", b"o")
    (tmp_path / "site").write_text("{{.Service.Name}}")
    (tmp_path / "stack.yml").write_text(
        """
services:
  web:
    image: busybox
    command: sleep 600
    configs:
      - source: own
        target: /own
      - outside
configs:
  own: {file: ./site, template_driver: golang}
  outside: {external: true}
"""
    )
    configs.view("stack", "deploy", "--detach=true", "-c", str(tmp_path / "stack.yml"), "st")
    assert read(configs, "st_web", "/own") == "st_web"
    assert read(configs, "st_web", "/outside") == "o"
    configs.view("stack", "rm", "st")
    assert configs.view("config", "ls", "--format", "{{.Name}}") == "outside"
