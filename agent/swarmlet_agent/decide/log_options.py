"""Log drivers and their options, in dockerd's words (moby daemon/logger and below).

conmon writes every container's log to a file whatever the driver is, so `mode=non-blocking` and its buffer are
accepted: a program waits for the file system at most, never for a log server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from swarmlet.errors import InvalidArgument, NotSupported
from swarmlet.model.container import ContainerConfig, LogConfig
from swarmlet.model.ids import short_id

_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?$")
_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}  # Go's strconv.ParseBool

_EVERY = frozenset({"mode", "max-buffer-size"})
_FILE = frozenset({"max-size", "max-file", "compress"})
_ATTRIBUTES = frozenset({"labels", "labels-regex", "env", "env-regex", "tag"})
#: The file beside a driver that sends lines away, from which `docker logs` reads.
_CACHE = frozenset({"cache-disabled", "cache-max-size", "cache-max-file", "cache-compress"})
_SYSLOG = frozenset({"syslog-address", "syslog-facility", "syslog-format"})
_SYSLOG_TLS = frozenset({
    "syslog-tls-ca-cert", "syslog-tls-cert", "syslog-tls-key", "syslog-tls-skip-verify",
})  # fmt: skip
_OPTIONS = {
    "json-file": _EVERY | _FILE | _ATTRIBUTES,
    "local": _EVERY | _FILE,
    "syslog": _EVERY | _CACHE | _ATTRIBUTES | _SYSLOG | _SYSLOG_TLS,
    "journald": _EVERY | _CACHE | _ATTRIBUTES,
}
LOG_DRIVERS = (*_OPTIONS, "none")
#: Drivers whose lines are sent on; their file is what `docker logs` reads.
SHIPPING = frozenset({"syslog", "journald"})
_ELSEWHERE = frozenset({"awslogs", "etwlogs", "fluentd", "gcplogs", "gelf", "splunk"})

#: RFC 5424, section 6.2.1; the names are syslog(3)'s.
FACILITIES = {
    **{name: number for number, name in enumerate(
        ("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp")
    )},
    **{f"local{number}": 16 + number for number in range(8)},
}  # fmt: skip
SyslogFormat = Literal["", "rfc3164", "rfc5424", "rfc5424micro"]
_FORMATS: dict[str, SyslogFormat] = {name: name for name in ("", "rfc3164", "rfc5424", "rfc5424micro")}
DEFAULT_TAG = "{{.ID}}"
_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class SyslogTarget:
    """network: "local" (whatever syslog this host has), udp, tcp, unix or unixgram. address: host or path."""

    network: str
    address: str = ""
    port: int = 0
    facility: int = 3
    format: SyslogFormat = ""


def check_log(config: LogConfig) -> None:
    """The log driver and its options. InvalidArgument, NotSupported."""
    driver = config.type or "json-file"
    if driver == "none":
        return
    if driver in _ELSEWHERE:
        raise NotSupported(f'log driver "{driver}" is not supported: use one of {", ".join(LOG_DRIVERS)}')
    if driver not in _OPTIONS:
        raise InvalidArgument(f'error looking up logging plugin {driver}: plugin "{driver}" not found')
    given = config.config
    _check_mode(given)
    for key, value in given.items():
        if key not in _OPTIONS[driver]:
            raise InvalidArgument(f"unknown log opt '{key}' for {driver} log driver")
        if (check := _VALUES.get(key)) is not None:
            check(key, value)
    if (check_together := _TOGETHER.get(driver)) is not None:
        check_together(given)


def keeps_log(config: LogConfig) -> bool:
    """Whether `docker logs` has something to read."""
    disabled = config.config.get("cache-disabled", "false")
    return config.type != "none" and not (config.type in SHIPPING and parse_bool("cache-disabled", disabled))


def _check_mode(given: Mapping[str, str]) -> None:
    mode = given.get("mode", "")
    if mode not in ("", "blocking", "non-blocking"):
        raise InvalidArgument(f"logger: logging mode not supported: {mode}")
    if "max-buffer-size" in given:
        if mode != "non-blocking":
            raise InvalidArgument("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
        parse_size(given["max-buffer-size"])


def _check_compress(given: Mapping[str, str]) -> None:
    files = int(given.get("max-file") or 1)
    if parse_bool("compress", given.get("compress", "false")) and (files < 2 or "max-size" not in given):
        raise InvalidArgument("compress cannot be true when max-file is less than 2 or max-size is not set")


def syslog_target(options: Mapping[str, str]) -> SyslogTarget:
    """Where `syslog-*` options lead. NotSupported for TLS, InvalidArgument for what is malformed."""
    facility = options.get("syslog-facility", "daemon") or "daemon"
    number = FACILITIES.get(facility, int(facility) if facility.isdigit() and int(facility) <= 23 else -1)
    if number < 0:
        raise InvalidArgument(f"invalid syslog facility: {facility}")
    form = _FORMATS.get(options.get("syslog-format", ""))
    if form is None:
        raise InvalidArgument("Invalid syslog format")
    address = options.get("syslog-address", "")
    network, separator, rest = address.partition("://")
    if network == "tcp+tls" or _SYSLOG_TLS & options.keys():
        raise NotSupported("syslog over TLS (tcp+tls, syslog-tls-*) is not supported: use tcp, udp or unix")
    if not address:
        return SyslogTarget("local", facility=number, format=form)
    if not separator:
        raise InvalidArgument(f"syslog-address should be in form proto://address, got {address}")
    if network in ("unix", "unixgram"):
        if not rest.startswith("/"):
            raise InvalidArgument(f"syslog-address: the path of a socket must be absolute, got {address}")
        return SyslogTarget(network, rest, facility=number, format=form)
    if network not in ("udp", "tcp"):
        raise InvalidArgument(f"unsupported protocol in syslog-address: {network}")
    host, port = _host_port(rest, address)
    return SyslogTarget(network, host, port, number, form)


def _host_port(text: str, address: str) -> tuple[str, int]:
    """"host", "host:port" or "[v6]:port"; 514 without a port."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.%]+\]|[^:/\[\]]+)(?::(\d{1,5}))?/?", text)
    if match is None or not 0 < int(match[2] or 514) < 1 << 16:
        raise InvalidArgument(f"syslog-address: cannot read {address}")
    return match[1].strip("[]"), int(match[2] or 514)


