"""Links: how they are written, kept and told."""

from __future__ import annotations

import pytest

from swarmlet.errors import Internal, InvalidArgument
from swarmlet.model.container import HostConfig
from swarmlet_agent.decide.links import check_links, link_env, link_text, parse_link, renamed


@pytest.mark.parametrize(
    ("text", "expected"),
    [("db", ("db", "db")), ("db:store", ("db", "store")), ("/db:/web/store", ("db", "store")), ("/db", ("db", "db"))],
)
def test_ways_to_write_a_link(text: str, expected: tuple[str, str]) -> None:
    assert parse_link(text) == expected


@pytest.mark.parametrize("text", ["", ":", "a:", ":b", "a:b:c", "/:/x/y"])
def test_broken_links_are_refused(text: str) -> None:
    with pytest.raises(Internal, match="bad format for links" if text else "empty string specified for links"):
        parse_link(text)


@pytest.mark.parametrize("mode", ["host", "container:x"])
def test_links_need_a_network_of_ones_own(mode: str) -> None:
    with pytest.raises(InvalidArgument, match="type networking can't be used with links"):
        check_links(HostConfig(network_mode=mode, links=("a",)))


def test_links_follow_names_at_both_ends() -> None:
    links = (link_text("db", "web", "store"), link_text("cache", "web", "db"))
    assert renamed(links, "db", "db2") == ("/db2:/web/store", "/cache:/web/db")
    assert renamed(links, "web", "shop") == ("/db:/shop/store", "/cache:/shop/db")


def test_variables_tell_of_ports_and_environment() -> None:
    env = link_env("web", "my-db", "172.17.0.5", ["53/udp", "5432/tcp"], ["PATH=/bin", "USER=a=b", "EMPTY"])
    assert env == (
        "MY_DB_PORT=tcp://172.17.0.5:5432",
        "MY_DB_PORT_5432_TCP=tcp://172.17.0.5:5432",
        "MY_DB_PORT_5432_TCP_ADDR=172.17.0.5",
        "MY_DB_PORT_5432_TCP_PORT=5432",
        "MY_DB_PORT_5432_TCP_PROTO=tcp",
        "MY_DB_PORT_53_UDP=udp://172.17.0.5:53",
        "MY_DB_PORT_53_UDP_ADDR=172.17.0.5",
        "MY_DB_PORT_53_UDP_PORT=53",
        "MY_DB_PORT_53_UDP_PROTO=udp",
        "MY_DB_NAME=/web/my-db",
        "MY_DB_ENV_USER=a=b",
    )


def test_ports_in_a_row_are_told_as_a_range_too() -> None:
    env = link_env("web", "db", "10.0.0.2", ["80/tcp", "82/tcp", "81/tcp"], [])
    assert "DB_PORT_80_TCP_START=tcp://10.0.0.2:80" in env and "DB_PORT_80_TCP_PORT_END=82" in env
    assert "DB_PORT_82_TCP_END=tcp://10.0.0.2:82" in env
    assert link_env("web", "db", "10.0.0.2", [], []) == ("DB_NAME=/web/db",)
