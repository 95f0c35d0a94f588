"""Images as the Engine API shows them: ImageSummary, ImageInspect, history. Pure.

A few fields changed their form over time; `version` is the API version the client asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from swarmlet.model.base import to_api
from swarmlet.model.times import NS, parse_rfc3339, rfc3339
from swarmlet_agent.images.catalogue import ImageRecord
from swarmlet_agent.images.layers import Layer
from swarmlet_agent.images.manifests import OCI_MANIFEST, Configuration, HistoryEntry, digest_of
from swarmlet_agent.images.save import archived_manifest
from swarmlet_agent.images.types import Image

Version = tuple[int, int]
_NONE = "<none>:<none>"
_NONE_DIGEST = "<none>@<none>"


def summary(
    image: Image, version: Version, *, shared_size: int = -1, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """ImageSummary. names: tags and digests to show, if a filter chose among them."""
    tags = [name for name in image.repo_tags if names is None or name in names]
    digests = [name for name in image.repo_digests if names is None or name in names]
    if version < (1, 43) and not tags:
        tags, digests = ([_NONE], digests) if digests else ([_NONE], [_NONE_DIGEST])
    shown: dict[str, Any] = {
        "Id": image.id, "ParentId": "", "RepoTags": tags, "RepoDigests": digests, "Created": image.created // NS,
        "Size": image.size_bytes, "SharedSize": shared_size, "Labels": image.config.labels or None, "Containers": -1,
    }
    if version < (1, 44):
        shown["VirtualSize"] = image.size_bytes
    return shown


def manifests(
    image: Image, record: ImageRecord, configuration: Configuration, layers: Sequence[Layer], users: Sequence[str]
) -> list[dict[str, Any]]:
    """ImageManifestSummary of the one platform that is here. users: ids of containers made from the image."""
    raw = record.manifest or archived_manifest(configuration, layers)
    media_type = record.manifest_type if record.manifest else OCI_MANIFEST
    platform = {"architecture": image.architecture, "os": image.os}
    if image.variant:
        platform["variant"] = image.variant
    content = len(raw) + len(configuration.raw)
    ident = digest_of(raw)
    return [{
        "ID": ident, "Descriptor": {"mediaType": media_type, "digest": ident, "size": len(raw), "platform": platform},
        "Available": True, "Size": {"Content": content, "Total": content + image.size_bytes}, "Kind": "image",
        "ImageData": {"Platform": platform, "Containers": list(users), "Size": {"Unpacked": image.size_bytes}},
    }]


def shared_sizes(images: Sequence[Image], sizes: Mapping[str, int]) -> dict[str, int]:
    """By image id: bytes in layers that another image has as well. sizes: of the layers, by chain id."""
    users: dict[str, int] = {}
    for image in images:
        for chain in image.layers:
            users[chain] = users.get(chain, 0) + 1
    return {
        image.id: sum(sizes.get(chain, 0) for chain in image.layers if users[chain] > 1)
        for image in images
    }


def inspect(
    image: Image, record: ImageRecord, configuration: Configuration, diffs: Sequence[Path], parent: str,
    version: Version,
) -> dict[str, Any]:
    """ImageInspect. diffs: the layers' folders on this host, lowest first; parent: id of an image that is here."""
    data = _folders(diffs) if diffs else {}
    shown: dict[str, Any] = {
        "Id": image.id, "RepoTags": list(image.repo_tags), "RepoDigests": list(image.repo_digests), "Parent": parent,
        "Comment": image.comment, "Created": rfc3339(image.created) if image.created or version < (1, 44) else None,
        "DockerVersion": image.docker_version, "Author": image.author,
        "Config": image_config(image, version), "Architecture": image.architecture, "Os": image.os,
        "Size": image.size_bytes, "GraphDriver": {"Name": "overlay2", "Data": data or None},
        "RootFS": {"Type": "layers", "Layers": list(configuration.diff_ids)},
        "Metadata": {"LastTagTime": rfc3339(record.tagged_at)},
    }
    if shown["Created"] is None:
        del shown["Created"]
    if image.variant:
        shown["Variant"] = image.variant
    if configuration.platform.os_version:
        shown["OsVersion"] = configuration.platform.os_version
    if version < (1, 44):
        shown["VirtualSize"] = image.size_bytes
    if version < (1, 45):
        origin = msgspec.json.decode(configuration.raw, type=_Origin)
        shown["Container"] = origin.container
        shown["ContainerConfig"] = {**_NO_CONFIG, **(origin.container_config or {})}
    return shown


