"""What cannot be meant is refused with the status and message that a Docker client expects, and leaves nothing behind.

Each case is a request and the words that its answer must have; after every group of them all lists of the cluster
are what they were. Cases of BOTH hold for a node's own engine and for the whole cluster's.
"""

from __future__ import annotations

import pytest
from bad_requests import Case, belongings, complaints, create, get, host, mounts, network, service
from e2e_cluster import Cluster, View

TOO_BIG = b'{"Image":"' + b"a" * (9 << 20) + b'"}'
NO_MANAGER = "This node is not a swarm manager"
MEMBER = "This node is already part of a swarm"

BOTH: dict[str, list[Case]] = {
    "images that are not there, and names that are none": [
        create(404, "No such image: no/such:tag", Image="no/such:tag"),
        create(400, "invalid reference format", Image="Bad Ref"),
        create(400, "no image specified", Image=""),
        create(404, "linux/riscv64", query="?platform=linux/riscv64"),
        Case(404, "No such image: nope", "GET", "/images/nope/json"),
        Case(404, "No such image: nope", "DELETE", "/images/nope"),
        Case(404, "No such image: nope", "POST", "/images/nope/tag?repo=x"),
        Case(404, "No such image: nope", "GET", "/images/nope/history"),
        Case(400, "invalid reference format", "POST", "/images/busybox/tag?repo=Bad!"),
        Case(400, "invalid reference format", "POST", "/images/create?fromImage=Bad%20Ref"),
        Case(400, "fromImage", "POST", "/images/create"),
        Case(500, "connection refused", "POST", "/images/create?fromImage=127.0.0.1:1/x&tag=y"),
    ],
    "bodies that are not JSON, or not what is asked for": [
        Case(400, "invalid JSON", "POST", "/containers/create", b"{"),
        Case(400, "invalid JSON: Expected `object`", "POST", "/containers/create", b"[]"),
        Case(400, "invalid JSON: Expected `object`", "POST", "/containers/create", b'"text"'),
        Case(400, "got EOF while reading request body", "POST", "/containers/create"),
        Case(400, "larger than 8388608 bytes", "POST", "/containers/create", TOO_BIG),
        Case(400, "invalid JSON", "POST", "/containers/create", b'{"Image": "\xff"}'),
        Case(400, "invalid JSON", "POST", "/containers/create", b"[" * 100_000),
        create(400, "`array`, got `str` - at `$.Env`", Env="A=b"),
        create(400, "`str`, got `int` - at `$.Env[0]`", Env=[1]),
        create(400, "`int`, got `str` - at `$.HostConfig.Memory`", HostConfig={"Memory": "64m"}),
        create(400, "HostPort`", HostConfig={"PortBindings": {"80/tcp": [{"HostPort": 80}]}}),
        create(400, "at `$.HostConfig`", HostConfig=[]),
        Case(400, "at `$.Name`", "POST", "/volumes/create", {"Name": 5}),
        network(400, "at `$.Name`", Name=5),
    ],
    "versions and paths that are not there": [
        Case(400, "client version 1.99 is too new. Maximum supported API version is 1.50", "GET", "/v1.99/info"),
        Case(400, "client version 1.12 is too old. Minimum supported API version is 1.24", "GET", "/v1.12/info"),
        Case(400, "client version 2.0 is too new", "GET", "/v2.0/info"),
        Case(404, "page not found", "GET", "/nowhere"),
        Case(404, "page not found", "PUT", "/info"),
        Case(404, "page not found", "GET", "//info"),
    ],
    "objects of every kind that are not there": [
        Case(404, "No such container: nope", "GET", "/containers/nope/json"),
        Case(404, "No such container: nope", "GET", "/containers/nope/logs?stdout=1"),
        Case(404, "No such container: nope", "POST", "/containers/nope/start"),
        Case(404, "No such container: nope", "POST", "/containers/nope/attach?stream=1&stdout=1"),
        Case(404, "No such container: nope", "POST", "/containers/nope/exec", {"Cmd": ["true"]}),
        Case(404, "No such container: nope", "POST", "/containers/nope/wait"),
        Case(404, "No such container: nope", "DELETE", "/containers/nope?force=1"),
        Case(404, "No such exec instance: nope", "GET", "/exec/nope/json"),
        Case(404, "No such exec instance: nope", "POST", "/exec/nope/start", {}),
        Case(404, "network nope not found", "GET", "/networks/nope"),
        Case(404, "network nope not found", "DELETE", "/networks/nope"),
        Case(404, "get nope: no such volume", "GET", "/volumes/nope"),
        Case(404, "nope: no such volume", "DELETE", "/volumes/nope"),
        # Not a 404: for that, clients would pull the image.
        host(400, "No such container: nobody", VolumesFrom=["nobody"]),
        host(400, "No such container: nobody", NetworkMode="container:nobody"),
        host(400, "could not get container for nobody: No such container: nobody", Links=["nobody:x"]),
    ],
    "filters and parameters that cannot be read": [
        Case(400, "invalid filter", "GET", "/containers/json?filters=text"),
        Case(400, "invalid filter 'bogus'", "GET", "/containers/json?filters=%7B%22bogus%22%3A%5B%22x%22%5D%7D"),
        Case(400, "invalid filter 'bogus'", "GET", "/images/json?filters=%7B%22bogus%22%3A%5B%22x%22%5D%7D"),
        Case(400, "parameter limit", "GET", "/containers/json?limit=x"),
        Case(400, "'abc'", "GET", "/events?since=abc"),
    ],
    "mounts that cannot be made": [
        mounts(400, "path does not exist: /no/such", {"Type": "bind", "Source": "/no/such", "Target": "/x"}),
        mounts(400, "mount path must be absolute", {"Type": "bind", "Source": "rel", "Target": "/x"}),
        mounts(400, 'invalid mount config for type "weird": mount type unknown', {"Type": "weird", "Target": "/x"}),
        mounts(400, "'x' mount path must be absolute", {"Type": "volume", "Source": "vol", "Target": "x"}),
        mounts(400, "Duplicate mount point: /x", *[{"Type": "tmpfs", "Target": "/x"}] * 2),
        mounts(400, "at `$.HostConfig.Mounts[0].Target`", {"Type": "tmpfs", "Target": 5}),
        host(400, "invalid volume specification: '/a:/b:/c:/d'", Binds=["/a:/b:/c:/d"]),
        host(400, "invalid volume specification: '/a:rel'", Binds=["/a:rel"]),
        Case(400, "includes invalid characters", "POST", "/volumes/create", {"Name": "../x"}),
    ],
    "limits that no host can keep": [
        host(400, "Minimum memory limit allowed is 6MB", Memory=1000),
        host(400, "range of CPUs is from 0.01", NanoCpus=10**15),
        host(400, "Minimum memoryswap limit", Memory=64 << 20, MemorySwap=32 << 20),
        host(400, "Requested CPUs are not available", CpusetCpus="999"),
        host(400, "oom score adj", OomScoreAdj=2000),
        host(400, "SHM size", ShmSize=-1),
        host(400, "invalid ulimit type: bad", Ulimits=[{"Name": "bad", "Soft": 1, "Hard": 1}]),
    ],
    "container options that contradict or do not exist": [
        create(400, "Invalid container name (-bad)", query="?name=-bad"),
        create(400, "invalid signal: SIGNOPE", StopSignal="SIGNOPE"),
        create(400, "needs to be an absolute path", WorkingDir="rel"),
        create(400, 'invalid port specification: "99999"', ExposedPorts={"99999/tcp": {}}),
        host(400, 'invalid port specification: "99999"', PortBindings={"80/tcp": [{"HostPort": "99999"}]}),
        host(400, "unknown policy 'sometimes'", RestartPolicy={"Name": "sometimes"}),
        host(400, "can't create 'AutoRemove'", AutoRemove=True, RestartPolicy={"Name": "always"}),
        host(400, 'unknown capability: "CAP_NONSENSE"', CapAdd=["NONSENSE"]),
        host(400, "--security-opt", SecurityOpt=["foo=bar"]),
        host(400, "unknown or invalid runtime name: kata", Runtime="kata"),
        create(400, "hostname and the network mode", Hostname="x", HostConfig={"NetworkMode": "container:nope"}),
    ],
    "what this version does not do, by its name": [
        host(400, "invalid userns mode: private", UsernsMode="private"),
        host(400, 'log driver "fluentd" is not supported', LogConfig={"Type": "fluentd"}),
        host(400, "--storage-opt is supported only for overlay over xfs", StorageOpt={"size": "1g"}),
        host(400, 'Invalid isolation: "hyperv"', Isolation="hyperv"),
        network(400, "requested ipvlan mode 'l9' is not valid", Name="iv", Driver="ipvlan",
                Options={"ipvlan_mode": "l9"}),
        network(400, "invalid subnet", Name="x", IPAM={"Config": [{"Subnet": "no"}]}),
        network(403, "predefined", Name="bridge"),
        Case(403, "bridge", "DELETE", "/networks/bridge"),
        Case(501, "BuildKit is not supported by this engine", "POST", "/session", b""),
    ],
    "joining or making a cluster where one is": [
        Case(503, MEMBER, "POST", "/swarm/init", {"ListenAddr": "0.0.0.0"}),
        Case(503, MEMBER, "POST", "/swarm/join", {"RemoteAddrs": ["192.0.2.1:2377"], "JoinToken": "nonsense"}),
    ],
}

