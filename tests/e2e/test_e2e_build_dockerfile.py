"""The language of Dockerfiles and the options of docker build, with stock clients on a real engine."""

from __future__ import annotations

import io
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import docker
import pytest
from e2e_builds import CLASSIC, build, clean_node, refused, run_build, tar_of, write
from e2e_cluster import Cluster, View


@pytest.fixture
def node(cluster: Cluster) -> Iterator[View]:
    """One node's engine, without images and cache of other tests."""
    with clean_node(cluster.node(2)) as view:
        yield view


def config_of(node: View, image: str) -> dict[str, object]:
    config: dict[str, object] = node.json("image", "inspect", image)[0]["Config"]
    return config


def test_variables_are_replaced_as_a_shell_would(node: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": (
        "# syntax=docker/dockerfile:1\nFROM busybox\nARG empty=\nENV old form  with   spaces\n"
        "ENV a=1 b=$a c=\"x y\" d=x\\ y e='$a' path=/foo/bar/baz.tar.gz\n"
        "ENV f=${a:-d} g=${no:-d} h=${a:+set} i=${no:+set} j=${empty-d} k=${empty:-d} l=\\${a} m=\\\\x\n"
        "ENV n=${path#*/} o=${path##*/} p=${path%.*} q=${path%%.*} r=${path/bar/B} s=${path//a/A}\n"
        "ENV t=\"in \\\"quotes\\\" $a\" u=${a}${no}$a\nENV path=/other\n"
    )})
    build(node, tmp_path, "-t", "variables")

    env = dict(str(entry).split("=", 1) for entry in config_of(node, "variables")["Env"])  # type: ignore[attr-defined]
    assert env.pop("PATH") and env == {
        "old": "form  with   spaces", "a": "1", "b": "", "c": "x y", "d": "x y", "e": "$a", "path": "/other", "f": "1",
        "g": "d", "h": "set", "i": "", "j": "", "k": "d", "l": "${a}", "m": "\\x", "n": "foo/bar/baz.tar.gz",
        "o": "baz.tar.gz", "p": "/foo/bar/baz.tar", "q": "/foo/bar/baz", "r": "/foo/B/baz.tar.gz",
        "s": "/foo/bAr/bAz.tAr.gz", "t": 'in "quotes" 1', "u": "11",
    }


def test_arguments_have_the_scope_of_their_stage(node: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": (
        "ARG A=global\nARG B=${A}-b\nFROM --platform=$BUILDPLATFORM busybox AS One\nARG A\nARG B\nARG C=${A}c\n"
        "ARG TARGETARCH TARGETSTAGE\nRUN echo $A $B $C $TARGETARCH $TARGETSTAGE > /1\nENV A=env\nARG A=late\n"
        "RUN echo $A >> /1\n"
        "FROM busybox\nRUN echo x${A}x > /2\nARG A=stage\nRUN echo x${A}x >> /2\nCOPY --from=0 /1 /\nCMD cat /1 /2\n"
    )})
    build(node, tmp_path, "-t", "scopes")
    plain = node("run", "--rm", "scopes").splitlines()
    build(node, tmp_path, "-t", "scopes", "--build-arg", "A=given")

    architecture = plain[0].split()[3]
    assert plain == [f"global global-b globalc {architecture} default", "env", "xx", "xstagex"]
    assert node("run", "--rm", "scopes").splitlines() == [
        f"given given-b givenc {architecture} default", "env", "xx", "xgivenx",
    ]


