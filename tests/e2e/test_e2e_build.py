"""docker build with the stock command (the classic builder's protocol), on a node and through the cluster."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import docker
import pytest
from e2e_builds import CLASSIC, build, clean_node, refused, run_build, tar_of, write
from e2e_cluster import Cluster, View


@pytest.fixture
def node(cluster: Cluster) -> Iterator[View]:
    """One node's engine, without images and cache of other tests."""
    with clean_node(cluster.node(2)) as view:
        yield view


def test_the_talks_dockerfile_builds_and_runs(view: View, tmp_path: Path) -> None:
    write(tmp_path, {
        "Dockerfile": (
            "FROM busybox\n"
            "RUN mkdir -p /srv/app && \\\n    # what the program needs\n"
            "    echo 'the program' > /srv/app/program && \\\n    adduser -D -H worker 2>/dev/null || true\n"
            "ENV MODE=production \\\n    PORT=8080\n"
            "COPY settings.conf /etc/app/\n"
            "VOLUME /var/lib/app\n"
            "WORKDIR /srv/app\n"
            'CMD ["sh", "-c", "cat program /etc/app/settings.conf; echo $MODE:$PORT; pwd"]\n'
        ),
        "settings.conf": "threads = 4\n",
    })
    said = build(view, tmp_path, "-t", "talk:1", "-t", "talk:latest")

    assert "Step 1/8 : FROM busybox\n ---> " in said
    assert "Step 6/8 : WORKDIR /srv/app" in said and " ---> Running in " in said
    assert " ---> Removed intermediate container " in said
    assert "Successfully built " in said
    assert said.endswith("Successfully tagged talk:1\nSuccessfully tagged talk:latest\n")
    image = view.json("image", "inspect", "talk")[0]
    assert image["Config"]["Volumes"] == {"/var/lib/app": {}} and image["Config"]["WorkingDir"] == "/srv/app"
    assert {"MODE=production", "PORT=8080"} <= set(image["Config"]["Env"])
    view.run("rmi", "-f", "talk:1")


def test_what_was_built_runs(node: View, tmp_path: Path) -> None:
    write(tmp_path, {
        "Dockerfile": (
            "FROM busybox\nCOPY --chmod=0750 run.sh /\nWORKDIR /work\nUSER 1000:1001\nENV A=b\n"
            'ENTRYPOINT ["/bin/sh", "-c"]\nCMD ["id -u; id -g; pwd; echo $A; ls -ln /run.sh"]\n'
        ),
        "run.sh": "#!/bin/sh\n",
    })
    build(node, tmp_path, "-t", "runs")

    lines = node("run", "--rm", "runs").splitlines()
    assert lines[:4] == ["1000", "1001", "/work", "b"]
    assert lines[4].split()[:4] == ["-rwxr-x---", "1", "0", "0"]


def test_stages_take_files_from_stages_and_images(node: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": (
        "ARG BASE=busybox\n"
        "FROM ${BASE} AS maker\nRUN mkdir /out && echo made > /out/a && echo also > /out/b && ln -s a /out/link\n"
        "FROM busybox AS unused\nRUN exit 1\n"
        "FROM ${BASE:-none} AS tester\nCOPY --from=maker /out /out\nRUN grep made /out/a && echo passed > /result\n"
        "FROM scratch\nCOPY --from=maker /out/ /data/\nCOPY --from=tester /result /\n"
        "COPY --from=busybox /bin/busybox /bin/\n"
        'CMD ["/bin/busybox", "ls", "-l", "/data", "/result"]\n'
    )})
    said = build(node, tmp_path, "-t", "staged")

    assert "Step 1/12 : ARG BASE=busybox\nStep 2/12" in said and "Step 7/12 : FROM scratch\n ---> \n" in said, said
    shown = node("run", "--rm", "staged")
    assert "/result" in shown and "link -> a" in shown
    assert len(node.json("image", "inspect", "staged")[0]["RootFS"]["Layers"]) == 3