CLUSTER: dict[str, list[Case]] = {
    "networks of the cluster": [
        network(400, "IPv4 cannot be disabled", Name="ov", Driver="overlay", EnableIPv4=False),
        network(400, "invalid subnet", Name="ov", Driver="overlay", IPAM={"Config": [{"Subnet": "no"}]}),
        network(400, "valid as a DNS name component", Name="o v", Driver="overlay"),
        network(409, "network with name ingress already exists", Name="ingress", Driver="overlay"),
    ],
    "bodies that are not JSON, or not what is asked for": [
        Case(400, "invalid JSON", "POST", "/services/create", b"{"),
        Case(400, "Expected `object`, got `array`", "POST", "/services/create", b"[]"),
        Case(400, "got EOF while reading request body", "POST", "/services/create"),
        Case(400, "larger than 8388608 bytes", "POST", "/services/create", TOO_BIG),
        service("at `$.Mode.Replicated.Replicas`", Mode={"Replicated": {"Replicas": "3"}}),
        service("at `$.TaskTemplate.ContainerSpec.Mounts[0].Source`", container={"Mounts": [{"Source": 5}]}),
        service("at `$.TaskTemplate.Resources.Limits.NanoCPUs`", task={"Resources": {"Limits": {"NanoCPUs": "1"}}}),
        service("at `$.Labels", Labels={"a": 1}),
    ],
    "names, images and modes": [
        Case(400, "mismatched Runtime", "POST", "/services/create", {}),
        service("DNS name component", Name="bad name"),
        service("63 characters or fewer", Name="a" * 64),
        service("image reference must be provided", container={"Image": ""}),
        service('"Bad Ref" is not a valid repository/tag', container={"Image": "Bad Ref"}),
        service("replicas must be non-negative", Mode={"Replicated": {"Replicas": -3}}),
        service("only one service mode", Mode={"Replicated": {}, "Global": {}}),
        service('invalid RestartCondition: "maybe"', task={"RestartPolicy": {"Condition": "maybe"}}),
        service("update failure action explode", UpdateConfig={"FailureAction": "explode"}),
        service("update order sideways", UpdateConfig={"Order": "sideways"}),
        service("update-maxfailureratio", UpdateConfig={"MaxFailureRatio": 2}),
        service('invalid resolution mode: "weird"', EndpointSpec={"Mode": "weird"}),
    ],
    "mounts, limits, constraints and ports": [
        service("absolute path: rel", container={"Mounts": [{"Type": "bind", "Source": "rel", "Target": "/x"}]}),
        service("mount target, must be an absolute path", container={"Mounts": [{"Type": "tmpfs", "Target": "rel"}]}),
        service('invalid MountType: "nope"', container={"Mounts": [{"Type": "nope", "Target": "/x"}]}),
        service("duplicate mount point: /x", container={"Mounts": [{"Type": "tmpfs", "Target": "/x"}] * 2}),
        service("Must be at least 4MiB", task={"Resources": {"Limits": {"MemoryBytes": 5}}}),
        service("Must be at least 4MiB", task={"Resources": {"Reservations": {"MemoryBytes": -5}}}),
        service("Must be at least 0.001", task={"Resources": {"Limits": {"NanoCPUs": 5}}}),
        service("expected one operator", task={"Placement": {"Constraints": ["nonsense"]}}),
        service(
            "invalid published port 99999",
            EndpointSpec={"Ports": [{"TargetPort": 80, "PublishedPort": 99999, "PublishMode": "host"}]},
        ),
        service(
            "duplicate published ports",
            EndpointSpec={"Ports": [{"TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host"}] * 2},
        ),
    ],
    "what this version does not do, by its name": [
        service(
            "with ingress mode can't be used with dnsrr",
            EndpointSpec={"Mode": "dnsrr", "Ports": [{"TargetPort": 80, "PublishedPort": 8080}]},
        ),
        Case(404, "network ov not found", "POST", "/services/create", {
            "Name": "bad", "TaskTemplate": {"ContainerSpec": {"Image": "busybox"}, "Networks": [{"Target": "ov"}]},
        }),
        service("malformed secret reference", container={"Secrets": [{"SecretName": "s"}]}),
        service("secret references 's' and 't' have a conflicting target: 'x'", container={"Secrets": [
            {"SecretName": name, "SecretID": "i", "File": {"Name": "x"}} for name in ("s", "t")
        ]}),
        service("secret not found: s", container={
            "Secrets": [{"SecretName": "s", "SecretID": "i", "File": {"Name": "s"}}],
        }),
        service("config not found: c", container={
            "Configs": [{"ConfigName": "c", "ConfigID": "i", "File": {"Name": "c"}}],
        }),
        service("replicated job is not supported", Mode={"ReplicatedJob": {}}),
        service("global job is not supported", Mode={"GlobalJob": {}}),
        service("plugins cannot run", task={"Runtime": "plugin"}),
        service(
            "generic resources",
            task={"Resources": {"Reservations": {"GenericResources": [{"NamedResourceSpec": {"Kind": "a"}}]}}},
        ),
        Case(400, "name must be provided", "POST", "/secrets/create", {"Data": "eA=="}),
        Case(400, "invalid name, only 64", "POST", "/configs/create", {"Name": "-c", "Data": "eA=="}),
        Case(400, "secret data must be larger than 0 and less than 512000", "POST", "/secrets/create", {"Name": "s"}),
        Case(400, "Data of a config must be base64", "POST", "/configs/create", {"Name": "c", "Data": "?"}),
        Case(400, "use golang", "POST", "/secrets/create", {
            "Name": "s", "Data": "eA==", "Templating": {"Name": "mustache"},
        }),
        Case(400, "secret drivers are plugins", "POST", "/secrets/create", {"Name": "s", "Driver": {"Name": "vault"}}),
        Case(404, "config nosuch not found", "GET", "/configs/nosuch"),
        Case(501, "plugins are not supported by this engine", "POST", "/plugins/pull?remote=x"),
        Case(400, "autolock", "POST", "/swarm/update?version=1", {"EncryptionConfig": {"AutoLockManagers": True}}),
        Case(400, "leave through the socket of the node", "POST", "/swarm/leave?force=1"),
    ],
    "objects of every kind that are not there": [
        Case(404, "service nope not found", "GET", "/services/nope"),
        Case(404, "service nope not found", "DELETE", "/services/nope"),
        Case(404, "service nope not found", "GET", "/services/nope/logs?stdout=1"),
        Case(404, "service nope not found", "POST", "/services/nope/update?version=1", {"Name": "nope"}),
        Case(404, "task nope not found", "GET", "/tasks/nope"),
        Case(404, "task nope not found", "GET", "/tasks/nope/logs?stdout=1"),
        Case(404, "node nope not found", "GET", "/nodes/nope"),
        Case(404, "node nope not found", "DELETE", "/nodes/nope"),
        Case(404, "secret nope not found", "GET", "/secrets/nope"),
        Case(404, "config nope not found", "GET", "/configs/nope"),
    ],
    "filters and parameters that cannot be read": [
        *(
            Case(400, "invalid filter 'bogus'", "GET", f"/{kind}?filters=%7B%22bogus%22%3A%5B%22x%22%5D%7D")
            for kind in ("services", "tasks", "nodes")
        ),
        Case(400, "desired-state filter: 'x'", "GET", "/tasks?filters=%7B%22desired-state%22%3A%5B%22x%22%5D%7D"),
        Case(400, "invalid service version 'x'", "POST", "/services/nope/update?version=x", {"Name": "nope"}),
        Case(400, "invalid node version ''", "POST", "/nodes/node-2/update", {"Role": "worker"}),
    ],
    "nodes and the cluster itself": [
        *(
            Case(400, says, "POST", "/nodes/node-2/update?version=1", body)
            for says, body in (
                ('invalid Role: "king"', {"Role": "king"}),
                ('invalid Availability: "asleep"', {"Role": "worker", "Availability": "asleep"}),
                ("at `$.Labels", {"Role": "worker", "Availability": "active", "Labels": {"a": 1}}),
            )
        ),
        Case(400, "is not down and can't be removed", "DELETE", "/nodes/node-2"),
        Case(400, "is a cluster manager", "DELETE", "/nodes/node-1?force=1"),
        Case(400, "at `$.Dispatcher`", "POST", "/swarm/update?version=1", {"Dispatcher": "quick"}),
    ],
}

