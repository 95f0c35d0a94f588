"""The pure rules of the image store: filters, changes, challenges, manifests, streams."""

from __future__ import annotations

import base64
import bz2
import contextlib
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
from typing import Any

import pytest
import zstandard
from fakes.images_made import MadeImage, index_of, member, tar_of
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.engine_api.filters import Filters
from swarmlet.errors import InvalidArgument, NotFound
from swarmlet.model.container import ImageConfig
from swarmlet_agent.builder.changes import apply_changes
from swarmlet_agent.images import platforms
from swarmlet_agent.images.auth import Challenge, decode_auth, parse_challenges
from swarmlet_agent.images.compression import decompressed
from swarmlet_agent.images.durations import parse_duration
from swarmlet_agent.images.endpoints import check_registries, is_insecure, registry_config
from swarmlet_agent.images.listing import matches_reference, select, until_ns
from swarmlet_agent.images.manifests import (
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    chain_ids,
    choose,
    digest_of,
    parse_config,
    parse_manifest,
)
from swarmlet_agent.images.platforms import (
    Platform,
    best_platform,
    check_system,
    host_platform,
    matches,
    parse_platform,
    without_level,
)
from swarmlet_agent.images.proxies import choose_proxy, shown_proxies
from swarmlet_agent.images.reference import Reference, parse_reference
from swarmlet_agent.images.tarstream import TarReader, parse_pax
from swarmlet_agent.images.types import Image

_ID = "sha256:" + "12" * 32
_DIGEST = "sha256:" + "ab" * 32


def names(*written: str) -> list[Reference]:
    return [parse_reference(name) for name in written]


# lists


def image(created: int, *tags: str, **labels: str) -> Image:
    digests = tuple(tag for tag in tags if "@" in tag)
    return Image(
        f"sha256:{created:064x}",
        ImageConfig(labels=labels),
        (),
        "amd64",
        "linux",
        created,
        1,
        repo_tags=tuple(tag for tag in tags if "@" not in tag),
        repo_digests=digests,
    )


_SHELF = [image(1, "a:1", x="1"), image(2, "team/b:2", "b:1"), image(3), image(4, f"c@{_DIGEST}")]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [4, 3, 2, 1]),
        ({"dangling": ("true",)}, [4, 3]),
        ({"dangling": ("false",)}, [4, 2, 1]),
        ({"label": ("x",)}, [1]),
        ({"label": ("x=2",)}, []),
        ({"reference": ("b",)}, [2]),
        ({"reference": ("*",)}, [4, 2, 1]),
        ({"reference": ("*/b:*",)}, [2]),
        ({"reference": ("[ac]:?",)}, [1]),
        ({"reference": ("nosuch",)}, []),
        ({"before": ("3",)}, [2, 1]),
        ({"since": ("3",)}, [4]),
    ],
)
def test_filters_choose(filters: dict[str, tuple[str, ...]], expected: list[int]) -> None:
    def find(ref: str) -> Image:
        return _SHELF[int(ref) - 1]

    assert [found.created for found in select(_SHELF, Filters(filters), find, 0)] == expected


def test_bad_filters_are_refused() -> None:
    for filters in ({"nosuch": ("x",)}, {"dangling": ("maybe",)}, {"until": ("soon",)}, {"reference": ("[",)}):
        with pytest.raises(InvalidArgument):
            select(_SHELF, Filters(filters), lambda _ref: _SHELF[0], 0)


@given(st.text("ab*?[]^\\-/:", max_size=12))
def test_any_pattern_matches_or_is_an_error(pattern: str) -> None:
    try:
        assert matches_reference(pattern, "a/b:a") in (True, False)
    except InvalidArgument as err:
        assert "syntax error in pattern" in str(err)


def test_durations_and_times_say_until_when() -> None:
    assert parse_duration("1h30m") == 5400 * 10**9 and parse_duration("1.5s") == 1_500_000_000
    assert parse_duration("-2ms") == -2_000_000 and parse_duration("0") == 0
    for bad in ("", "1", "h", "1x", "1h 2m", "."):
        with pytest.raises(ValueError, match="invalid duration"):
            parse_duration(bad)
    assert until_ns("10s", 50 * 10**9) == 40 * 10**9
    assert until_ns("1970-01-01T00:00:05Z", 0) == 5 * 10**9