def test_a_target_stage_is_built_alone_with_its_labels(node: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": "FROM busybox AS first\nRUN echo 1 > /1\nFROM first AS second\nRUN echo 2 > /2\n"})
    said = build(node, tmp_path, "-t", "part", "--target", "first", "--label", "team=a")

    assert "second" not in said
    assert node.json("image", "inspect", "part")[0]["Config"]["Labels"] == {"team": "a", "e2e.build": "1"}
    assert "target stage" in refused(node, tmp_path, "--target", "third")


def test_build_arguments_reach_what_declares_them(node: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": (
        "ARG VERSION=1\nFROM busybox\nARG VERSION\nARG NAME=nobody\nENV FULL=${NAME}-${VERSION:-0}\n"
        "RUN echo $FULL $HTTP_PROXY > /said\nCMD cat /said\n"
    )})
    said = build(
        node, tmp_path, "-t", "args", "--build-arg", "NAME=me", "--build-arg", "HTTP_PROXY=http://proxy:1",
        "--build-arg", "NONE=1",
    )

    assert node("run", "--rm", "args") == "me-1 http://proxy:1"
    assert "[Warning] One or more build-args [NONE] were not consumed" in said
    history = node("history", "--no-trunc", "--format", "{{.CreatedBy}}", "args")
    assert "|2 NAME=me VERSION=1 /bin/sh -c echo" in history and "proxy" not in history


def test_the_cache_follows_contents_and_modes_and_not_times(node: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": "FROM busybox\nCOPY a /\nRUN cat /a\nCOPY b /\n", "a": "1", "b": "1"})
    first = build(node, tmp_path, "-t", "cached")
    os.utime(tmp_path / "a", (1, 1))
    again = build(node, tmp_path, "-t", "cached")
    (tmp_path / "b").write_text("2")
    lower = build(node, tmp_path)
    os.chmod(tmp_path / "a", 0o777)
    upper = build(node, tmp_path)
    none = build(node, tmp_path, "--no-cache")

    assert first.count("Using cache") == 0
    assert again.count("Using cache") == 4 and _built(again) == _built(first)  # the label is a step, too
    assert lower.count("Using cache") == 2
    assert upper.count("Using cache") == 0 and none.count("Using cache") == 0


def test_the_cache_tells_instructions_arguments_and_parents_apart(node: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": "FROM busybox\nARG X=1\nRUN echo $X > /x\n"})
    build(node, tmp_path)
    other = build(node, tmp_path, "--build-arg", "X=2", "-t", "two")
    same = build(node, tmp_path)

    assert " ---> Running in" in other and node("run", "--rm", "two", "cat", "/x") == "2"
    assert " ---> Running in" not in same


def test_dockerignore_keeps_files_out(node: View, tmp_path: Path) -> None:
    write(tmp_path, {
        "Dockerfile": "FROM busybox\nCOPY . /all/\nCMD find /all -type f | sort\n",
        ".dockerignore": "# comment\n**/*.log\nsecret\ndocs\n!docs/keep.md\nDockerfile\n",
        "a.txt": "", "x.log": "", "deep/y.log": "", "deep/z": "", "secret/key": "", "docs/no.md": "",
        "docs/keep.md": "",
    })
    build(node, tmp_path, "-t", "ignoring")

    kept = node("run", "--rm", "ignoring").split()
    assert kept == ["/all/.dockerignore", "/all/a.txt", "/all/deep/z", "/all/docs/keep.md"]


def test_add_unpacks_archives_and_copy_does_not(node: View, tmp_path: Path) -> None:
    packed = tar_of({"top/file": b"inside", "top/other": b"too"}, "w:gz", uid=42, mode=0o640)
    (tmp_path / "files.tar.gz").write_bytes(packed)
    write(tmp_path, {"Dockerfile": (
        "FROM busybox\nADD files.tar.gz /added/\nCOPY files.tar.gz /copied/\nADD --chown=7:8 files.tar.gz /mine\n"
        "CMD cat /added/top/file; stat -c %u:%a /added/top/file; ls /copied; stat -c %u:%g /mine/top/file\n"
    )})
    build(node, tmp_path, "-t", "adding")

    assert node("run", "--rm", "adding").split() == ["inside42:640", "files.tar.gz", "7:8"]


def test_copy_takes_wildcards_folders_owners_and_renames(node: View, tmp_path: Path) -> None:
    write(tmp_path, {
        "Dockerfile": (
            "FROM busybox\nRUN echo 'app:x:55:66::/:/bin/sh' >> /etc/passwd && ln -s /real /link && mkdir /real\n"
            "COPY --chown=app *.txt sub/*.md /flat/\nCOPY dir /whole\nCOPY one.txt /renamed\nCOPY one.txt /link/\n"
            'COPY ["with space", "/a name"]\nWORKDIR /rel\nCOPY one.txt two.txt ./\n'
            "CMD cd /; stat -c '%u %n' /flat/*; find /whole /rel -type f | sort; cat /renamed /real/one.txt '/a name'\n"
        ),
        "one.txt": "1", "two.txt": "2", "sub/x.md": "", "dir/in/deep": "", "dir/.dot": "", "with space": "s",
    })
    build(node, tmp_path, "-t", "copying")

    assert node("run", "--rm", "copying").splitlines() == [
        "55 /flat/one.txt", "55 /flat/two.txt", "55 /flat/x.md", "/rel/one.txt", "/rel/two.txt", "/whole/.dot",
        "/whole/in/deep", "11s",
    ]


def test_here_documents_are_files_and_programs(node: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": (
        "FROM busybox\nENV WHO=me\n"
        "RUN <<EOF\nset -e\necho first > /1\necho second >> /1\nEOF\n"
        "RUN <<SCRIPT\n#!/bin/busybox sh\necho script $0 > /2\nSCRIPT\n"
        "RUN cat <<'X' > /3 && echo $WHO >> /3\nkept $WHO\nX\n"
        "COPY <<one <<'two' /files/\nI am $WHO\none\nI am $WHO\ntwo\n"
        "CMD cat /1 /2 /3 /files/one /files/two\n"
    )})
    build(node, tmp_path, "-t", "here")

    assert node("run", "--rm", "here").splitlines() == [
        "first", "second", "script /dev/pipes/SCRIPT", "kept $WHO", "me", "I am me", "I am $WHO",
    ]