WORKER: list[Case] = [
    Case(503, NO_MANAGER, method, path, body)
    for method, path, body in (
        ("GET", "/services", None), ("GET", "/nodes", None), ("GET", "/tasks", None), ("GET", "/swarm", None),
        ("GET", "/secrets", None), ("POST", "/services/create", {"Name": "web"}), ("DELETE", "/nodes/node-1", None),
        ("POST", "/swarm/update?version=1", {}), ("POST", "/secrets/create", {"Name": "s", "Data": "eA=="}),
    )
]  # fmt: skip


@pytest.mark.parametrize("group", BOTH)
def test_refused_through_both_views(cluster: Cluster, view: View, group: str) -> None:
    before = belongings(cluster)
    assert list(complaints(view, BOTH[group])) == []
    assert belongings(cluster) == before


@pytest.mark.parametrize("group", CLUSTER)
def test_refused_through_the_cluster_view(cluster: Cluster, group: str) -> None:
    before = belongings(cluster)
    assert list(complaints(cluster.view, CLUSTER[group])) == []
    assert belongings(cluster) == before


def test_a_workers_own_socket_refuses_what_only_managers_can(cluster: Cluster) -> None:
    assert list(complaints(cluster.node(2), WORKER)) == []


def test_a_taken_name_is_refused_with_its_holder_named(cluster: Cluster, view: View) -> None:
    ident = view("create", "--name", "taken", "busybox", "true")
    cluster.view("service", "create", "-d", "--name", "taken", "--replicas", "0", "busybox", "true")
    view("volume", "create", "kept")
    view("network", "create", "net-taken")
    before = belongings(cluster)
    try:
        words = 'The container name "/taken" is already in use'
        assert list(complaints(view, [create(409, words, query="?name=taken")])) == []
        assert list(complaints(cluster.view, [service("service taken already exists", status=409, Name="taken")])) == []
        again = network(409, "network with name net-taken already exists", Name="net-taken")
        assert list(complaints(view, [again])) == []
        assert belongings(cluster) == before
        shown = view.run("create", "--name", "taken", "busybox", "true")
        assert shown.returncode == 1 and b"Conflict" in shown.stderr
    finally:
        view("rm", ident)
        view("volume", "rm", "kept")
        view("network", "rm", "net-taken")