# changes


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ("CMD echo hi", "cmd", ("/bin/sh", "-c", "echo hi")),
        ('cmd ["a", "b"]', "cmd", ("a", "b")),
        ('ENTRYPOINT ["x"]', "entrypoint", ("x",)),
        ("ENV a b c", "env", ("a=b c",)),
        ('ENV a=1 b="2 3"', "env", ("a=1", "b=2 3")),
        ("USER 1:2", "user", "1:2"),
        ("VOLUME /a /b", "volumes", {"/a": {}, "/b": {}}),
        ('VOLUME ["/c d"]', "volumes", {"/c d": {}}),
        ("EXPOSE 8000-8001/udp", "exposed_ports", {"8000/udp": {}, "8001/udp": {}}),
        ("ONBUILD RUN x", "on_build", ("RUN x",)),
        ("STOPSIGNAL SIGINT", "stop_signal", "SIGINT"),
        ("WORKDIR a", "working_dir", "/a"),
    ],
)
def test_a_change_sets_its_field(change: str, field: str, value: Any) -> None:
    assert getattr(apply_changes(ImageConfig(), [change]), field) == value


def test_changes_see_the_environment_as_it_is_by_then() -> None:
    config = ImageConfig(env=("PATH=/bin", "NAME=web"), working_dir="/srv")
    changes = ["ENV PATH=/x:$PATH", "ENV WHERE=${PATH} SINGLE='$PATH'", "LABEL of=$NAME", "WORKDIR $NAME", "USER $NAME"]
    changed = apply_changes(config, changes)
    assert changed.env == ("PATH=/x:/bin", "NAME=web", "WHERE=/x:/bin", "SINGLE=$PATH")
    assert (changed.labels, changed.working_dir, changed.user) == ({"of": "web"}, "/srv/web", "web")
    assert apply_changes(config, ["CMD echo $NAME"]).cmd == ("/bin/sh", "-c", "echo $NAME")  # the shell's to replace


def test_a_health_check_is_understood() -> None:
    check = apply_changes(ImageConfig(), ["HEALTHCHECK --interval=5s --retries=2 CMD true || false"]).healthcheck
    assert check is not None and check.test == ("CMD-SHELL", "true || false")
    assert (check.interval, check.retries) == (5 * 10**9, 2)


@pytest.mark.parametrize(
    "change",
    [
        "RUN x",
        "ENV",
        "ENV =x",
        "EXPOSE x",
        "EXPOSE 0",
        "EXPOSE 70000",
        "USER",
        "ONBUILD FROM x",
        "HEALTHCHECK nope",
        "HEALTHCHECK --bad=1 CMD x",
        "ENV 'open",
        "WORKDIR",
    ],
)
def test_a_bad_change_is_refused_by_name(change: str) -> None:
    with pytest.raises(InvalidArgument):
        apply_changes(ImageConfig(), [change])


# credentials


def test_challenges_are_read_whatever_their_order_and_quotes() -> None:
    header = (
        'Basic realm="a, \\"b\\"", Bearer realm="https://auth.example/token",service=reg,scope="repository:x:pull,push"'
    )
    assert parse_challenges([header, "Negotiate"]) == [
        Challenge("basic", 'a, "b"'),
        Challenge("bearer", "https://auth.example/token", "reg", "repository:x:pull,push"),
    ]


@given(st.text(max_size=80))
def test_any_header_is_read_without_trouble(header: str) -> None:
    parse_challenges([header])


def test_credentials_are_decoded_and_never_shown() -> None:
    raw = json.dumps({"username": "me", "password": "pä55"}).encode()
    for encode in (base64.urlsafe_b64encode, base64.b64encode):
        auth = decode_auth(encode(raw).decode().rstrip("="))
        assert auth is not None and (auth.username, auth.password) == ("me", "pä55") and "pä55" not in repr(auth)
    assert decode_auth("") is None and decode_auth(base64.b64encode(b"{}").decode()) is None
    with pytest.raises(InvalidArgument) as refused:
        decode_auth("c2VjcmV0")
    assert "secret" not in str(refused.value) and refused.value.__cause__ is None