@pytest.mark.parametrize(("steps", "entrypoint", "cmd"), [
    ("", ["e"], ["c"]),
    ('ENTRYPOINT ["own"]', ["own"], None),
    ('CMD ["own"]\nENTRYPOINT ["mine"]', ["mine"], ["own"]),
    ("CMD own words", ["e"], ["/bin/sh", "-c", "own words"]),
    ('SHELL ["/bin/busybox", "sh", "-ec"]\nENTRYPOINT own', ["/bin/busybox", "sh", "-ec", "own"], None),
    ("ENTRYPOINT []", [], None),
])
def test_commands_follow_from_the_base_and_the_stages_own(
    node: View, tmp_path: Path, steps: str, entrypoint: list[str], cmd: list[str] | None
) -> None:
    write(tmp_path, {"Dockerfile": f'FROM busybox AS base\nENTRYPOINT ["e"]\nCMD ["c"]\nFROM base\n{steps}\n'})
    build(node, tmp_path, "-t", "commands")

    config = config_of(node, "commands")
    assert (config["Entrypoint"], config.get("Cmd")) == (entrypoint, cmd)


def test_the_history_is_told_as_docker_tells_it(node: View, tmp_path: Path) -> None:
    write(tmp_path, {
        "Dockerfile": (
            "FROM busybox\nARG V=1\nRUN echo $V > /v\nENV A=1 B=two\nCOPY --chown=1:2 f sub/\nWORKDIR /w\n"
            "EXPOSE 80 1000-1001/udp\nVOLUME /a /b\nUSER 5\nHEALTHCHECK --interval=90s --retries=3 CMD true\n"
            'HEALTHCHECK NONE\nSTOPSIGNAL SIGINT\nSHELL ["/bin/sh", "-e"]\nONBUILD RUN x\nCMD ["a", "b c"]\n'
        ),
        "f": "",
    })
    said = build(node, tmp_path, "-t", "told", "--label", "z=1", "--label", "b=2 words")

    created_by = node("history", "--no-trunc", "--format", "{{.CreatedBy}}", "told").splitlines()[::-1][1:]
    nop, shell = "/bin/sh -c #(nop) ", "/bin/sh -e #(nop) "
    copied = created_by.pop(3)
    assert copied.startswith(f"{nop}COPY --chown=1:2file:") and copied.endswith(" in sub/ ")
    assert created_by == [
        f"{nop} ARG V=1", "|1 V=1 /bin/sh -c echo $V > /v", f"{nop} ENV A=1 B=two", f"{nop}WORKDIR /w",
        f"{nop} EXPOSE 1000-1001/udp 80", f"{nop} VOLUME [/a /b]", f"{nop} USER 5",
        f"""{nop} HEALTHCHECK &{{["CMD-SHELL" "true"] "1m30s" "0s" "0s" "0s" '\\x03'}}""",
        f"""{nop} HEALTHCHECK &{{["NONE"] "0s" "0s" "0s" "0s" '\\x00'}}""", f"{nop} STOPSIGNAL SIGINT",
        f"{shell} SHELL [/bin/sh -e]", f"{shell} ONBUILD RUN x", f'{shell} CMD ["a" "b c"]',
        f"{shell} LABEL b=2 words", f"{shell} LABEL e2e.build=1", f"{shell} LABEL z=1",
    ]
    assert "Note: overriding previous HEALTHCHECK: [CMD-SHELL true]\n" in said
    assert "Step 17/18 : LABEL e2e.build=1\n" in said
    image = node.json("image", "inspect", "told")[0]
    # What an instruction does not say of the check stays as it was.
    assert image["Config"]["Healthcheck"] == {"Test": ["NONE"], "Interval": 90_000_000_000, "Retries": 3}
    assert image["Config"]["ExposedPorts"] == {"80/tcp": {}, "1000/udp": {}, "1001/udp": {}}
    assert len(image["RootFS"]["Layers"]) == 4  # busybox's, RUN's, COPY's and WORKDIR's
    steps = node.rows("history", "--human=false", "told")[:-1]
    assert [step["Size"] for step in steps].count("0") == 16 and all(step["CreatedAt"] > "2020" for step in steps)


