"""What never becomes an image: from registries that lie, break off or are not there, and from archives."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from e2e_cluster import Cluster, View, eventually
from e2e_image_folders import image_folder
from registry_fill import (
    Image,
    Liar,
    lying_registry,
    tar_of,
    with_layer,
)

pytestmark = pytest.mark.usefixtures("no_images_left")


def test_an_unreachable_registry_is_named_with_the_reason(view: View, cluster: Cluster) -> None:
    with socket.socket() as free:
        free.bind((cluster.layout.gateway, 0))
        name = f"{cluster.layout.gateway}:{free.getsockname()[1]}/a/b:c"
        done = view.run("pull", name)
    assert done.returncode == 1 and b"connection refused" in done.stderr.lower(), done.stderr
    assert b"Error response from daemon" in done.stderr and name.partition("/")[0].encode() in done.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no/such:1", "manifest for {registry}/no/such:1 not found"),
        ("no/such@sha256:" + "0" * 64, "not found"),
        ("UPPER/case", "must be lowercase"),
        ("bad:tag:twice", "invalid reference format"),
        ("short@sha256:abc", "invalid reference format"),
    ],
)
def test_what_cannot_be_pulled_is_refused_in_the_words_of_docker(
    view: View, registry: str, name: str, said: str
) -> None:
    done = view.run("pull", f"{registry}/{name}")
    assert done.returncode == 1 and said.format(registry=registry).encode() in done.stderr, done.stderr
    ran = view.run("run", "--rm", f"{registry}/{name}")
    assert ran.returncode == 125 and view("ps", "-aq") == ""


def test_content_that_does_not_match_its_digest_never_arrives(view: View, cluster: Cluster, base: Image) -> None:
    """Layer, configuration and manifest in turn, of the right length; what was right is not kept either."""
    image = base.on({"honest": os.urandom(1000)}, Cmd=["true"])
    packed = image.packed()
    layer, config = packed.layers[-1], packed.config
    good = packed.blobs[layer]
    lies = {
        ":layer": Liar(packed, tampered={layer: good[:500] + bytes([good[500] ^ 1]) + good[501:]}),
        ":longer": Liar(packed, tampered={layer: good + b"and more"}),
        ":config": Liar(packed, tampered={config: packed.blobs[config].replace(b'["true"]', b'["evil"]')}),
        f"@{packed.digest}": Liar(packed, tampered={packed.digest: packed.manifest.replace(b"2", b"3")}),
    }
    for version, liar in lies.items():
        with lying_registry(cluster.layout.gateway, liar) as address:
            done = view.run("pull", f"{address}/liar{version}", timeout=120)
        assert done.returncode == 1, done.stdout
        assert re.search(rb"verification (failed|for)|larger than", done.stderr), (version, done.stderr)
    assert not [row for row in view.rows("images", "-a") if row["Repository"].endswith("/liar")]


def test_a_transfer_that_always_breaks_off_is_given_up(cluster: Cluster, base: Image) -> None:
    packed = base.on({"cut": b"short" * 100}).packed()
    liar = Liar(packed, cut=[packed.layers[-1]])
    with lying_registry(cluster.layout.gateway, liar) as address:
        done = cluster.node(2).run("pull", f"{address}/cut", timeout=120)
    assert done.returncode == 1 and done.stderr, done.stdout
    assert cluster.node(2)("images", "-q", f"{address}/cut") == ""


def test_a_pull_whose_agent_is_killed_goes_on_where_it_was(cluster: Cluster, base: Image) -> None:
    node, agent = cluster.node(3), cluster.pid(3, "swarmlet-agent")
    packed = base.on({"done": b"d" * 1000}).on({"half": os.urandom(6 << 20)}).packed()
    done, half = packed.layers[-2:]
    whole = len(packed.blobs[done])
    liar = Liar(packed, held=[half])
    partial = image_folder(cluster, 3) / "partial"
    with lying_registry(cluster.layout.gateway, liar) as address:
        with node.popen("pull", f"{address}/killed:1", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as pulling:
            eventually(lambda: (partial / half[7:]).stat().st_size and (partial / done[7:]).stat().st_size == whole)
            os.kill(agent, signal.SIGKILL)
            pulling.communicate(timeout=30)
            assert pulling.returncode == 1
        have = (partial / half[7:]).stat().st_size
        liar.go_on.set()
        eventually(lambda: node.run("version").returncode == 0)
        assert node("images", "-q", f"{address}/killed") == ""

        assert "Downloaded newer image" in node("pull", f"{address}/killed:1")
        assert liar.asked[done] == 1 and liar.ranges == [f"bytes={have}-"]
    assert node("run", "--rm", f"{address}/killed:1", "sh", "-c", "wc -c </half; head -c 2 /done").split() == [
        str(6 << 20), "dd",
    ]  # fmt: skip
    eventually(lambda: cluster.ready() == {"node-1", "node-2", "node-3"})


def test_a_pull_whose_client_goes_away_is_stopped(cluster: Cluster, view: View, base: Image) -> None:
    packed = base.on({"slow": os.urandom(100_000)}).packed()
    liar = Liar(packed, held=[packed.layers[-1]])
    with lying_registry(cluster.layout.gateway, liar) as address:
        with view.popen("pull", f"{address}/left:1", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as pulling:
            eventually(lambda: liar.asked[packed.layers[-1]])
            pulling.send_signal(signal.SIGINT)
            pulling.communicate(timeout=30)
        assert liar.hung_up.wait(20)
    assert view("images", "-q", f"{address}/left") == ""
    eventually(lambda: not [file for n in (1, 2, 3) for file in (image_folder(cluster, n) / "partial").iterdir()])


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("junk", b"invalid"),
        ("truncated", b"unexpected end of file"),
        ("no images", b"neither manifest.json nor index.json"),
        ("dots", b"escapes its root"),
        ("symbolic link", b"escapes its root through the symbolic link"),
        ("absolute link", b"leads to no folder of the layer"),
        ("not a layer", b"invalid"),
    ],
)
def test_an_archive_that_is_broken_or_evil_is_refused_whole(
    view: View, base: Image, tmp_path: Path, what: str, said: bytes
) -> None:
    up = "../" * 12 + str(tmp_path).lstrip("/")
    archives = {
        "junk": b"junk" * 1000,
        "truncated": base.on({"a": b"b"}).archive("bad:1")[:500_000],
        "no images": tar_of({"something": b"else"}),
        "dots": with_layer(base, tar_of({f"{up}/escaped": b"x"})).archive("bad:1"),
        "symbolic link": with_layer(base, tar_of({"out/escaped": b"x"}, {"out": up})).archive("bad:1"),
        "absolute link": with_layer(base, tar_of({"out/escaped": b"x"}, {"out": str(tmp_path)})).archive("bad:1"),
        "not a layer": with_layer(base, b"this is no tar" * 100).archive("bad:1"),
    }
    done = view.run("load", input=archives[what])
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert view("images", "-q", "bad") == "" and not [*tmp_path.iterdir()]