def test_insecure_registries_are_named_or_lie_in_a_range() -> None:
    assert is_insecure("127.0.0.1:5000", (), ["127.0.0.0/8"]) and is_insecure("reg:5000", (), ["reg:5000"])
    assert is_insecure("reg", ["10.1.2.3"], ["10.0.0.0/8"]) and is_insecure("[fd00::1]:5000", (), ["fd00::/8"])
    assert not is_insecure("reg.example", ["8.8.8.8"], ["127.0.0.0/8"])
    for insecure, mirrors in ((["http://x"], []), ([""], []), ([], ["reg.example"]), ([], ["ftp://x"])):
        with pytest.raises(InvalidArgument):
            check_registries(insecure, mirrors)


# manifests


@pytest.mark.parametrize(
    ("url", "excepted", "direct"),
    [
        ("https://registry.example/v2/", "", False),
        ("https://registry.example/v2/", "registry.example", True),
        ("https://a.registry.example/v2/", "registry.example", True),
        ("https://a.registry.example/v2/", "x, .registry.example", True),
        ("https://registry.example/v2/", ".registry.example", False),
        ("https://notregistry.example/v2/", "registry.example", False),
        ("https://registry.example:5000/v2/", "registry.example:5000", True),
        ("https://registry.example/v2/", "registry.example:5000", False),
        ("https://registry.example/v2/", "*", True),
        ("https://10.1.2.3/v2/", "10.0.0.0/8", True),
        ("https://11.1.2.3/v2/", "10.0.0.0/8,nonsense/99", False),
        ("https://[fd00::1]:5000/v2/", "fd00::1", True),
        ("https://127.0.0.2:5000/v2/", "", True),
        ("https://localhost:5000/v2/", "", True),
        ("http://registry.example/v2/", "", True),
    ],
)
def test_the_proxy_of_the_environment_is_used_but_where_it_says_not_to(url: str, excepted: str, direct: bool) -> None:
    environ = {"HTTPS_PROXY": "proxy.example:3128", "no_proxy": excepted}
    assert choose_proxy(url, environ) == (None if direct else "http://proxy.example:3128")


def test_proxies_are_shown_without_their_passwords() -> None:
    environ = {"http_proxy": "me:secret@proxy:1", "HTTPS_PROXY": "http://me:secret@proxy:2/", "NO_PROXY": "a,b"}
    assert shown_proxies(environ) == {
        "HttpProxy": "xxxxx:xxxxx@proxy:1", "HttpsProxy": "http://xxxxx:xxxxx@proxy:2/", "NoProxy": "a,b",
    }
    assert shown_proxies({}) == {"HttpProxy": "", "HttpsProxy": "", "NoProxy": ""}


def test_registries_are_shown_as_they_are_set() -> None:
    shown = registry_config(["127.0.0.0/8", "reg.example:5000"], ["https://mirror.example"])
    assert shown["InsecureRegistryCIDRs"] == ["127.0.0.0/8"] and shown["Mirrors"] == ["https://mirror.example/"]
    assert {name: (index["Secure"], index["Mirrors"]) for name, index in shown["IndexConfigs"].items()} == {
        "docker.io": (True, ["https://mirror.example/"]), "reg.example:5000": (False, []),
    }


def test_a_manifest_and_a_list_are_told_apart() -> None:
    made = MadeImage([tar_of([member("a")])])
    assert isinstance(parse_manifest(made.manifest), Manifest)
    listed = parse_manifest(index_of(made))
    assert isinstance(listed, Index)
    assert choose(listed.manifests, Platform("amd64", "linux"), "x").digest == made.digest
    with pytest.raises(NotFound, match="no matching manifest for linux/arm/v7"):
        choose(listed.manifests, Platform("arm", "linux", "v7"), "x")


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "schemaVersion",
                        "mediaType",
                        "config",
                        "layers",
                        "manifests",
                        "digest",
                        "size",
                        "rootfs",
                        "diff_ids",
                        "Env",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_a_manifest_or_an_error(document: Any) -> None:
    raw = json.dumps(document).encode()
    for parse in (parse_manifest, parse_config):
        try:
            parse(raw)
        except InvalidArgument:
            continue