def test_updates_at_another_version_than_the_current_one_change_nothing(cluster: Cluster) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "web", "--replicas", "0", "busybox", "true")
    before = belongings(cluster)
    objects = {
        "/services/web/update": get(view, "/services/web"),
        "/nodes/node-2/update": get(view, "/nodes/node-2"),
        "/swarm/update": get(view, "/swarm"),
    }
    cases = [
        Case(500, "update out of sequence", "POST", f"{path}?version={shown['Version']['Index'] + step}", shown["Spec"])
        for path, shown in objects.items()
        for step in (-1, 1)
    ]
    assert list(complaints(view, cases)) == []
    assert belongings(cluster) == before


def test_an_update_that_cannot_be_meant_changes_nothing(cluster: Cluster) -> None:
    view = cluster.view
    view("service", "create", "-d", "--name", "web", "--replicas", "0", "busybox", "true")
    shown, before = get(view, "/services/web"), belongings(cluster)
    spec, version = shown["Spec"], shown["Version"]["Index"]
    path = f"/services/web/update?version={version}"
    cases = [
        Case(400, "renaming services is not supported", "POST", path, spec | {"Name": "other"}),
        Case(400, "service mode change is not allowed", "POST", path, spec | {"Mode": {"Global": {}}}),
        Case(400, "replicas", "POST", path, spec | {"Mode": {"Replicated": {"Replicas": -1}}}),
        Case(400, "rollback option", "POST", f"{path}&rollback=sideways", spec),
        Case(400, "does not have a previous spec", "POST", f"{path}&rollback=previous", spec),
        Case(400, "registryAuthFrom value nobody", "POST", f"{path}&registryAuthFrom=nobody", spec),
        Case(400, "got EOF while reading request body", "POST", path),
    ]
    assert list(complaints(view, cases)) == []
    assert belongings(cluster) == before