def test_files_are_read_with_every_kind_of_line_end_comment_and_escape(node: View, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_bytes(
        b"\xef\xbb\xbf# escape=`\r\n\r\nfrom busybox\r\nrun echo one `\r\n  # in between\r\n\r\n  && echo two\r\n"
        b"\tENV\tT=c:\\d\r\nRUN echo \"$T\"\r\n"
    )
    said = build(node, tmp_path)

    assert "\none\ntwo\n" in said and "\nc:\\d\n" in said


def test_triggers_run_in_the_child_with_files_and_arguments(node: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": (
        "FROM busybox\nONBUILD ARG W=5\nONBUILD COPY --chown=3:4 f /ob/\nONBUILD RUN echo $W > /w\n"
        "ONBUILD ENV Z=${W}x\n"
    )})
    build(node, tmp_path, "-t", "parent")
    write(tmp_path, {"Dockerfile": "FROM parent\nCMD cat /w /ob/f; echo $Z; stat -c %u:%g /ob/f\n", "f": "file\n"})
    build(node, tmp_path, "-t", "child", "--build-arg", "W=6")
    assert node("run", "--rm", "child").split() == ["6", "file", "6x", "3:4"]
    assert not config_of(node, "child").get("OnBuild")

    (tmp_path / "f").unlink()
    assert "COPY failed: file not found in build context" in refused(node, tmp_path)


def test_copy_keeps_parents_leaves_out_and_sets_modes(node: View, tmp_path: Path) -> None:
    write(tmp_path, {
        "Dockerfile": (
            "FROM busybox AS source\nRUN mkdir -p /s && touch /s/own && chown 7:8 /s/own && chmod 4755 /s/own\n"
            "FROM busybox\nCOPY --parents a/b/one a/c/two /par/\nCOPY --parents x/./y/z /piv/\n"
            "COPY --link --chmod=640 a/b/one /l/\nCOPY --exclude=*.log --exclude=b a /ex/\nCOPY --from=source /s /s\n"
            "COPY --from=source --chown=0 --chmod=0600 /s/own /mine\nADD --chown=1:2 a/b/one /deep/er/\n"
            "COPY --chmod=u=rwX,go=rX a/c /sym/\nRUN chmod 4711 /s/own\n"
            "COPY --from=source --chmod=u-s,go+w /s /less\n"
            "CMD stat -c '%n %a' /sym /less/own; "
            "find /par /piv /l /ex /s /mine /deep -type f | sort | xargs stat -c '%n %u:%g %a'\n"
        ),
        "a/b/one": "", "a/c/two": "", "a/c/x.log": "", "a/top.log": "", "x/y/z": "",
    })
    build(node, tmp_path, "-t", "copies")

    assert node("run", "--rm", "copies").splitlines() == [
        "/sym 755", "/less/own 777",
        "/deep/er/one 1:2 644", "/ex/c/two 0:0 644", "/ex/c/x.log 0:0 644", "/l/one 0:0 640", "/mine 0:0 600",
        "/par/a/b/one 0:0 644", "/par/a/c/two 0:0 644", "/piv/y/z 0:0 644", "/s/own 7:8 4711",
    ]


def test_a_dockerfile_may_have_ignore_rules_of_its_own(node: View, tmp_path: Path) -> None:
    write(tmp_path, {
        "docker/Own": "FROM busybox\nCOPY . /all\nCMD find /all -type f | sort\n",
        "docker/Own.dockerignore": "*\n!keep\nkeep/not\n!**/again\n", "keep/yes": "", "keep/not/no": "",
        "keep/not/again": "", "other": "", "deep/er/again": "",
    })
    build(node, tmp_path, "-t", "own-rules", "-f", str(tmp_path / "docker/Own"))

    assert node("run", "--rm", "own-rules").split() == ["/all/deep/er/again", "/all/keep/not/again", "/all/keep/yes"]