def extra_attributes(config: ContainerConfig, options: Mapping[str, str]) -> dict[str, str]:
    """Labels and variables that `labels`, `labels-regex`, `env` and `env-regex` choose, by name."""
    variables = dict(entry.split("=", 1) for entry in config.env if "=" in entry)
    found: dict[str, str] = {}
    for key, values in (("labels", config.labels), ("env", variables)):
        named = {name.strip() for name in options.get(key, "").split(",") if name.strip()}
        pattern = options.get(f"{key}-regex", "")
        matches = _pattern(f"{key}-regex", pattern).search if pattern else None
        found |= {
            name: value for name, value in values.items() if name in named or (matches and matches(name))
        }
    return found


def tag_fields(*, ident: str, name: str, image_id: str, image_name: str) -> dict[str, str]:
    """What a tag's template may name (moby daemon/logger/loginfo.go) -> value."""
    return {
        ".ID": short_id(ident), ".FullID": ident, ".ContainerID": ident, ".Name": name, ".ContainerName": f"/{name}",
        ".ImageID": image_id.removeprefix("sha256:")[:12], ".ImageFullID": image_id, ".ContainerImageID": image_id,
        ".ImageName": image_name, ".ContainerImageName": image_name, ".DaemonName": "docker",
    }  # fmt: skip


def expand_tag(template: str, fields: Mapping[str, str]) -> str:
    """The tag with its fields filled in. InvalidArgument names a field that there is not."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in fields:
            raise InvalidArgument(
                f"log opt tag: {match[0]} is not supported: known are {', '.join(sorted(fields))}"
            )
        return fields[match[1]]

    return _ACTION.sub(value, template)


def parse_size(text: str) -> int:
    """Bytes of "10m", "512k", "1.5g", "-1" (0: unlimited); binary units, as Docker's log options have them."""
    if text.strip() == "-1":
        return 0
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise InvalidArgument(f"invalid size: '{text}'")
    number, unit = match.groups()
    return int(float(number) * 1024 ** " kmgt".index(unit or " "))


def parse_bool(key: str, text: str) -> bool:
    """A boolean option; InvalidArgument."""
    if text not in _BOOLEANS:
        raise InvalidArgument(f"log opt {key}: invalid boolean {text!r}")
    return _BOOLEANS[text]


def _pattern(key: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as err:
        raise InvalidArgument(f"log opt {key}: {err}: {text!r}") from err


def _check_size(_key: str, value: str) -> None:
    parse_size(value)


def _check_count(key: str, value: str) -> None:
    if not (value.isdigit() and int(value) >= 1):
        raise InvalidArgument(f"{key} cannot be less than 1")


def _check_tag(_key: str, value: str) -> None:
    expand_tag(value, tag_fields(ident="", name="", image_id="", image_name=""))


#: What an option's value must be like; all other values are texts. InvalidArgument.
_VALUES: dict[str, Callable[[str, str], object]] = {
    **dict.fromkeys(("max-size", "cache-max-size"), _check_size),
    **dict.fromkeys(("max-file", "cache-max-file"), _check_count),
    **dict.fromkeys(("compress", "cache-compress", "cache-disabled"), parse_bool),
    **dict.fromkeys(("labels-regex", "env-regex"), _pattern),
    "tag": _check_tag,
}
#: What a driver's options must be like together.
_TOGETHER: dict[str, Callable[[Mapping[str, str]], object]] = {"json-file": _check_compress, "syslog": syslog_target}
