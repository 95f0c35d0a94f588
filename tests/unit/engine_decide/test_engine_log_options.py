"""Log drivers' options: what is accepted, what is refused and how, and what they choose."""

from __future__ import annotations

import pytest

from swarmlet.errors import InvalidArgument, NotSupported
from swarmlet.model.container import ContainerConfig, LogConfig
from swarmlet_agent.decide.log_options import (
    SyslogTarget,
    check_log,
    expand_tag,
    extra_attributes,
    keeps_log,
    syslog_target,
    tag_fields,
)


@pytest.mark.parametrize(
    ("driver", "options"),
    [
        ("", {"tag": "{{.Name}}/{{.ID}}", "labels": "a,b", "env-regex": "^X_"}),
        ("json-file", {"max-size": "1m", "max-file": "3", "compress": "true"}),
        ("local", {"mode": "non-blocking", "max-buffer-size": "4m", "compress": "false"}),
        ("syslog", {"syslog-address": "udp://127.0.0.1:5514", "syslog-facility": "local3", "cache-max-size": "1m"}),
        ("journald", {"tag": "x", "labels": "a"}),
        ("none", {"anything": "goes"}),
    ],
)
def test_dockers_options_are_accepted(driver: str, options: dict[str, str]) -> None:
    check_log(LogConfig(type=driver, config=options))


@pytest.mark.parametrize(
    ("driver", "options", "words"),
    [
        ("nosuch", {}, 'error looking up logging plugin nosuch: plugin "nosuch" not found'),
        ("json-file", {"syslog-format": "rfc3164"}, "unknown log opt 'syslog-format' for json-file log driver"),
        ("local", {"tag": "x"}, "unknown log opt 'tag' for local log driver"),
        ("json-file", {"mode": "async"}, "logger: logging mode not supported: async"),
        ("json-file", {"max-buffer-size": "1m"}, "only supported with 'mode=non-blocking'"),
        ("json-file", {"compress": "true"}, "compress cannot be true when max-file is less than 2"),
        ("json-file", {"env-regex": "("}, "log opt env-regex"),
        ("json-file", {"tag": "{{.Nope}}"}, "{{.Nope}} is not supported"),
        ("syslog", {"syslog-facility": "nope"}, "invalid syslog facility: nope"),
        ("syslog", {"syslog-format": "rfc1"}, "Invalid syslog format"),
        ("syslog", {"syslog-address": "127.0.0.1"}, "should be in form proto://address"),
        ("syslog", {"syslog-address": "icmp://x"}, "unsupported protocol"),
        ("syslog", {"syslog-address": "tcp://x:99999"}, "cannot read"),
        ("syslog", {"syslog-address": "unix://dev/log"}, "absolute"),
    ],
)
def test_what_cannot_be_is_refused(driver: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidArgument) as err:
        check_log(LogConfig(type=driver, config=options))
    assert words in str(err.value)


@pytest.mark.parametrize(
    "config",
    [
        LogConfig(type="awslogs"),
        LogConfig(type="syslog", config={"syslog-address": "tcp+tls://x:6514"}),
        LogConfig(type="syslog", config={"syslog-tls-skip-verify": "true"}),
    ],
)
def test_what_is_not_built_is_refused_by_name(config: LogConfig) -> None:
    with pytest.raises(NotSupported):
        check_log(config)


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({}, SyslogTarget("local")),
        ({"syslog-address": "udp://log"}, SyslogTarget("udp", "log", 514)),
        ({"syslog-address": "tcp://[::1]:601", "syslog-facility": "local7"}, SyslogTarget("tcp", "::1", 601, 23)),
        ({"syslog-address": "unixgram:///run/l"}, SyslogTarget("unixgram", "/run/l")),
        ({"syslog-facility": "9", "syslog-format": "rfc5424"}, SyslogTarget("local", facility=9, format="rfc5424")),
    ],
)
def test_where_syslog_options_lead(options: dict[str, str], target: SyslogTarget) -> None:
    assert syslog_target(options) == target


def test_labels_and_variables_are_chosen_by_name_and_by_pattern() -> None:
    config = ContainerConfig(labels={"a": "1", "com.x": "2", "b": "3"}, env=("A=4", "B_ONE=5", "NOTHING", "C=a=b"))
    options = {"labels": "a, nope", "labels-regex": "^com", "env": "C,NOTHING", "env-regex": "^B_"}
    assert extra_attributes(config, options) == {"a": "1", "com.x": "2", "C": "a=b", "B_ONE": "5"}


def test_a_tag_says_what_its_template_names() -> None:
    fields = tag_fields(ident="f" * 64, name="web", image_id="sha256:" + "a" * 64, image_name="shop:1")
    text = "{{.Name}}|{{ .ID }}|{{.ImageID}}|{{.ImageName}}|{{.ImageFullID}}"
    assert expand_tag(text, fields) == f"web|{'f' * 12}|{'a' * 12}|shop:1|sha256:{'a' * 64}"


def test_only_a_cache_that_is_kept_can_be_read() -> None:
    assert keeps_log(LogConfig(type="syslog")) and not keeps_log(LogConfig(type="none"))
    assert not keeps_log(LogConfig(type="syslog", config={"cache-disabled": "true"}))