@pytest.mark.parametrize(("dockerfile", "message"), [
    ("FROM busybox\nRUN --mount=type=ssh,required true\n", 'no SSH key "default" forwarded from the client'),
    ("FROM busybox\nRUN --mount=type=secret,id=key,required=true true\n", "secret key: not found"),
    ("FROM busybox\nARG NEED=1\nRUN --mount=type=secret,id=$NEED,required=$NEED true\n", "secret 1: not found"),
    ("# check=error=perhaps\nFROM busybox\n", 'failed to parse check option "error=perhaps"'),
    ("FROM busybox\nRUN --device=gpu true\n", "unknown flag: --device"),
    ("FROM busybox\nCOPY https://x/y.git /\n", "COPY failed: source can't be a git ref for COPY"),
    ("FROM busybox\nADD --checksum=sha256:00 a /\n", "checksum requires HTTP(S) or Git sources"),
    ("FROM busybox\nADD --checksum=sha256:00 http://x/a http://x/b /\n", "checksum can't be specified for multiple"),
    ("FROM busybox\nRUN --security=insecure true\n", "RUN --security=insecure is not supported"),
    ("FROM busybox\nRUN --network=mine true\n", 'invalid network mode "mine"'),
    ("FROM busybox\nCOPY http://x/y /\n", "COPY failed: source can't be a URL for COPY"),
    ("FROM busybox\nCOPY --from=busybox /gone /\n", "COPY failed: stat gone: file does not exist"),
    ("FROM busybox\nCOPY --chown=nobody-here a /\n", "can't find uid for user nobody-here: no such user"),
    ("FROM busybox\nCOPY --chmod=u+q a /\n", "invalid chmod parameter: 'u+q'"),
    ("FROM busybox AS x\nFROM busybox AS X\n", "duplicate name x"),
    ("FROM busybox\nCOPY --from=3 /a /\n", "invalid from flag value 3"),
    ("FROM ${NOTHING}\n", "base name (${NOTHING}) should not be blank"),
    ("FROM busybox\nEXPOSE 80/frob\n", "invalid proto: frob"),
    ("FROM busybox\nONBUILD ONBUILD RUN x\n", "Chaining ONBUILD"),
    ("FROM busybox\nHEALTHCHECK --interval=0.1ms CMD x\n", 'Interval "interval" cannot be less than 1ms'),
    ("FROM busybox\nSHELL sh\n", "SHELL requires the arguments to be in JSON form"),
    ("FROM busybox\nRUN <<EOF\nx\n", "unterminated heredoc"),
    ("# escape=x\nFROM busybox\n", "invalid escape token"),
    ("FROM busybox\nUSER nobody-here\nRUN id\n", "unable to find user nobody-here: no matching entries in passwd file"),
    ('FROM busybox\nRUN ["not-there"]\n', 'exec: "not-there": executable file not found in $PATH'),
])
def test_what_cannot_be_built_is_said(node: View, tmp_path: Path, dockerfile: str, message: str) -> None:
    write(tmp_path, {"Dockerfile": dockerfile, "a": ""})
    done = node.run("build", "--force-rm", str(tmp_path), env=CLASSIC)

    assert done.returncode == 1 and message in done.stderr.decode(), done.stderr
    assert node("ps", "-aq") == ""


@pytest.mark.parametrize(("query", "message"), [
    ("version=2", "BuildKit is not supported by this engine: use the classic builder (DOCKER_BUILDKIT=0)"),
    ("squash=1", "squash is only supported with experimental mode"),
    ("securityopt=seccomp%3Dunconfined", "The daemon on this platform does not support setting security options"),
    ("isolation=hyperv", 'Unsupported isolation: "hyperv"'),
    ("platform=foo", "unknown operating system or architecture"),
    ('outputs=[{"Type":"local"}]', "outputs are not supported"),
    ("t=Upper", "must be lowercase"),
    ("buildargs=x", "error reading buildargs"),
    ("target=none", 'target stage "none" could not be found'),
    ("dockerfile=gone", "Cannot locate specified Dockerfile: gone"),
])
def test_options_that_cannot_be_honoured_are_refused(node: View, query: str, message: str) -> None:
    done = subprocess.run(
        ["curl", "-sg", "--unix-socket", str(node.socket), "-X", "POST", "-H", "Content-Type: application/x-tar",
         "--data-binary", "@-", "-w", "\n%{http_code}", f"http://d/v1.50/build?{query}"],
        input=tar_of({"Dockerfile": b"FROM busybox\n"}), capture_output=True, check=True, timeout=30,
    )  # fmt: skip
    body, _, status = done.stdout.decode().rpartition("\n")

    assert status == "400" and message in json.loads(body)["message"]