def test_chain_ids_are_those_of_the_image_specification() -> None:
    first, second = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    chain = chain_ids([first, second])
    assert chain[0] == first
    assert chain[1] == "sha256:" + hashlib.sha256(f"{first} {second}".encode()).hexdigest()


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ["arm64", "amd64"], 1),
        ("linux/amd64", ["amd64/v3", "386"], 1),
        ("linux/amd64/v3", ["amd64", "amd64/v2", "amd64/v4"], 1),
        ("x86_64", ["386", "amd64/v1"], 1),
        ("linux/arm/v7", ["arm/v5", "arm/v6", "arm/v8"], 1),
        ("linux/arm/v6", ["arm", "arm/v5"], 1),
        ("linux/arm", ["arm/v6", "arm/v7"], 1),
        ("linux/arm64", ["arm/v7", "arm64/v8"], 1),
        ("linux/arm64/v8", ["arm64", "arm/v7"], 0),
        ("aarch64", ["arm/v6", "arm/v7"], 1),
        ("linux/amd64", ["arm64", "unknown", "amd64/v2"], None),
        ("linux/arm/v6", ["arm/v7", "arm64"], None),
        ("linux/s390x", ["ppc64le"], None),
    ],
)
def test_a_machine_gets_the_best_it_can_run(wanted: str, offered: list[str], chosen: int | None) -> None:
    want = parse_platform(wanted)
    assert want is not None
    entries = []
    for text in offered:
        architecture, _, variant = text.partition("/")
        platform = Platform(architecture, "linux" if architecture != "unknown" else "unknown", variant)
        entries.append(Descriptor(OCI_MANIFEST, digest_of(text.encode()), 1, platform))
    if chosen is None:
        with pytest.raises(NotFound, match=f"no matching manifest for {want} in the manifest list entries"):
            choose(entries, want, "x")
    else:
        assert choose(entries, want, "x") is entries[chosen]


@pytest.mark.parametrize(
    ("machine", "platform"),
    [("x86_64", "linux/amd64"), ("aarch64", "linux/arm64"), ("armv7l", "linux/arm/v7"), ("armv6l", "linux/arm/v6")],
)
def test_the_hosts_platform_is_told_by_its_machine(machine: str, platform: str) -> None:
    assert str(host_platform(machine)) == platform


@given(st.sets(st.sampled_from(sorted(set().union(*(flags for _, flags in platforms._AMD64_LEVELS))))))
def test_a_processor_has_a_level_with_all_of_it_and_of_those_before(flags: set[str]) -> None:
    best = best_platform("x86_64", flags)
    names = [name for name, _ in platforms._AMD64_LEVELS]
    reached = names.index(best.variant) + 1 if best.variant else 0
    assert all(needed <= flags for _, needed in platforms._AMD64_LEVELS[:reached])
    assert reached == len(names) or not platforms._AMD64_LEVELS[reached][1] <= flags
    assert best_platform("aarch64", flags) == host_platform("aarch64")


def test_what_is_made_here_is_for_every_processor_of_its_kind() -> None:
    assert without_level(Platform("amd64", "linux", "v4")) == Platform("amd64", "linux", "")
    assert without_level(Platform("arm", "linux", "v7")) == Platform("arm", "linux", "v7")


def test_a_list_gives_the_best_level_that_the_processor_has() -> None:
    entries = [
        Descriptor(OCI_MANIFEST, digest_of(text.encode()), 1, Platform("amd64", "linux", text))
        for text in ("", "v2", "v3", "v4")
    ]
    want = best_platform("x86_64", {*platforms._AMD64_LEVELS[0][1], *platforms._AMD64_LEVELS[1][1]})
    assert choose(entries, want, "x") is entries[2] and choose(entries[:2], want, "x") is entries[1]
    assert choose(entries, Platform("amd64", "linux"), "x") is entries[0]


def test_an_image_that_names_no_variant_is_taken_for_any() -> None:
    assert matches(Platform("arm", "linux"), Platform("arm", "linux", "v6"))
    assert not matches(Platform("arm", "linux", "v7"), Platform("arm", "linux", "v6"))
    assert not matches(Platform("arm64", "linux"), Platform("amd64", "linux"))