def test_run_mounts_of_files_caches_and_tmpfs(node: View, tmp_path: Path) -> None:
    write(tmp_path, {
        "Dockerfile": (
            "FROM busybox AS tools\nRUN echo tool > /tool\nFROM busybox\nARG N=0\n"
            "RUN --mount=type=bind,source=in,target=/in --mount=type=bind,from=tools,source=/tool,target=/tool \\\n"
            "    --mount=type=tmpfs,target=/scratch --mount=type=cache,target=/cache --mount=type=secret,id=x \\\n"
            "    --mount=type=ssh --mount=type=secret,id=token,env=TOKEN,mode=0440,uid=1 \\\n"
            "    cat /in/file /tool > /out; touch /scratch/x; echo $N >> /cache/log; cp /cache/log /log\n"
            "CMD cat /out /log; ls -d /in /tool /scratch /cache\n"
        ),
        "in/file": "input\n",
    })
    build(node, tmp_path, "-t", "mounting", "--build-arg", "N=1")
    build(node, tmp_path, "-t", "mounting", "--build-arg", "N=2")

    done = node.run("run", "--rm", "mounting")
    assert done.stdout.split()[:2] == [b"input", b"tool"] and done.stdout.split()[-2:] == [b"1", b"2"]
    assert done.stderr.count(b"No such file") == 4
    (tmp_path / "in/file").write_text("changed\n")
    assert "Running in" in build(node, tmp_path, "--build-arg", "N=2")
    assert "Using cache" in build(node, tmp_path, "--build-arg", "N=2")
    write(tmp_path, {"Dockerfile": "FROM busybox\nRUN --mount=type=secret,id=x,required=true cat /run/secrets/x\n"})
    assert "secret x: not found" in refused(node, tmp_path)