def test_what_is_written_to_a_writable_mount_is_lost_and_a_cache_is_kept(node: View, tmp_path: Path) -> None:
    write(tmp_path, {
        "Dockerfile": (
            "FROM busybox AS tools\nRUN mkdir /t && echo tool > /t/tool\nFROM busybox\nARG N\nWORKDIR /src\n"
            "RUN --mount=target=.,rw --mount=type=bind,from=tools,source=/t,target=/t,rw \\\n"
            "    --mount=type=cache,target=/cache,id=kept,sharing=locked,uid=5,mode=0700 \\\n"
            "    echo more >> file && echo more >> /t/tool && echo $N >> /cache/log && \\\n"
            "    cat file /t/tool /cache/log > /said && stat -c '%u %a' /cache >> /said\n"
            "CMD cat /said; ls /src /t /cache\n"
        ),
        "file": "input\n",
    })
    for number in ("1", "2"):
        build(node, tmp_path, "-t", "writing", "--build-arg", f"N={number}")

    done = node.run("run", "--rm", "writing")
    assert done.stdout.split() == b"input more tool more 1 2 5 700 /src:".split()
    assert (tmp_path / "file").read_text() == "input\n"
    usage = node.json("system", "df", "-v", "--format", "{{json .BuildCache}}")
    [cache] = [entry for entry in usage if entry["CacheType"] == "exec.cachemount"]
    assert "/cache" in cache["Description"] and cache["UsageCount"] == "2"
    node("builder", "prune", "-f", "--filter", "type=exec.cachemount")
    build(node, tmp_path, "-t", "writing", "--build-arg", "N=3")
    assert node("run", "--rm", "writing", "cat", "/said").split()[4:5] == ["3"]


def test_a_cache_may_begin_with_what_a_stage_has(node: View, tmp_path: Path) -> None:
    def dockerfile(seed: str) -> dict[str, str]:
        return {"Dockerfile": (
            f"FROM busybox AS base\nRUN mkdir -p /d/in && echo {seed} > /d/in/seed\nFROM busybox\nARG N=0\n"
            "RUN --mount=type=cache,target=/c,from=base,source=/d/in echo $N >> /c/seed && cat /c/seed > /said\n"
            "CMD cat /said\n"
        )}

    write(tmp_path, dockerfile("first"))
    for number, said in (("1", "first 1"), ("2", "first 1 2")):
        build(node, tmp_path, "-t", "seeded", "--build-arg", f"N={number}")
        assert node("run", "--rm", "seeded").split() == said.split()
    write(tmp_path, dockerfile("second"))  # another base, another cache
    build(node, tmp_path, "-t", "seeded", "--build-arg", "N=2")
    assert node("run", "--rm", "seeded").split() == ["second", "2"]
    write(tmp_path, {"Dockerfile": "FROM busybox\nRUN --mount=type=cache,target=/c,from=busybox,source=/gone true\n"})
    assert "RUN --mount failed: stat gone: file does not exist" in refused(node, tmp_path)