@pytest.mark.parametrize(
    ("code", "says", "args"),
    [
        (125, "invalid reference format", ["run", "Bad:Ref:x", "true"]),
        (125, "connection refused", ["run", "127.0.0.1:1/no/such", "true"]),
        (125, "Minimum memory limit allowed is 6MB", ["run", "--memory", "1m", "busybox", "true"]),
        (125, "range of CPUs", ["run", "--cpus", "999", "busybox", "true"]),
        (125, "bind source path does not exist", ["run", "--mount", "type=bind,src=/no/such,dst=/x", "busybox"]),
        (125, "unknown or invalid runtime name", ["run", "--runtime", "kata", "busybox", "true"]),
        (125, "could not get container for nobody", ["run", "--link", "nobody:x", "busybox", "true"]),
        (125, "No such container: nobody", ["run", "--volumes-from", "nobody", "busybox", "true"]),
        (1, "No such container: nope", ["start", "nope"]),
        (1, "No such container: nope", ["exec", "nope", "true"]),
        (1, "No such container: nope", ["attach", "nope"]),
        (1, "No such image: nope", ["rmi", "nope"]),
        (1, "invalid archive", ["load"]),
        (1, "client version 1.23 is too old", ["ps"]),
        (1, "mode 'l9' is not valid", ["network", "create", "-d", "ipvlan", "-o", "ipvlan_mode=l9", "iv"]),
    ],
)
def test_the_docker_command_shows_the_reason(
    cluster: Cluster, view: View, code: int, says: str, args: list[str]
) -> None:
    before = belongings(cluster)
    env = {"DOCKER_API_VERSION": "1.23"} if args == ["ps"] else None
    done = view.run(*args, input=b"no archive at all" if args == ["load"] else None, env=env)

    assert says in done.stderr.decode(), done.stderr
    assert done.returncode == code
    assert belongings(cluster) == before


