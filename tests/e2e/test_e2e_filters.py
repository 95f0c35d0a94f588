"""Every `--filter` of every list of one host's objects, with the stock command, through both views.

The expectations were taken from dockerd 20.10 with the same objects. One set of objects serves all tests of this file.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2e_cluster import Cluster, View, eventually

PS = ("ps", "-a", "--format", "{{.Names}}", "--filter", "label=fz")
ALL = {"f-one", "f-two", "f-three", "f-four", "f-five"}


@pytest.fixture(scope="module")
def views(whole_cluster: Cluster) -> Iterator[tuple[View, View]]:
    """A node's own view and the cluster's, with five containers, a network, a volume and an image on that node."""
    node = whole_cluster.node(2)
    run = ("run", "-d", "--label", "fz")
    node("network", "create", "--label", "nl=1", "fnet")
    node("volume", "create", "--label", "vl=1", "fvol")
    node("tag", "busybox", "fimg:1")
    node(
        *run, "--label", "k=v1", "--name", "f-one", "--network", "fnet", "-v", "fvol:/data", "-p", "18181:80",
        "busybox", "sleep", "1000",
    )  # fmt: skip
    node(
        *run, "--label", "k=v2", "--name", "f-two", "--expose", "90/udp", "-v", "/tmp:/bind", "busybox", "sleep", "1000"
    )
    assert node.run("run", "--label", "fz", "--name", "f-three", "busybox", "sh", "-c", "exit 3").returncode == 3
    node("create", "--label", "fz", "--name", "f-four", "fimg:1", "true")
    node(*run, "--name", "f-five", "--health-cmd", "true", "--health-interval", "1s", "busybox", "sleep", "1000")
    node("pause", "f-two")
    eventually(lambda: node("inspect", "-f", "{{.State.Health.Status}}", "f-five") == "healthy")
    # The manager learns of them a moment later.
    eventually(lambda: set(whole_cluster.view(*PS).split()) == ALL)
    try:
        yield node, whole_cluster.view
    finally:
        node("rm", "-fv", *ALL)
        node("network", "rm", "fnet")
        node("volume", "rm", "fvol")
        node("rmi", "fimg:1")


def check(views: tuple[View, View], command: tuple[str, ...], expected: set[str]) -> None:
    """The same rows in both views."""
    for view in views:
        assert set(view(*command).split()) == expected, view.url


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ("ancestor=busybox", "f-one f-two f-three f-four f-five"), ("ancestor=nope", ""),
        ("ancestor=fimg:1", "f-one f-two f-three f-four f-five"),
        ("before=f-three", "f-one f-two"), ("since=f-three", "f-four f-five"),
        ("label=k", "f-one f-two"), ("label=k=v1", "f-one"), ("label=k label=k=v2", "f-two"),
        ("status=running", "f-one f-five"), ("status=paused", "f-two"), ("status=exited", "f-three"),
        ("status=created", "f-four"), ("status=exited status=created", "f-three f-four"),
        ("health=healthy", "f-five"), ("health=none", "f-one f-two f-three f-four"), ("health=starting", ""),
        ("exited=3", "f-three"), ("exited=0", ""),
        ("network=fnet", "f-one"), ("network=nope", ""), ("network=bridge", "f-two f-three f-four f-five"),
        ("volume=fvol", "f-one"), ("volume=/data", "f-one"), ("volume=/bind", "f-two"), ("volume=nope", ""),
        ("publish=18181", "f-one"), ("publish=80", ""), ("publish=18180-18190/tcp", "f-one"), ("publish=18181/udp", ""),
        ("expose=80", "f-one"), ("expose=90/udp", "f-two"), ("expose=80-91/udp", "f-two"),
        ("name=f-t", "f-two f-three"), ("name=^f-one$", "f-one"), ("name=^/f-t", "f-two f-three"),
        ("name=f-.*e$", "f-one f-three f-five"), ("name=f-one name=f-two", "f-one f-two"),
        ("name=f-one status=paused", ""), ("is-task=true", ""), ("is-task=false name=f-one", "f-one"),
    ],
)  # fmt: skip
def test_ps_shows_the_containers_asked_for(views: tuple[View, View], filters: str, expected: str) -> None:
    given = [word for each in filters.split() for word in ("--filter", each)]

    check(views, (*PS, *given), set(expected.split()))


@pytest.mark.parametrize(
    ("listing", "filters", "expected"),
    [
        ("image", "reference=fimg", "fimg:1"), ("image", "reference=f*:*", "fimg:1"), ("image", "reference=nope*", ""),
        ("image", "dangling=true reference=fimg", ""), ("image", "label=nope", ""),
        ("image", "before=busybox reference=fimg", ""),
        ("network", "driver=bridge name=fnet", "fnet"), ("network", "driver=nope", ""), ("network", "label=nl", "fnet"),
        ("network", "label=nl=1", "fnet"), ("network", "label=nl=2", ""), ("network", "name=fn", "fnet"),
        ("network", "name=^fnet$", "fnet"), ("network", "scope=swarm name=fnet", ""),
        ("network", "type=custom name=fnet", "fnet"), ("network", "type=builtin", "bridge host none"),
        ("network", "dangling=true name=fnet", ""),
        ("volume", "name=fvol", "fvol"), ("volume", "name=fv", "fvol"), ("volume", "label=vl", "fvol"),
        ("volume", "label=vl=2", ""), ("volume", "driver=local name=fvol", "fvol"), ("volume", "driver=nope", ""),
        ("volume", "dangling=true name=fvol", ""), ("volume", "dangling=false name=fvol", "fvol"),
    ],
)  # fmt: skip
def test_lists_show_the_objects_asked_for(
    views: tuple[View, View], listing: str, filters: str, expected: str
) -> None:
    given = [word for each in filters.split() for word in ("--filter", each)]
    shown = "{{.Repository}}:{{.Tag}}" if listing == "image" else "{{.Name}}"

    check(views, (listing, "ls", *given, "--format", shown), set(expected.split()))


@pytest.mark.parametrize(
    ("command", "filter", "message"),
    [
        ("ps", "bad=x", "invalid filter 'bad'"), ("ps", "status=x", "invalid filter 'status=x'"),
        ("ps", "exited=x", "invalid filter 'exited=x'"), ("ps", "is-task=x", "invalid filter 'is-task=[x]'"),
        ("ps", "before=nope", "No such container: nope"), ("images", "bad=x", "invalid filter 'bad'"),
        ("images", "dangling=x", "invalid filter 'dangling=[x]'"), ("network ls", "bad=x", "invalid filter 'bad'"),
        ("network ls", "type=x", "invalid filter"), ("volume ls", "bad=x", "invalid filter 'bad'"),
        ("volume ls", "dangling=x", "invalid filter 'dangling=[x]'"),
        ("container prune -f", "bad=x", "invalid filter 'bad'"), ("image prune -f", "bad=x", "invalid filter 'bad'"),
        ("network prune -f", "bad=x", "invalid filter 'bad'"), ("volume prune -f", "bad=x", "invalid filter 'bad'"),
        ("builder prune -f", "bad=x", "invalid filter 'bad'"), ("container prune -f", "until=x", "as time or duration"),
    ],
)  # fmt: skip
def test_filters_that_cannot_be_are_refused_by_name(
    views: tuple[View, View], command: str, filter: str, message: str
) -> None:
    for view in views:
        done = view.run(*command.split(), "--filter", filter)
        assert done.returncode == 1 and message in done.stderr.decode(), view.url


@pytest.mark.parametrize(
    ("command", "filter", "message"),
    [
        ("node ls", "bad=x", "bad"), ("service ls", "bad=x", "bad"), ("node ps node-1", "bad=x", "bad"),
        ("node ls", "role=king", "king"),
    ],
)  # fmt: skip
def test_filters_of_the_cluster_that_cannot_be_are_refused(
    whole_cluster: Cluster, command: str, filter: str, message: str
) -> None:
    done = whole_cluster.view.run(*command.split(), "--filter", filter)

    assert done.returncode == 1 and message in done.stderr.decode()


def test_nodes_are_filtered(whole_cluster: Cluster) -> None:
    def names(*filters: str) -> set[str]:
        given = [word for each in filters for word in ("--filter", each)]
        return set(whole_cluster.view("node", "ls", *given, "--format", "{{.Hostname}}").split())

    everyone = {"node-1", "node-2", "node-3"}
    ident = whole_cluster.view("node", "inspect", "node-2", "--format", "{{.ID}}")
    whole_cluster.view("node", "update", "--label-add", "colour=red", "node-3")

    assert names() == everyone
    assert names("name=node-2") == {"node-2"} and names(f"id={ident}") == {"node-2"}
    assert names("role=manager") | names("role=worker") == everyone
    assert not names("role=manager") & names("role=worker")
    assert names("node.label=colour=red") == {"node-3"}
    assert names("membership=accepted") == everyone

    whole_cluster.view("node", "update", "--label-rm", "colour", "node-3")


def test_before_and_since_count_on_every_node(whole_cluster: Cluster) -> None:
    """The container that is named lives on one node, those that are meant on others, too."""
    view, nodes = whole_cluster.view, [whole_cluster.node(number) for number in (2, 3, 2, 3)]
    try:
        for number, node in enumerate(nodes):
            node("create", "--label", "order", "--name", f"o-{number}", "busybox", "true")
        shown = ("ps", "-a", "--filter", "label=order", "--format", "{{.Names}}")
        eventually(lambda: len(view(*shown).split()) == 4)
        ident = view("inspect", "-f", "{{.Id}}", "o-2")
        for ref in ("o-2", "/o-2", ident, ident[:12]):
            assert set(view(*shown, "--filter", f"before={ref}").split()) == {"o-0", "o-1"}
            assert view(*shown, "--filter", f"since={ref}") == "o-3"
        assert set(view(*shown, "--filter", "before=o-3", "--filter", "since=o-0").split()) == {"o-1", "o-2"}
        assert view(*shown, "--filter", "before=o-1", "-n", "2") == "o-0"
    finally:
        for number, node in enumerate(nodes):
            node.run("rm", "-f", f"o-{number}")


def test_images_before_and_since_one_that_is_on_one_node(whole_cluster: Cluster) -> None:
    view, node = whole_cluster.view, whole_cluster.node(2)
    try:
        node("import", "--message", "x", "/dev/null", "only-here:1")
        shown = ("images", "--filter", "reference=busybox", "--format", "{{.Repository}}", "--filter")
        assert view(*shown, "before=only-here:1") == "busybox" and view(*shown, "since=only-here:1") == ""
    finally:
        node.run("rmi", "only-here:1")


def test_ps_counts_sizes_and_formats(views: tuple[View, View]) -> None:
    for view in views:
        assert view("ps", "-n", "2", "--format", "{{.Names}}").split() == ["f-five", "f-four"]
        assert view("ps", "-l", "--format", "{{.Names}}") == "f-five"
        assert view("ps", "-n", "1", "--filter", "label=k", "--format", "{{.Names}}") == "f-two"
        wanted = "{{.Image}}|{{.Command}}|{{.Ports}}|{{.Labels}}|{{.Mounts}}|{{.Networks}}|{{.LocalVolumes}}|{{.State}}"
        (row,) = view("ps", "--filter", "name=f-one", "--format", wanted).splitlines()
        image, command, ports, labels, *rest = row.split("|")
        assert (image, command, rest) == ("busybox", '"sleep 1000"', ["fvol", "fnet", "1", "running"])
        assert "18181->80/tcp" in ports and set(labels.split(",")) == {"fz=", "k=v1"}
        assert "virtual" in view("ps", "-s", "--filter", "name=f-one", "--format", "{{.Size}}")


def test_events_of_the_past_are_filtered(views: tuple[View, View]) -> None:
    def told(view: View, *filters: str) -> list[str]:
        given = [word for each in filters for word in ("--filter", each)]
        shown = "{{.Type}} {{.Action}}"
        return view("events", "--since", "10m", "--until", "0s", *given, "--format", shown).splitlines()

    for view in views:
        assert [line for line in told(view, "container=f-three") if line.startswith("container")] == [
            "container create", "container attach", "container start", "container die",
        ], view.url  # fmt: skip
        assert told(view, "event=create", "label=k=v1") == ["container create"]
        assert told(view, "type=network", "network=fnet") == ["network create", "network connect"]
        assert "container die" in told(view, "image=busybox", "event=die")
        assert told(view, "volume=fvol")[0] == "volume create" and "volume mount" in told(view, "volume=fvol")
        assert {line.split()[0] for line in told(view, "type=image")} == {"image"}
        assert "image tag" in told(view, "type=image", "event=tag", "image=fimg:1")


@pytest.fixture(scope="module")
def services(whole_cluster: Cluster) -> Iterator[View]:
    """A replicated service of two tasks and a global one, all of them running."""
    view = whole_cluster.view
    create = ("service", "create", "--detach=false", "--quiet")
    view(*create, "--name", "s-web", "--label", "tier=front", "--container-label", "inner=1", "--replicas", "2",
         "--constraint", "node.hostname!=node-1", "busybox", "sleep", "1000")  # fmt: skip
    view(*create, "--name", "s-all", "--label", "tier=back", "--mode", "global", "busybox", "sleep", "1000")
    try:
        yield view
    finally:
        view("service", "rm", "s-web", "s-all")
        eventually(lambda: not view("ps", "-aq", "--filter", "name=s-"))


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ("name=s-web", "s-web"), ("name=s-", "s-web s-all"), ("name=web", ""), ("name=s-web name=s-all", "s-web s-all"),
        ("label=tier", "s-web s-all"), ("label=tier=front", "s-web"), ("label=inner=1", ""),
        ("mode=global", "s-all"), ("mode=replicated", "s-web"), ("mode=replicated mode=global", "s-web s-all"),
        ("id=ID", "s-web"), ("id=nope", ""), ("name=s-web mode=global", ""),
    ],
)  # fmt: skip
def test_services_are_filtered(services: View, filters: str, expected: str) -> None:
    ident = services("service", "inspect", "-f", "{{.ID}}", "s-web")
    given = [word.replace("ID", ident[:10]) for each in filters.split() for word in ("--filter", each)]

    assert set(services("service", "ls", *given, "--format", "{{.Name}}").split()) == set(expected.split())


def test_tasks_of_services_are_filtered(services: View) -> None:
    rows = services.rows("service", "ps", "--no-trunc", "s-web", "s-all")
    nodes = {row["ID"]: row["Node"] for row in rows}
    names = {row["ID"]: row["Name"] for row in rows}
    everything = {row["ID"] for row in rows}
    web = {ident for ident, name in names.items() if name.startswith("s-web.")}

    def told(*filters: str) -> set[str]:
        given = [word for each in filters for word in ("--filter", each)]
        return set(services("service", "ps", "--no-trunc", "-q", *given, "s-web", "s-all").split())

    assert told() == everything and len(web) == 2 and len(everything) == 5
    assert told("name=s-web") == web and told("name=s-web.1") == {i for i in web if names[i] == "s-web.1"}
    assert told("name=nope") == set()
    for name in ("node-1", "node-2", "node-3"):
        ident = services("node", "inspect", "-f", "{{.ID}}", name)
        on_it = {task for task, node in nodes.items() if node == name}
        assert told(f"node={name}") == on_it == told(f"node={ident}")
    assert told("node=node-2", "node=node-3") == {task for task, node in nodes.items() if node != "node-1"}
    one = min(web)
    assert told(f"id={one}") == {one} == told(f"id={one[:10]}")
    assert told("desired-state=running") == everything and told("desired-state=shutdown") == set()
    assert told("desired-state=running", "name=s-web", f"node={nodes[one]}") == {one}
    services("service", "scale", "--detach=false", "s-web=1")
    services("service", "update", "--detach=false", "--quiet", "--force", "s-web")
    assert len(told("desired-state=shutdown", "name=s-web")) >= 1
    assert len(told("desired-state=running", "name=s-web")) == 1
    for wrong, words in (("bad=x", "bad"), ("desired-state=odd", "desired-state filter: 'odd'")):
        done = services.run("service", "ps", "--filter", wrong, "s-web")
        assert done.returncode == 1 and words in done.stderr.decode()