def test_pruning_the_cache_is_an_event(node: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": "FROM busybox\nRUN head -c 5000 /dev/zero > /f\n"})
    before = time.time()
    build(node, tmp_path)
    node("image", "prune", "-f")
    said = node("builder", "prune", "-af")

    assert "Total reclaimed space: 5kB" in said
    until = str(int(time.time()) + 1)
    [event] = node.rows("events", "--since", f"{before:.6f}", "--until", until, "--filter", "type=builder")
    assert event["Action"] == "prune" and event["Actor"] == {"ID": "", "Attributes": {"reclaimed": "5000"}}


def test_what_pruning_frees_is_what_was_shown(node: View, tmp_path: Path) -> None:
    node("builder", "prune", "-af")
    write(tmp_path, {"Dockerfile": (
        "FROM busybox\nRUN head -c 70000 /dev/zero > /old\nRUN head -c 30000 /dev/zero > /new\n"
        "RUN --mount=type=cache,target=/cache head -c 50000 /dev/zero > /cache/x\n"
    )})
    build(node, tmp_path)
    node("image", "prune", "-f")

    def shown() -> dict[str, float]:
        cached = api("GET", "/system/df?type=build-cache")["BuildCache"] or []
        return {entry["Description"]: entry["Size"] for entry in cached}

    def api(method: str, path: str) -> Any:
        url = f"http://d/v1.50{path}"
        said = subprocess.run(
            ["curl", "-sS", "--unix-socket", str(node.socket), "-X", method, url],
            capture_output=True, check=True, timeout=30,
        ).stdout  # fmt: skip
        return json.loads(said)

    def pruned(query: str = "") -> int:
        before = sum(shown().values())
        freed: int = api("POST", f"/build/prune?all=1{query}")["SpaceReclaimed"]
        assert before - sum(shown().values()) == freed
        return freed

    assert sum(shown().values()) == 150_000
    [row] = [row for row in node.rows("system", "df") if row["Type"] == "Build Cache"]
    assert row["Size"] == "150kB" and row["Reclaimable"] == "150kB"
    assert pruned("&filters=" + quote('{"until":["24h"]}')) == 0
    assert pruned("&max-used-space=160000") == 0 == pruned("&min-free-space=1")
    assert pruned("&filters=" + quote('{"type":["exec.cachemount"]}')) == 50_000
    assert pruned("&keep-storage=80000") == 30_000  # without the one below, the later step is nothing
    assert pruned("&reserved-space=80000&max-used-space=1") == 0
    assert pruned("&max-used-space=1") == 70_000
    assert sum(shown().values()) == 0 and "0B" in node("builder", "prune", "-af")


def test_pull_looks_for_a_newer_base_and_without_it_the_one_here_is_used(
    cluster: Cluster, node: View, registry: str, tmp_path: Path
) -> None:
    other, base = cluster.node(1), f"{registry}/base:1"
    for content in ("old", "new"):
        write(tmp_path, {"Dockerfile": f"FROM busybox\nRUN echo {content} > /content\n"})
        build(other, tmp_path, "-t", base)
        other("push", base)
        if content == "old":
            node("pull", base)
    write(tmp_path, {"Dockerfile": f"FROM {base}\nRUN cat /content > /seen\n"})
    build(node, tmp_path, "-t", "seen")
    assert node("run", "--rm", "seen", "cat", "/seen") == "old"
    build(node, tmp_path, "-t", "seen", "--pull")
    assert node("run", "--rm", "seen", "cat", "/seen") == "new"
    node("rmi", "-f", "seen", base)
    other("rmi", "-f", base)
    other("builder", "prune", "-af")


def test_an_id_file_and_a_compressed_context(node: View, tmp_path: Path) -> None:
    context = write(tmp_path / "context", {"Dockerfile": "FROM busybox\nCOPY big /\n", "big": "x" * 100_000})
    build(node, context, "--iidfile", str(tmp_path / "id"), "--compress", "-t", "compressed")

    ident = (tmp_path / "id").read_text()
    assert ident == node.json("image", "inspect", "compressed")[0]["Id"]
    assert node("run", "--rm", ident, "wc", "-c", "/big").split()[0] == "100000"


def test_compose_builds_as_docker_py_asks_for_it(node: View, tmp_path: Path) -> None:
    """docker-compose 1.29 sends all of this, most of it empty, through docker-py's low-level client."""
    write(tmp_path, {
        "Dockerfile.web": (
            "FROM busybox AS base\nARG VER\nRUN echo $VER > /ver\nFROM base AS final\nCOPY f /\nFROM base\n"
        ),
        "f": "", ".dockerignore": "ignored\n", "ignored": "",
    })
    client = docker.APIClient(base_url=node.url)
    try:
        output = client.build(
            path=str(tmp_path), tag="web:1", rm=True, forcerm=False, pull=False, nocache=False,
            dockerfile="Dockerfile.web", cache_from=["busybox"], labels={"a": "b", "e2e.build": "1"},
            buildargs={"VER": "7"}, network_mode="none", target="final", shmsize=1 << 20,
            extra_hosts={"db": "192.0.2.9"},
            container_limits={"memory": 64 << 20, "memswap": -1, "cpushares": 100, "cpusetcpus": "0"}, gzip=True,
            isolation=None, platform=None, decode=True,
        )
        told = list(output)
    finally:
        client.close()
    ident = node.json("image", "inspect", "web:1")[0]["Id"]
    assert [line["aux"] for line in told if "aux" in line][-1] == {"ID": ident}
    assert "Successfully tagged web:1\n" in [line.get("stream") for line in told]
    assert node("run", "--rm", "web:1", "cat", "/ver") == "7"


def test_many_builds_at_once_share_what_they_make(node: View, tmp_path: Path) -> None:
    """The same steps at the same time, while containers are removed and the cache is pruned beside them."""
    write(tmp_path, {
        "Dockerfile": (
            "FROM busybox AS a\nCOPY f /a\nRUN echo a > /made\nFROM busybox AS b\nCOPY f /b\nRUN echo b > /made\n"
            "FROM busybox\nARG N\nCOPY --from=a /made /a\nCOPY --from=b /made /b\nRUN echo $N > /n\n"
        ),
        "f": "the same",
    })
    done = threading.Event()

    def disturb() -> None:
        while not done.is_set():
            node.run("image", "prune", "-f")
            node.run("builder", "prune", "-af")

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            builds = pool.map(
                lambda number: run_build(node, tmp_path, "-t", f"many:{number}", "--build-arg", f"N={number}"), range(8)
            )
            failed = [build.stderr.decode() for build in builds if build.returncode]
    finally:
        done.set()
        disturber.join()
    assert failed == []
    assert node("run", "--rm", "many:5", "cat", "/a", "/b", "/n").split() == ["a", "b", "5"]


def test_the_api_takes_a_context_in_every_compression(node: View) -> None:
    client = docker.APIClient(base_url=node.url)
    files = {"Dockerfile": b"FROM busybox\nLABEL e2e.build=1\nCOPY f /\n", "f": b"x"}
    try:
        for how in ("w", "w:gz", "w:bz2", "w:xz"):
            told = list(client.build(
                fileobj=io.BytesIO(tar_of(files, how)), custom_context=True, rm=True, decode=True, tag="packed",
            ))
            assert "Successfully tagged packed:latest\n" in [line.get("stream") for line in told], told
        with pytest.raises(docker.errors.APIError, match="400 Client Error"):
            list(client.build(fileobj=io.BytesIO(b"no archive" * 100), custom_context=True))
    finally:
        client.close()


def test_stages_that_share_a_locked_cache_wait_for_it_and_not_for_their_turn_to_speak(
    node: View, tmp_path: Path
) -> None:
    mount = "RUN --mount=type=cache,id=shared,target=/c,sharing=locked"
    write(tmp_path, {"Dockerfile": (
        f"FROM busybox AS first\nRUN sleep 1\n{mount} cat /c/busy > /seen\n"
        f"FROM busybox AS second\n{mount} touch /c/busy; for n in $(seq 700); do echo $n; usleep 2500; done\n"
        "FROM busybox\nCOPY --from=first /seen /\nCOPY --from=second /etc/passwd /\n"
    )})
    said = build(node, tmp_path)

    assert "\n700\n" in said and "Successfully built" in said
