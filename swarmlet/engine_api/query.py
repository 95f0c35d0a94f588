"""What a call asks by its version and its query: read the same way wherever the request came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmlet.engine_api.filters import Filters, decode_filters
from swarmlet.errors import InvalidArgument
from swarmlet.model.times import parse_timestamp

if TYPE_CHECKING:
    from multidict import MultiMapping

    from swarmlet.engine_api.versions import ApiVersion


class Query:
    """Query parameters by name; values are strings as sent. A base for what knows where they came from."""

    __slots__ = ()

    version: ApiVersion

    @property
    def query(self) -> MultiMapping[str]:
        raise NotImplementedError

    def text(self, name: str, default: str = "") -> str:
        """A query parameter."""
        return self.query.get(name, default)

    def texts(self, name: str) -> list[str]:
        """Every value of a query parameter that may repeat."""
        return list(self.query.getall(name, []))

    def flag(self, name: str, default: bool = False) -> bool:
        """As dockerd reads booleans: "", 0, no, false, none (any case) are false, all else is true."""
        value = self.query.get(name)
        return default if value is None else value.strip().lower() not in ("", "0", "no", "false", "none")

    def boolean(self, name: str) -> bool:
        """As Go's strconv.ParseBool, by which dockerd reads some of them; absent: False. InvalidArgument."""
        value = self.query.get(name, "")
        if value in ("1", "t", "T", "true", "TRUE", "True"):
            return True
        if value in ("", "0", "f", "F", "false", "FALSE", "False"):
            return False
        raise InvalidArgument(f"invalid value for {name}: {value}")

    def number(self, name: str, default: int | None = None) -> int | None:
        """An integer query parameter; `default` if absent or empty. InvalidArgument names it."""
        value = self.query.get(name, "")
        if not value:
            return default
        try:
            return int(value)
        except ValueError as err:
            raise InvalidArgument(f"invalid value {value!r} for parameter {name}: expected an integer") from err

    def moment(self, name: str) -> int:
        """A point in time in ns, 0 if absent. InvalidArgument names it."""
        text = self.query.get(name, "")
        if not text or text == "0":
            return 0
        try:
            return parse_timestamp(text)
        except ValueError as err:
            raise InvalidArgument(f'invalid value for "{name}": {err}') from err

    def filters(self) -> Filters:
        return decode_filters(self.query.get("filters", ""))
