"""`filters=`: what is sent on reads as what came in, but for what was changed."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.engine_api.filters import Filters, decode_filters, moment, moments_of


def read(filters: Filters) -> dict[str, tuple[str, ...]]:
    return {name: filters.get(name) for name in filters.keys()}  # noqa: SIM118 - it is no mapping


words = st.text(st.characters(codec="utf-8"), max_size=12)
given_filters = st.dictionaries(words, st.lists(words, max_size=4), max_size=5)


def encoded(values: Mapping[str, object]) -> str:
    return msgspec.json.encode(values).decode()


@given(values=given_filters, key=words, new=st.lists(words, max_size=3))
def test_having_replaces_one_key_and_keeps_the_others_and_the_original(
    values: dict[str, list[str]], key: str, new: list[str]
) -> None:
    came = decode_filters(encoded(values))
    before = read(came)
    sent = decode_filters(came.having(key, *new).encoded())

    assert sent.get(key) == tuple(new) and key in sent
    assert {name: value for name, value in read(sent).items() if name != key} == {
        name: tuple(value) for name, value in values.items() if name != key
    }
    assert read(came) == before


@given(values=given_filters)
def test_what_is_encoded_decodes_to_the_same(values: dict[str, list[str]]) -> None:
    came = decode_filters(encoded(values))
    again = decode_filters(came.encoded())
    assert read(again) == {name: tuple(value) for name, value in values.items()}
    assert bool(again) == bool(values)


@given(values=st.dictionaries(words, st.dictionaries(words, st.booleans(), max_size=4), max_size=4))
def test_the_form_of_older_clients_is_sent_on_in_the_new_one(values: dict[str, dict[str, bool]]) -> None:
    sent = decode_filters(decode_filters(encoded(values)).encoded())
    assert read(sent) == {
        name: tuple(word for word, on in chosen.items() if on) for name, chosen in values.items()
    }


@given(times=st.lists(st.integers(-(2**62), 2**62), max_size=4))
def test_times_stand_for_what_was_named(times: list[int]) -> None:
    names = {f"name-{number}": at for number, at in enumerate(times)}
    by_name = Filters({"before": tuple(names)})
    by_time = by_name.having("before", *map(moment, times))

    def nobody(name: str) -> int:
        raise AssertionError(name)

    assert moments_of(by_name, "before", names.__getitem__) == times == moments_of(by_time, "before", nobody)


def test_the_scope_of_networks_is_narrowed_for_the_manager() -> None:
    came = decode_filters('{"driver":["overlay"],"scope":["local","swarm"]}')
    sent = decode_filters(came.having("scope", "swarm").encoded())
    assert (sent.get("driver"), sent.get("scope")) == (("overlay",), ("swarm",))
    assert came.get("scope") == ("local", "swarm")
