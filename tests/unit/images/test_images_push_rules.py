"""The decisions of a push, and the gzip streams it makes."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from fakes.images_made import OCI, SCHEMA2, MadeImage, digest, files
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmlet.errors import InvalidArgument
from swarmlet_agent.images.auth import Challenge, decode_body
from swarmlet_agent.images.blobs import KnownBlob, with_blob
from swarmlet_agent.images.deflating import LEVEL, deflate
from swarmlet_agent.images.kept import KeptBlob
from swarmlet_agent.images.login import registry_of
from swarmlet_agent.images.manifests import Descriptor, parse_config
from swarmlet_agent.images.packing import Packer
from swarmlet_agent.images.patience import pause, retry_after
from swarmlet_agent.images.pushplan import came_as, candidates, manifest_for
from swarmlet_agent.images.refusals import RegistryDenied, RegistryRefused, RegistryUnreachable, push_refusal
from swarmlet_agent.images.search import split_term

_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"


@pytest.fixture(scope="module")
def packer() -> Iterator[Packer]:
    made = Packer()
    yield made
    made.close()


@settings(max_examples=20, deadline=None)
@given(
    content=st.binary(min_size=1, max_size=64), times=st.integers(0, 60_000),
    cuts=st.lists(st.integers(1, 700_000), max_size=5),
)
def test_the_same_content_packs_the_same_however_it_comes(
    packer: Packer, content: bytes, times: int, cuts: list[int]
) -> None:
    data = content * times
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(data[at : at + cut])
        at += cut
    packed = b"".join(packer.gzipped(iter([*pieces, data[at:]])))
    assert gzip.decompress(packed) == data
    assert packed == b"".join(packer.gzipped(iter([data])))


def test_blocks_share_what_came_before(packer: Packer) -> None:
    """Text as it is in layers: cutting it into blocks must cost next to nothing."""
    data = b"".join(b"line %d of a file with words in it\n" % number for number in range(60_000))
    packed = sum(map(len, packer.gzipped(iter([data]))))
    whole = deflate.compressobj(LEVEL, zlib.DEFLATED, -15)
    assert packed < len(whole.compress(data) + whole.flush()) * 1.02


def blob(name: str, media_type: str = _GZIP, *repositories: str) -> KnownBlob:
    return KnownBlob(digest=name, size=1, media_type=media_type, repositories=repositories)


def test_blobs_of_the_repository_come_before_mounts_and_mounts_before_guesses() -> None:
    here, near, far = blob("a", _GZIP, "r:1/x"), blob("b", _GZIP, "r:1/y", "other/x"), blob("c", _GZIP, "other/x")
    found = candidates([far, near, here], [], "", "r:1", "x", zstd=False)
    assert found.here == (here,) and found.mounts == ((near, "y"),) and found.elsewhere == (far,)


def test_the_blob_of_the_images_own_manifest_is_tried_first() -> None:
    older, original = blob("a", _GZIP, "r:1/x"), blob("b", _GZIP, "r:1/x")
    assert candidates([older, original], [], "b", "r:1", "x", zstd=False).here == (original, older)


def test_a_schema_2_manifest_gets_no_zstd_layer() -> None:
    known = [blob("a", _ZSTD, "r:1/x"), blob("b", _ZSTD, "r:1/y"), blob("c", _ZSTD, "o/x")]
    kept = [KeptBlob(digest=name, diff_id="d", size=1, media_type=kind) for name, kind in (("a", _ZSTD), ("g", _GZIP))]
    found = candidates(known, kept, "", "r:1", "x", zstd=False)
    assert (found.here, found.mounts, found.elsewhere, found.kept) == ((), (), (), (kept[1],))
    found = candidates(known, kept, "g", "r:1", "x", zstd=True)
    assert (found.here, found.kept) == ((known[0],), (kept[1], kept[0]))  # the image's own first


def test_a_registry_whose_name_begins_another_is_not_it() -> None:
    assert blob("a", _GZIP, "r:50/x").paths_at("r:5") == []


@given(st.lists(st.tuples(st.sampled_from("abcdefghij"), st.integers(0, 40)), max_size=80))
def test_what_is_known_stays_bounded_and_remembers_the_last(seen: list[tuple[str, int]]) -> None:
    known: tuple[KnownBlob, ...] = ()
    for name, repository in seen:
        known = with_blob(known, Descriptor(_GZIP, name, 1), f"r/{repository}")
        assert known[0].digest == name and known[0].repositories[0] == f"r/{repository}"
        assert len({one.digest for one in known}) == len(known) <= 8
        assert all(len(set(one.repositories)) == len(one.repositories) <= 32 for one in known)


@pytest.mark.parametrize("kind", [SCHEMA2, OCI])
def test_the_manifest_that_came_is_sent_as_it_is_only_if_its_blobs_are_the_same(kind: str) -> None:
    image = MadeImage([files({"a": b"1"}), files({"b": b"2"})], media_type=kind)
    config, came = parse_config(image.raw_config), came_as(image.manifest, kind)
    assert came.manifest is not None
    same = dict(zip(config.diff_ids, came.manifest.layers, strict=True))

    assert manifest_for(came, config, same) == (image.manifest, kind)
    other = same | {config.diff_ids[1]: Descriptor(_GZIP, digest(b"else"), 4)}
    raw, media_type = manifest_for(came, config, other)
    made = json.loads(raw)
    assert media_type == kind == made["mediaType"] and made["config"]["digest"] == image.id
    assert [layer["digest"] for layer in made["layers"]] == [digest(image.blobs[0]), digest(b"else")]
    wanted = "application/vnd.oci.image.layer.v1.tar+gzip" if kind == OCI else _GZIP
    assert {layer["mediaType"] for layer in made["layers"]} == {wanted}


def test_an_image_made_here_goes_as_schema_2_with_a_layer_as_often_as_it_has_it() -> None:
    image = MadeImage([files({"a": b"1"})] * 2)
    config = parse_config(image.raw_config)
    raw, media_type = manifest_for(came_as(b"", ""), config, {config.diff_ids[0]: Descriptor(_GZIP, digest(b"x"), 1)})
    assert media_type == SCHEMA2 and len(json.loads(raw)["layers"]) == 2
    assert came_as(b"rubbish", SCHEMA2).manifest is None


@pytest.mark.parametrize(
    ("status", "entries", "challenge", "kind", "words"),
    [
        (401, [], [], RegistryDenied, "unauthorized: authentication required"),
        (401, [("UNAUTHORIZED", "no")], [], RegistryDenied, "unauthorized: no"),
        (
            401, [("UNAUTHORIZED", "no")], [Challenge("bearer", error="insufficient_scope")], RegistryDenied,
            "denied: requested access to the resource is denied",
        ),
        (403, [("DENIED", "not yours")], [], RegistryDenied, "denied: not yours"),
        (400, [("DIGEST_INVALID", "other bytes")], [], RegistryRefused, "digest invalid: other bytes"),
        (503, [], [], RegistryUnreachable, 'Put "u": received unexpected HTTP status: 503'),
        (429, [], [], RegistryUnreachable, "toomanyrequests: the registry limits the rate of requests"),
    ],
)  # fmt: skip
def test_a_registrys_refusal_is_worded_as_dockerd_does(
    status: int, entries: list[tuple[str, str]], challenge: list[Challenge], kind: type[Exception], words: str
) -> None:
    error = push_refusal("PUT", "u", status, entries, challenge)
    assert type(error) is kind and str(error) == words


@pytest.mark.parametrize(
    ("address", "registry"),
    [
        ("", "docker.io"), ("https://index.docker.io/v1/", "docker.io"), ("docker.io", "docker.io"),
        ("reg:5000", "reg:5000"), ("http://Reg.example/v2/", "reg.example"), ("127.0.0.1:5000", "127.0.0.1:5000"),
    ],
)  # fmt: skip
def test_the_registry_to_log_in_to(address: str, registry: str) -> None:
    assert registry_of(address) == registry


@pytest.mark.parametrize("address", ["a:b:c", "https://", "anna:pw@reg", "two words"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InvalidArgument, match="unable to parse server address") as caught:
        registry_of(address)
    assert "pw" not in str(caught.value)


def test_credentials_are_read_from_a_body_and_never_quoted() -> None:
    auth = decode_body(b'{"username": "a", "password": "b", "serveraddress": "r:1", "email": null}')
    assert (auth.username, auth.password, auth.server_address) == ("a", "b", "r:1")
    with pytest.raises(InvalidArgument) as caught:
        decode_body(b'{"password": "sesame"')
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("term", "parts"),
    [
        ("busybox", ("docker.io", "busybox")), ("team/app", ("docker.io", "team/app")),
        ("library/redis", ("docker.io", "redis")), ("docker.io/library/redis", ("docker.io", "redis")),
        ("reg:5000/app", ("reg:5000", "app")), ("localhost/a/b", ("localhost", "a/b")),
        ("reg.example/", ("reg.example", "")),
    ],
)  # fmt: skip
def test_a_search_goes_where_its_term_begins(term: str, parts: tuple[str, str]) -> None:
    assert split_term(term) == parts


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("", 0), ("120", 120), (" 7 ", 7), ("-5", 0), ("soon", 0), ("9" * 40, 999_999_999),
        ("Sun, 29 Nov 2026 12:00:30 GMT", 30), ("Sun, 29 Nov 2026 11:00:00 GMT", 0),
        ("Sun, 99 Nov 2026 11:00:00 GMT", 0),
    ],
)
def test_a_registry_says_when_to_ask_again_in_seconds_or_by_date(header: str, seconds: float) -> None:
    assert retry_after(header, datetime(2026, 11, 29, 12, 0, 0, tzinfo=UTC)) == seconds


def test_pauses_grow_respect_the_registry_and_end() -> None:
    busy, patient = RegistryUnreachable("busy"), RegistryUnreachable("busy")
    assert [0.25 <= pause(1, busy) <= 0.5, 2 <= pause(4, busy) <= 4, pause(99, busy) <= 10] == [True] * 3
    patient.retry_after_s = 30
    assert pause(1, patient) == 30
    patient.retry_after_s = 3600
    with pytest.raises(RegistryUnreachable, match="busy"):
        pause(1, patient)