def test_a_failing_step_tells_its_command_and_exit_code(view: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": "FROM busybox\nRUN echo before; exit 3\nRUN never\n"})
    done = run_build(view, tmp_path, "--force-rm")

    assert done.returncode == 3
    assert b"before" in done.stdout and b"never" not in done.stdout
    assert b"The command '/bin/sh -c echo before; exit 3' returned a non-zero code: 3" in done.stderr
    assert view("ps", "-aq") == ""


def test_containers_of_steps_stay_when_asked_for_or_when_they_failed(node: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": "FROM busybox\nRUN echo kept > /file\n"})
    build(node, tmp_path, "--rm=false", "-t", "kept")
    ident = node("ps", "-aq")
    assert node("run", "--rm", "kept", "cat", "/file") == "kept"
    assert b"kept" in node.run("cp", f"{ident}:/file", "-").stdout
    node("rm", ident)
    write(tmp_path, {"Dockerfile": "FROM busybox\nRUN exit 1\n"})
    refused(node, tmp_path)
    assert node("ps", "-a", "--format", "{{.Status}}").startswith("Exited (1)")


@pytest.mark.parametrize(("dockerfile", "message"), [
    ("FROM busybox\nFROB x\n", "dockerfile parse error on line 2: unknown instruction: FROB"),
    ("RUN x\n", "no build stage in current context"),
    ("", "the Dockerfile (Dockerfile) cannot be empty"),
    ("FROM busybox\nCOPY gone /\n", "COPY failed: file not found in build context or excluded by .dockerignore"),
    ("FROM busybox\nCOPY ../../etc/passwd /\n", "forbidden path outside the build context"),
    ("FROM busybox\nCOPY *.none /\n", "no source files were specified"),
    ("FROM busybox\nCOPY a b /c\n", "must be a directory and end with a /"),
    ("FROM busybox\nCOPY --frob a /\n", "unknown flag: --frob"),
    ("FROM busybox\nENV a=${b:?needed}\n", "b: needed"),
    ("FROM busybox\nEXPOSE none\n", "Invalid containerPort: none"),
    ("FROM busybox\nSTOPSIGNAL NOPE\n", "NOPE"),
    ("FROM scratch\n", "No image was generated"),
    ("FROM\n", "FROM requires either one or three arguments"),
])
def test_mistakes_are_named(node: View, tmp_path: Path, dockerfile: str, message: str) -> None:
    write(tmp_path, {"Dockerfile": dockerfile, "a": "", "b": ""})
    done = node.run("build", str(tmp_path), env=CLASSIC)

    assert done.returncode == 1 and message in done.stderr.decode(), done.stderr


def test_a_link_of_the_context_leads_nowhere_outside(node: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": "FROM busybox\nCOPY out/passwd /stolen\n"})
    os.symlink("/etc", tmp_path / "out")
    assert "file not found in build context" in refused(node, tmp_path)
    write(tmp_path, {"Dockerfile": "FROM busybox\nRUN ln -s / /escape\nCOPY Dockerfile /escape/tmp/x\nCMD ls /tmp\n"})
    build(node, tmp_path, "-t", "confined")
    assert node("run", "--rm", "confined") == "x"


def test_onbuild_healthcheck_shell_and_friends_end_in_the_configuration(node: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": (
        "# escape=`\nFROM busybox`\n AS base\nONBUILD RUN echo triggered > /t\nONBUILD ENV T=1\n"
        'SHELL ["/bin/busybox", "sh", "-c"]\nHEALTHCHECK --interval=5s --retries=2 CMD true\nSTOPSIGNAL SIGINT\n'
        "EXPOSE 80 8000-8001/udp\nMAINTAINER someone\nLABEL a=1 b=\"two words\"\nENTRYPOINT echo\n"
    )})
    build(node, tmp_path, "-t", "parent")
    config = node.json("image", "inspect", "parent")[0]
    write(tmp_path, {"Dockerfile": "FROM parent\nENTRYPOINT []\nCMD cat /t; echo $T\n"})
    said = build(node, tmp_path, "-t", "child")

    assert config["Author"] == "someone" and config["Config"]["StopSignal"] == "SIGINT"
    assert config["Config"]["Healthcheck"] == {"Test": ["CMD-SHELL", "true"], "Interval": 5_000_000_000, "Retries": 2}
    assert sorted(config["Config"]["ExposedPorts"]) == ["80/tcp", "8000/udp", "8001/udp"]
    assert config["Config"]["Entrypoint"] == ["/bin/busybox", "sh", "-c", "echo"]
    assert config["Config"]["Labels"] == {"a": "1", "b": "two words", "e2e.build": "1"}
    assert "# Executing 2 build triggers" in said
    assert node("run", "--rm", "child").split() == ["triggered", "1"]
    assert not node.json("image", "inspect", "child")[0]["Config"].get("OnBuild")


def test_a_dockerfile_and_a_context_may_come_through_stdin(node: View, tmp_path: Path) -> None:
    said = node("build", "-t", "piped", "-", input=b"FROM busybox\nRUN echo piped > /x\n")
    assert "Successfully tagged piped:latest" in said and node("run", "--rm", "piped", "cat", "/x") == "piped"
    write(tmp_path, {"file": "here"})
    node("build", "-t", "piped", "-f", "-", str(tmp_path), input=b"FROM busybox\nCOPY file /y\n")
    assert node("run", "--rm", "piped", "cat", "/y") == "here"
    packed = tar_of({"Other": b"FROM busybox\nCOPY z /\n", "z": b"tarred"}, "w:bz2")
    node("build", "-t", "piped", "-f", "Other", "-", input=packed)
    assert node("run", "--rm", "piped", "cat", "/z") == "tarred"


def test_limits_and_network_of_a_build_reach_its_containers(node: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": (
        "FROM busybox\n"
        "RUN ip -o addr > /addresses; ulimit -n > /files; df -k /dev/shm > /shm; cat /etc/hosts > /hosts\n"
        "CMD cat /addresses /files /shm /hosts\n"
    )})
    build(
        node, tmp_path, "-t", "limited", "--network", "none", "--ulimit", "nofile=99:100", "--shm-size", "1m",
        "--memory", "64m", "--cpu-shares", "100",
    )
    said = node("run", "--rm", "limited")
    assert "eth0" not in said and "\n99\n" in said and " 1024 " in said
    build(node, tmp_path, "-t", "limited", "--no-cache", "--add-host", "db:192.0.2.9")
    assert "192.0.2.9\tdb" in node("run", "--rm", "limited")