def test_platforms_are_read_and_others_refused() -> None:
    assert parse_platform("") is None
    assert parse_platform("linux/x86_64") == Platform("amd64", "linux")
    assert str(parse_platform("arm64")) == "linux/arm64" and str(parse_platform("linux/arm/v7")) == "linux/arm/v7"
    assert parse_platform("LINUX") == host_platform(os.uname().machine)
    assert parse_platform("Nintendo/Amd64") == Platform("amd64", "nintendo")
    assert parse_platform("windows(10.0.17763)/amd64") == Platform("amd64", "windows", "", "10.0.17763")
    assert parse_platform("macos/arm64/v8") == Platform("arm64", "darwin")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  ", r'"  " is an invalid OS component of "  ": OSAndVersion specifier component must match '
               r'"^([A-Za-z0-9_-]+)(?:\\(([A-Za-z0-9_.-]*)\\))?$": invalid argument'),
        ("/", '"" is an invalid OS component of "/": '),
        ("linux/", '"" is an invalid component of "linux/": platform specifier component must match '
                   '"^[A-Za-z0-9_.-]+$": invalid argument'),
        ("linux/a b", '"a b" is an invalid component of "linux/a b": '),
        ("a/b/c/d", '"a/b/c/d": cannot parse platform specifier: invalid argument'),
        ("nintendo64", '"nintendo64": unknown operating system or architecture: invalid argument'),
    ],
)  # fmt: skip
def test_what_is_no_platform_is_refused_in_containerds_words(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as err:
        parse_platform(text)
    assert str(err.value).startswith(words)


def test_images_are_of_linux() -> None:
    for good in ("linux/s390x", "arm64"):
        check_system(parse_platform(good) or Platform())
    for bad in ("windows/amd64", "macos", "nintendo/amd64"):
        with pytest.raises(InvalidArgument, match=r"^operating system is not supported$"):
            check_system(parse_platform(bad) or Platform())


# streams


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress, bytes])
@pytest.mark.parametrize("data", [b"", b"x" * 3_000_000, bytes(range(256)) * 999])
def test_a_stream_is_decompressed_whatever_it_is(pack: Any, data: bytes) -> None:
    assert b"".join(decompressed(io.BytesIO(pack(data)).read)) == data
    if pack is not bytes:
        assert b"".join(decompressed(io.BytesIO(pack(data) + pack(b"more")).read)) == data + b"more"
        assert b"".join(decompressed(io.BytesIO(pack(data) + bytes(600)).read)) == data
        with pytest.raises(InvalidArgument, match="stream"):
            b"".join(decompressed(io.BytesIO(pack(data)[:-3]).read))
        with pytest.raises(InvalidArgument, match="stream"):
            b"".join(decompressed(io.BytesIO(pack(data) + b"rubbish").read))


_files = st.lists(
    st.tuples(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=150),
        st.binary(max_size=1200),
    ),
    max_size=5,
)


@given(content=_files, form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), piece=st.integers(1, 2000))
def test_the_reader_sees_what_tarfile_wrote_however_it_is_cut(
    content: list[tuple[str, bytes]], form: int, piece: int
) -> None:
    written = [(name.strip("/") or "x", data) for name, data in content]
    raw = tar_of([member(name, data, mtime=5) for name, data in written], form)
    reader = TarReader(iter([raw[at : at + piece] for at in range(0, len(raw), piece)]))
    seen, again = [], b""
    for entry in reader.entries():
        data = reader.take(entry.size)
        padding = reader.take(-entry.size % 512)
        seen.append((entry.name.decode(), data))
        again += entry.raw + data + padding
        assert entry.mtime == 5 * 10**9
    again += reader.end + b"".join(reader.rest())

    assert seen == written
    assert again == raw


@given(st.binary(max_size=2000))
def test_noise_never_breaks_the_readers(noise: bytes) -> None:
    for raw in (noise, tar_of([member("a", noise)])[:512] + noise):
        reader = TarReader(iter([raw]))
        try:
            for entry in reader.entries():
                reader.take(entry.size + -entry.size % 512)
        except InvalidArgument:
            pass
    with contextlib.suppress(InvalidArgument):
        parse_pax(noise)
