"""Secrets and configs: what tasks depend on (Engine API 1.50: SecretSpec, ConfigSpec) and the stored records.

Their data never changes: another content is another object. In the store, it is sealed (ADR 21).
"""

from __future__ import annotations

from swarmlet.model.base import ApiStruct, Record
from swarmlet.model.common import Driver

#: Where a secret appears whose target is no absolute path.
SECRETS_FOLDER = "/run/secrets/"
#: The one way in which content can be a template.
GOLANG = "golang"


class SecretSpec(ApiStruct, frozen=True, kw_only=True):
    """data: base64."""

    name: str = ""
    labels: dict[str, str] = {}
    data: str = ""
    driver: Driver | None = None
    templating: Driver | None = None

    def __repr__(self) -> str:
        return f"SecretSpec(name={self.name!r})"


class ConfigSpec(ApiStruct, frozen=True, kw_only=True):
    """data: base64."""

    name: str = ""
    labels: dict[str, str] = {}
    data: str = ""
    templating: Driver | None = None

    def __repr__(self) -> str:
        return f"ConfigSpec(name={self.name!r})"


class _Dependency(Record, frozen=True, kw_only=True):
    """templating: "" or GOLANG. sealed: its data, for who has the cluster's data key."""

    id: str
    name: str
    labels: dict[str, str] = {}
    templating: str = ""
    sealed: bytes = b""
    created_at: int = 0
    updated_at: int = 0
    version: int = 0


class Secret(_Dependency, frozen=True, kw_only=True):
    pass


class Config(_Dependency, frozen=True, kw_only=True):
    """Told from a secret by its place in the store."""


Dependency = Secret | Config
Kind = type[Secret] | type[Config]
