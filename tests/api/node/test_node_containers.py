"""Containers over HTTP: creating, listing, inspecting, and steering them, with dockerd's answers."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
from node_lab import IMAGE_ID, Node


def filters(**values: Any) -> str:
    return "filters=" + quote(json.dumps({key.replace("_", "-"): value for key, value in values.items()}))


async def test_a_container_is_created_started_and_inspected(node: Node) -> None:
    ident = await node.make(
        "sleep", "60", name="web", Env=["A=b"], Labels={"l": "1"}, ExposedPorts={"80/tcp": {}},
        HostConfig={
            "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}, "Memory": 64 << 20,
            "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
            "Binds": None, "Dns": [], "Ulimits": [{"Name": "nofile", "Soft": 10, "Hard": 20}],
            "Mounts": [{"Type": "tmpfs", "Target": "/t"}],
        },
        NetworkingConfig={"EndpointsConfig": {"bridge": None}},
    )

    status, shown = await node.call("GET", "/containers/web/json?size=1")

    assert status == 200
    assert shown["Id"] == ident
    assert shown["Name"] == "/web"
    assert (shown["Path"], shown["Args"]) == ("sleep", ["60"])
    assert shown["State"]["Status"] == "running"
    assert shown["State"]["Running"] is True
    assert shown["State"]["FinishedAt"] == "0001-01-01T00:00:00Z"
    assert shown["Image"] == IMAGE_ID
    assert shown["HostConfig"]["Memory"] == 64 << 20
    assert shown["HostConfig"]["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert shown["HostConfig"]["PortBindings"] == {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}
    assert shown["HostConfig"]["Ulimits"] == [{"Name": "nofile", "Soft": 10, "Hard": 20}]
    assert shown["HostConfig"]["Mounts"] == [{"Type": "tmpfs", "Target": "/t"}]
    assert shown["Config"]["Labels"] == {"l": "1"}
    assert "A=b" in shown["Config"]["Env"]
    assert "HostConfig" not in shown["Config"]
    assert shown["NetworkSettings"]["Ports"] == {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]}
    assert shown["NetworkSettings"]["IPAddress"] == "172.17.0.2"
    assert shown["NetworkSettings"]["Networks"]["bridge"]["IPPrefixLen"] == 16
    assert (shown["SizeRw"], shown["SizeRootFs"]) == (234, 1234)


async def test_a_summary_is_what_docker_ps_prints(node: Node) -> None:
    ident = await node.make("sleep", "a b", name="web", HostConfig={"PortBindings": {"80/tcp": [{"HostPort": "81"}]}})

    _, (shown,) = await node.call("GET", "/containers/json?size=1")

    assert shown["Id"] == ident
    assert shown["Names"] == ["/web"]
    assert shown["Image"] == "busybox"
    assert shown["Command"] == "sleep 'a b'"
    assert shown["State"] == "running"
    assert shown["Status"] in ("Up Less than a second", "Up 1 second", "Up 2 seconds")
    assert shown["Ports"] == [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 81, "Type": "tcp"}]
    assert shown["HostConfig"]["NetworkMode"] in ("bridge", "default")
    assert shown["NetworkSettings"]["Networks"]["bridge"]["IPAddress"] == "172.17.0.2"
    assert (shown["SizeRw"], shown["SizeRootFs"]) == (234, 1234)


async def names(node: Node, query: str) -> list[str]:
    status, shown = await node.call("GET", f"/containers/json?{query}")
    assert status == 200, shown
    return [each["Names"][0] for each in shown]


async def test_lists_are_filtered_as_docker_filters_them(node: Node) -> None:
    published = {"PortBindings": {"80/tcp": [{"HostPort": "81"}]}}
    one = await node.make("sleep", name="one", Labels={"a": "1"}, Volumes={"/data": {}}, HostConfig=published)
    await node.make("exit", "3", name="two", Labels={"a": "2"})
    await node.call("POST", "/containers/two/wait")
    await node.make("sleep", name="three", start=False, HostConfig={"NetworkMode": "none"}, ExposedPorts={"53/udp": {}})

    assert await names(node, "") == ["/one"]
    assert await names(node, "all=1") == ["/three", "/two", "/one"]
    assert await names(node, "limit=2") == ["/three", "/two"]
    assert await names(node, "all=1&" + filters(label=["a"])) == ["/two", "/one"]
    assert await names(node, "all=1&" + filters(label=["a=2"])) == ["/two"]
    assert await names(node, filters(status=["exited"])) == ["/two"]
    assert await names(node, "all=1&" + filters(exited=["3"])) == ["/two"]
    assert await names(node, "all=1&" + filters(exited={"4": True})) == []
    assert await names(node, "all=1&" + filters(name=["^/t"])) == ["/three", "/two"]
    assert await names(node, "all=1&" + filters(name=["ne"])) == ["/one"]
    assert await names(node, "all=1&" + filters(id=[one[:8]])) == ["/one"]
    assert await names(node, "all=1&" + filters(before=["two"])) == ["/one"]
    assert await names(node, "all=1&" + filters(since=["one"])) == ["/three", "/two"]
    assert await names(node, "all=1&" + filters(network=["none"])) == ["/three"]
    # What does not run has no ports at all.
    assert await names(node, "all=1&" + filters(expose=["50-60/udp"])) == []
    assert await names(node, "all=1&" + filters(expose=["70-80"])) == ["/one"]
    assert await names(node, "all=1&" + filters(publish=["80"])) == []
    assert await names(node, "all=1&" + filters(publish=["81"])) == ["/one"]
    assert await names(node, "all=1&" + filters(publish=["80"], expose=["80"])) == ["/one"]
    assert await names(node, "all=1&" + filters(volume=["/data"])) == ["/one"]
    assert await names(node, "all=1&" + filters(ancestor=["busybox"])) == ["/three", "/two", "/one"]
    assert await names(node, "all=1&" + filters(ancestor=["nothing"])) == []
    assert await names(node, "all=1&" + filters(health=["none"])) == ["/three", "/two", "/one"]
    assert await names(node, "all=1&" + filters(is_task=["true"])) == []


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (filters(colour=["red"]), "invalid filter 'colour'"),
        (filters(status=["happy"]), "invalid filter 'status=happy': invalid value for state (happy): must be one of"),
        (filters(exited=["x"]), "invalid filter 'exited=x'"),
        (filters(publish=["x"]), "invalid filter 'publish=x'"),
        (filters(is_task=["maybe"]), "invalid filter 'is-task=[maybe]'"),
        ("filters=notjson", "invalid filter"),
        ("limit=x", "invalid value 'x' for parameter limit"),
    ],
)
async def test_filters_that_cannot_be_are_refused(node: Node, query: str, message: str) -> None:
    status, answer = await node.call("GET", f"/containers/json?{query}")

    assert status == 400
    assert message in answer["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"Image": "busybox", "HostConfig": {"Memory": "lots"}}, "`$.HostConfig.Memory`"),
        ({"Image": "busybox", "Env": {"A": "b"}}, "`$.Env`"),
        ({"Image": "busybox", "Cmd": 5}, "`$.Cmd`"),
        ([1, 2], "Expected `object`"),
        (None, "got EOF while reading request body"),
    ],
)
async def test_bodies_of_wrong_types_name_the_field(node: Node, body: Any, message: str) -> None:
    status, answer = await node.call("POST", "/containers/create", body)

    assert status == 400
    assert message in answer["message"]


JSON = {"Content-Type": "application/json"}


async def test_broken_json_is_refused(node: Node) -> None:
    async with node.session.post("http://d/containers/create", data=b'{"Image": ', headers=JSON) as answer:
        assert answer.status == 400
        assert "invalid JSON" in (await answer.json())["message"]


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"{}", "text/plain", "unsupported Content-Type header (text/plain): must be 'application/json'"),
        (b"{} trailing", "application/json", "unexpected content after JSON"),
        (b"{invalid", "application/json; charset=utf-8", "invalid character 'i' looking for beginning of object key"),
    ],
)
@pytest.mark.parametrize(
    "path", ["containers/create", "containers/foobar/exec", "containers/foobar/update", "exec/foobar/start"]
)
async def test_a_body_is_looked_at_before_what_it_is_for(
    node: Node, path: str, body: bytes, kind: str, message: str
) -> None:
    async with node.session.post(f"http://d/{path}", data=body, headers={"Content-Type": kind}) as answer:
        told = (await answer.json())["message"]

    assert answer.status == 400 and message in told, told


async def test_no_body_is_as_much_as_an_empty_one(node: Node) -> None:
    await node.make("sleep", name="web")

    assert await node.call("POST", "/containers/web/update") == (200, {"Warnings": None})
    assert await node.call("POST", "/v1.39/containers/web/update", {"PidsLimit": 7}) == (200, {"Warnings": None})
    assert (await node.call("GET", "/containers/web/json"))[1]["HostConfig"]["PidsLimit"] is None
    assert await node.call("POST", "/containers/web/exec") == (400, {"message": "No exec command specified"})


async def test_a_signal_that_there_is_not_is_refused_for_every_container(node: Node) -> None:
    status, answer = await node.call("POST", "/containers/nobody/kill?signal=FOO")

    assert (status, answer["message"]) == (400, "cannot kill container: nobody: invalid signal: FOO")


async def test_a_command_may_be_one_string(node: Node) -> None:
    body = {"Image": "busybox", "Cmd": "echo", "Entrypoint": None}
    status, answer = await node.call("POST", "/containers/create", body)
    _, shown = await node.call("GET", f"/containers/{answer['Id']}/json")

    assert status == 201
    assert shown["Path"] == "echo"


async def test_what_is_unknown_or_taken_is_answered_in_dockerds_words(node: Node) -> None:
    ident = await node.make("sleep", name="web")

    assert await node.call("GET", "/containers/nope/json") == (404, {"message": "No such container: nope"})
    status, answer = await node.call("POST", "/containers/create?name=web", {"Image": "busybox"})
    assert status == 409
    assert answer["message"].startswith(
        f'Conflict. The container name "/web" is already in use by container "{ident}"'
    )
    status, answer = await node.call("POST", "/containers/create", {"Image": "gone"})
    assert (status, answer) == (404, {"message": "No such image: gone"})
    status, answer = await node.call("DELETE", "/containers/web")
    assert status == 409
    status, answer = await node.call("POST", "/containers/web/resize?h=a&w=2")
    assert (status, "parameter h" in answer["message"]) == (400, True)


async def test_starting_and_stopping_twice_changes_nothing(node: Node) -> None:
    await node.make("sleep", name="web")

    assert (await node.call("POST", "/containers/web/start"))[0] == 304
    assert (await node.call("POST", "/containers/web/stop?t=1"))[0] == 204
    assert (await node.call("POST", "/containers/web/stop"))[0] == 304
    _, shown = await node.call("GET", "/containers/web/json")
    assert shown["State"]["Status"] == "exited"
    assert shown["State"]["ExitCode"] == 143


async def test_a_containers_life_from_pause_to_removal(node: Node) -> None:
    await node.make("sleep", name="web")

    assert (await node.call("POST", "/containers/web/pause"))[0] == 204
    _, (shown,) = await node.call("GET", "/containers/json")
    assert shown["Status"].endswith("(Paused)")
    status, answer = await node.call("POST", "/containers/web/attach?stream=1&stdout=1")
    assert status == 409
    assert answer["message"].endswith("is paused, unpause the container before attach")
    assert (await node.call("POST", "/containers/web/unpause"))[0] == 204
    assert (await node.call("POST", "/containers/web/rename?name=new"))[0] == 204
    assert (await node.call("POST", "/containers/web/rename?name=other"))[0] == 404
    assert (await node.call("POST", "/containers/new/rename"))[0] == 400
    assert (await node.call("POST", "/containers/new/restart?t=0"))[0] == 204
    assert await node.call("POST", "/containers/new/update", {"Memory": 128 << 20}) == (200, {"Warnings": None})
    assert (await node.call("POST", "/containers/new/resize?h=40&w=100"))[0] == 200
    status, top = await node.call("GET", "/containers/new/top")
    assert status == 200
    assert top["Titles"][:2] == ["UID", "PID"]
    assert (await node.call("POST", "/containers/new/kill?signal=SIGKILL"))[0] == 204
    await node.call("POST", "/containers/new/wait")
    assert (await node.call("POST", "/containers/new/kill"))[0] == 409
    status, report = await node.call("POST", "/containers/prune")
    assert status == 200
    assert len(report["ContainersDeleted"]) == 1
    assert report["SpaceReclaimed"] == 234
    assert await node.call("GET", "/containers/json?all=1") == (200, [])


async def test_a_program_that_is_not_there_fails_the_start(node: Node) -> None:
    ident = await node.make("missing", start=False)

    status, answer = await node.call("POST", f"/containers/{ident}/start")
    _, shown = await node.call("GET", f"/containers/{ident}/json")

    assert status in (400, 500)
    assert "executable file not found" in answer["message"]
    assert shown["State"]["ExitCode"] == 127


async def test_what_is_not_supported_says_so(node: Node) -> None:
    await node.make("sleep", name="web")
    for method, path, thing in (
        ("GET", "/containers/web/checkpoints", "checkpoints are"), ("POST", "/session", "BuildKit is"),
        ("DELETE", "/containers/web/checkpoints/one", "checkpoints are"), ("POST", "/plugins/pull", "plugins are"),
    ):  # fmt: skip
        status, answer = await node.call(method, path)
        assert status == 501
        assert answer["message"].startswith(f"{thing} not supported by this engine")
    assert await node.call("POST", "/plugins/a/b/enable") == (404, {"message": 'plugin "a/b" not found'})
    assert await node.call("GET", "/plugins") == (200, [])


async def test_refusals_have_dockerds_status_and_say_what_was_tried(node: Node) -> None:
    ident = await node.make("sleep", name="box", HostConfig={"NanoCpus": 10**8})

    async def refused(call: str, body: Any = None) -> tuple[int, str]:
        status, answer = await node.call("POST", f"/containers/box/{call}", body)
        return status, answer["message"]

    assert await refused("unpause") == (500, f"Container {ident} is not paused")
    status, message = await refused("rename?name=!")
    assert (status, message[:62]) == (400, "Error when allocating new name: Invalid container name (/!), o")
    assert await refused("update", {"CpuQuota": 2000}) == (
        409,
        f"Cannot update container {ident}: Conflicting options: CPU Quota cannot be updated as NanoCPUs has already "
        "been set",
    )
    await node.call("POST", "/containers/box/pause")
    assert await refused("exec", {"Cmd": ["a"]}) == (
        409, "Container box is paused, unpause the container before exec"
    )  # fmt: skip


async def test_what_is_wrong_with_a_request_is_told_before_what_is_wrong_with_its_name(node: Node) -> None:
    async def refused(body: Any) -> tuple[int, str]:
        status, answer = await node.call("POST", "/containers/create?name=x", {"Image": "busybox", **body})
        return status, answer["message"]

    assert await refused({"WorkingDir": "rel"}) == (
        400, "the working directory 'rel' is invalid, it needs to be an absolute path"
    )  # fmt: skip
    assert await refused({"Image": "nosuch"}) == (404, "No such image: nosuch")
    assert (await refused({}))[1].startswith("Invalid container name (x)")
    for mounts, words in (
        ([{"Target": "/x"}], 'invalid mount config for type "": mount type unknown'),
        (
            [{"type": "volume", "target": "/x", "bindoptions": {}}],
            'BindOptions must not be specified on mount type "volume"',
        ),
    ):
        assert await refused({"HostConfig": {"Mounts": mounts}}) == (400, words)
    assert await refused({"HostConfig": {"ExtraHosts": ["a:b"]}}) == (400, 'invalid IP address in add-host: "b"')