def test_quiet_says_only_the_id(node: View, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": "FROM busybox\nRUN echo noise > /x\n"})
    said = build(node, tmp_path, "-q", "-t", "quiet").strip()
    assert said == node.json("image", "inspect", "quiet")[0]["Id"]
    write(tmp_path, {"Dockerfile": "FROM busybox\nRUN echo told; exit 4\n"})
    done = run_build(node, tmp_path, "-q", "--force-rm")
    assert done.returncode == 4 and b"told" in done.stdout + done.stderr


def test_urls_are_contexts_and_sources(cluster: Cluster, node: View, tmp_path: Path) -> None:
    packed = tar_of({"Dockerfile": b"FROM busybox\nCOPY f /\n", "f": b"fetched"}, "w:gz")
    lone = b"FROM busybox\nRUN echo lone > /l\n"
    pages = {"/context.tar.gz": packed, "/Dockerfile": lone, "/data": b"payload", "/dl/": b"by header"}

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path)
            self.send_response(200 if page is not None else 404)
            self.send_header("Content-Length", str(len(page or b"")))
            self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
            if self.path == "/dl/":
                self.send_header("Content-Disposition", 'attachment; filename="../given.txt"')
            self.end_headers()
            self.wfile.write(page or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((_gateway(cluster), 0), Pages)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    base = f"http://{server.server_address[0]}:{server.server_address[1]}"
    try:
        client = docker.DockerClient(base_url=node.url)
        try:
            for remote in ("context.tar.gz", "Dockerfile"):
                image, _ = client.images.build(path=f"{base}/{remote}", tag="remote", rm=True)
                assert image.tags == ["remote:latest"]
        finally:
            client.close()
        write(tmp_path, {"Dockerfile": (
            f"FROM busybox\nADD {base}/data /got/\nADD {base}/data /named\nADD {base}/dl/ /dl/\nADD {base}/dl/ /plain\n"
        )})
        build(node, tmp_path, "-t", "adding-urls")
        assert "Using cache" in build(node, tmp_path, "-t", "adding-urls")
        assert node("run", "--rm", "adding-urls", "cat", "/got/data", "/named") == "payloadpayload"
        assert node("run", "--rm", "adding-urls", "stat", "-c", "%a %Y", "/named") == "600 1445412480"
        assert node("run", "--rm", "adding-urls", "cat", "/dl/given.txt", "/plain") == "by headerby header"
        write(tmp_path, {"Dockerfile": f"FROM busybox\nADD {base}/none /x\n"})
        assert "ADD failed: " in (said := refused(node, tmp_path)) and "404" in said
        write(tmp_path, {"Dockerfile": f"FROM busybox\nADD --checksum=sha256:{'0' * 64} {base}/data /x\n"})
        assert "digest mismatch" in refused(node, tmp_path)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_docker_py_builds_from_a_folder_and_a_file_object(node: View, tmp_path: Path) -> None:
    client = docker.DockerClient(base_url=node.url)
    try:
        image, log = client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN echo hi\n"), tag="py", rm=True)
        assert "py:latest" in image.tags and any("Step 2/2" in line.get("stream", "") for line in log)
        write(tmp_path, {"Dockerfile": "FROM busybox\nRUN exit 9\n"})
        with pytest.raises(docker.errors.BuildError, match="non-zero code: 9"):
            client.images.build(path=str(tmp_path), forcerm=True)
        with pytest.raises(docker.errors.APIError, match="unknown instruction"):
            client.images.build(fileobj=io.BytesIO(b"NONSENSE\n"))
    finally:
        client.close()


def _built(said: str) -> str:
    return next(line for line in said.splitlines() if line.startswith("Successfully built"))


def _gateway(cluster: Cluster) -> str:
    """This machine's address in the cluster's network, which every host reaches."""
    route = json.loads(cluster.exec(2, "ip", "-j", "route", "show", "default"))
    return str(route[0]["gateway"])
