"""References: what people write, what it means, and how it is written back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.errors import InvalidArgument
from swarmlet_agent.images.reference import Reference, parse_reference

_DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("written", "full", "familiar"),
    [
        ("busybox", "docker.io/library/busybox", "busybox"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("library/busybox", "docker.io/library/busybox", "busybox"),
        ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox", "busybox"),
        ("team/app", "docker.io/team/app", "team/app"),
        ("localhost/app", "localhost/app", "localhost/app"),
        ("localhost:5000/app:x", "localhost:5000/app:x", "localhost:5000/app:x"),
        ("reg.example/a/b/c@" + _DIGEST, "reg.example/a/b/c@" + _DIGEST, "reg.example/a/b/c@" + _DIGEST),
        ("app:1@" + _DIGEST, "docker.io/library/app:1@" + _DIGEST, "app:1@" + _DIGEST),
        ("[fd00::1]:5000/app", "[fd00::1]:5000/app", "[fd00::1]:5000/app"),
        ("UPPER.example/app", "UPPER.example/app", "UPPER.example/app"),
        ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
    ],
)
def test_a_reference_is_normalised(written: str, full: str, familiar: str) -> None:
    parsed = parse_reference(written)

    assert (parsed.full, parsed.familiar) == (full, familiar)


@pytest.mark.parametrize(
    "written",
    [
        "",
        ":tag",
        "a:",
        "a@",
        "a//b",
        "/a",
        "a/",
        "-a",
        "a b",
        "a:b:c",
        "a:" + "t" * 129,
        "http://x/y",
        "a@sha256:zz",
        "a__/b",
        "a:tag/x",
        "a\n",
        "a:b\n",
        "reg.example:port/x",
        "é",
    ],
)
def test_what_is_no_reference_is_refused(written: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid reference format"):
        parse_reference(written)


def test_capitals_and_bare_ids_have_their_own_words() -> None:
    with pytest.raises(InvalidArgument, match=r"repository name \(library/Busybox\) must be lowercase"):
        parse_reference("Busybox")
    with pytest.raises(InvalidArgument, match="cannot specify 64-byte hexadecimal strings"):
        parse_reference("ab" * 32)
    with pytest.raises(InvalidArgument, match="must not be more than 255 characters"):
        parse_reference("a/" * 130 + "a")


@pytest.mark.parametrize("digest", ["sha256:" + "a" * 63, "sha256:" + "A" * 64, "sha512:" + "a" * 128])
def test_digests_other_than_sha256_are_refused(digest: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_reference(f"app@{digest}")


_component = st.from_regex(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+){0,2}", fullmatch=True)
_references = st.builds(
    Reference,
    domain=st.sampled_from(["docker.io", "localhost", "localhost:5000", "reg.example", "[::1]:80", "REG/x"[:3]]),
    path=st.lists(_component, min_size=1, max_size=3).map("/".join),
    tag=st.one_of(st.just(""), st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,10}", fullmatch=True)),
    digest=st.sampled_from(["", _DIGEST]),
)


@given(_references)
def test_both_written_forms_read_back_as_the_same_reference(reference: Reference) -> None:
    if reference.domain == "docker.io" and "/" not in reference.path:
        reference = Reference(reference.domain, f"library/{reference.path}", reference.tag, reference.digest)

    assert parse_reference(reference.full) == reference
    # A first path segment of hex digits alone could be an image id; those names have no familiar form.
    if len(reference.familiar) != 64:
        assert parse_reference(reference.familiar) == reference


@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_an_error(text: str) -> None:
    try:
        parsed = parse_reference(text)
    except InvalidArgument:
        return
    assert parse_reference(parsed.full) == parsed
    assert ".." not in parsed.path
