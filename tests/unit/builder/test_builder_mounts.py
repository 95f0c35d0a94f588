"""RUN --mount: what one says, its variables, and what only a client of BuildKit could give."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet_agent.builder.mounts import RunMount, parse_mount, read_mount, unprovided

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789._-", min_size=1, max_size=10)


@pytest.mark.parametrize(("text", "ident", "mode"), [
    ("type=secret,id=a", "a", 0o400), ("type=secret,target=/run/x/key", "key", 0o400),
    ("type=secret,src=b,dst=/b,mode=0440,uid=1,gid=2,env=TOKEN", "b", 0o440), ("type=ssh", "default", 0o600),
    ("type=SSH,id=mine,target=/s", "mine", 0o600),
])
def test_secrets_and_agents_are_read(text: str, ident: str, mode: int) -> None:
    mount = parse_mount(text)
    assert (mount.id, mount.mode, mount.required) == (ident, mode, False) and not unprovided(mount)


@pytest.mark.parametrize(("text", "says"), [
    ("type=secret,id=key,required", "secret key: not found"),
    ("type=secret,target=/x/key,required=true", "secret key: not found"),
    ("type=ssh,required=true", 'no SSH key "default" forwarded from the client'),
    ("type=ssh,id=mine,required=1", 'no SSH key "mine" forwarded from the client'),
])
def test_what_is_required_is_missed_in_buildkits_words(text: str, says: str) -> None:
    assert unprovided(parse_mount(text)) == says


@given(kind=st.sampled_from(["secret", "ssh"]), ident=names, required=st.booleans())
def test_only_what_is_required_is_missed(kind: str, ident: str, required: bool) -> None:
    said = unprovided(parse_mount(f"type={kind},id={ident},required={str(required).lower()}"))
    assert bool(said) == required and (not required or ident in said)


def test_variables_are_replaced_when_the_steps_turn_comes() -> None:
    values = {"$UID": "7", "$DIR": "/cache", "$M": "0700", "$OFF": "false"}
    flag = read_mount("type=cache,target=$DIR,uid=$UID,mode=$M,ro=$OFF")
    assert flag.stage == ""
    assert parse_mount(flag.text, lambda text: values.get(text, text)) == RunMount(
        "cache", "/cache", id="/cache", mode=0o700, uid=7
    )
    with pytest.raises(ValueError, match="for mode"):
        parse_mount(flag.text)


def test_the_stage_is_known_before_and_may_not_be_a_variable() -> None:
    assert read_mount("from=build,target=$X").stage == "build"
    with pytest.raises(ValueError, match="doesn't support variable expansion"):
        read_mount("from=$STAGE,target=/x")