class _Origin(msgspec.Struct, frozen=True):
    """The container that an image was made from, which Docker's configurations tell of."""

    container: str = ""
    container_config: dict[str, Any] | None = None


def _folders(diffs: Sequence[Path]) -> dict[str, str]:
    """As overlay2 shows them; an image is not mounted, so the last two are mere places."""
    top = diffs[-1].parent
    shown = {"MergedDir": str(top / "merged"), "UpperDir": str(diffs[-1]), "WorkDir": str(top / "work")}
    if len(diffs) > 1:
        shown["LowerDir"] = ":".join(str(diff) for diff in reversed(diffs[:-1]))
    return shown


#: What a container's configuration has beyond an image's; before API 1.50 images showed it too.
_LEGACY = {
    "Hostname": "", "Domainname": "", "AttachStdin": False, "AttachStdout": False, "AttachStderr": False,
    "Tty": False, "OpenStdin": False, "StdinOnce": False, "Image": "",
}
_NULL_WHEN_EMPTY = ("Env", "Cmd", "Entrypoint", "Volumes", "OnBuild", "Labels")
#: What is there in every version, set or not: clients look into it without asking (moby issue 50134).
_ALWAYS_SHOWN = {"User": "", "WorkingDir": "", **dict.fromkeys(_NULL_WHEN_EMPTY)}
#: docker-compose 1.x looks into the configuration of the container an image was made of, whatever it was made of.
_NO_CONFIG = {**_LEGACY, **_ALWAYS_SHOWN}


def image_config(image: Image, version: Version) -> dict[str, Any]:
    """The "Config" of an inspected image."""
    config: dict[str, Any] = to_api(image.config)
    return {**(_NO_CONFIG if version < (1, 50) else _ALWAYS_SHOWN), **config}


def history(image: Image, configuration: Configuration, layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """HistoryResponseItems, newest first. Layers that the history does not mention are shown without words."""
    sizes = [layer.size_bytes for layer in layers]
    entries = list(configuration.history)
    missing = len(sizes) - sum(not entry.empty_layer for entry in entries)
    entries = [HistoryEntry()] * max(0, missing) + entries
    shown = []
    for entry in entries:
        size = sizes.pop(0) if not entry.empty_layer and sizes else 0
        shown.append({
            "Id": "<missing>", "Created": _seconds(entry.created), "CreatedBy": entry.created_by, "Tags": None,
            "Size": size, "Comment": entry.comment,
        })
    shown.reverse()
    if shown:
        shown[0]["Id"] = image.id
        shown[0]["Tags"] = list(image.repo_tags) or None
    return shown


def _seconds(created: str) -> int:
    if not created:
        return 0
    try:
        return parse_rfc3339(created) // NS
    except (ValueError, OverflowError):
        return 0


def new_config(
    *, architecture: str, config: Any, created: str, diff_id: str, comment: str, variant: str = ""
) -> bytes:
    """The bytes of a configuration for an image of one layer (docker import)."""
    document: dict[str, Any] = {
        "architecture": architecture, "comment": comment, "config": to_api(config), "created": created,
        "history": [{"created": created, "comment": comment}], "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }
    if variant:
        document["variant"] = variant
    return msgspec.json.encode(document, order="deterministic")