@pytest.mark.parametrize(
    ("says", "args"),
    [
        ("used with dnsrr", ["service", "create", "-p", "80:80", "--endpoint-mode", "dnsrr", "busybox"]),
        ("network ov not found", ["service", "create", "--network", "ov", "busybox"]),
        ("secret not found: s", ["service", "create", "--secret", "s", "busybox"]),
        ("replicated job is not supported", ["service", "create", "--mode", "replicated-job", "busybox"]),
        ("operator", ["service", "create", "--constraint", "nonsense", "busybox"]),
        ("at least 4MiB", ["service", "create", "--limit-memory", "1k", "busybox"]),
        ("invalid name, only 64", ["secret", "create", "a/b", "-"]),
        ("service nope not found", ["service", "scale", "-d", "nope=3"]),
        ("service nope not found", ["service", "rm", "nope"]),
        ("nope", ["service", "inspect", "nope"]),
        ("node nope not found", ["node", "rm", "nope"]),
    ],
)
def test_the_docker_command_shows_the_clusters_reason(cluster: Cluster, says: str, args: list[str]) -> None:
    before = belongings(cluster)
    done = cluster.view.run(*args, input=b"text" if args[-1] == "-" else None)

    assert says in (done.stderr + done.stdout).decode(), (done.stdout, done.stderr)
    assert done.returncode == 1
    assert belongings(cluster) == before
