"""/images of the whole cluster: what is pulled, loaded, tagged or removed here, is so on every node."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from aiohttp import web

from swarmlet.engine_api.answers import json_answer
from swarmlet.engine_api.connection import WhileConnected
from swarmlet.engine_api.router import Call, Route
from swarmlet.engine_api.streams import JsonStream
from swarmlet.errors import Internal, InvalidArgument, NotFound, SwarmletError, Unavailable
from swarmlet.model.node import Node
from swarmlet.model.times import parse_rfc3339, rfc3339
from swarmlet.wire.imports import CREATED_AT
from swarmlet_manager.fleet.client import Fleet, NodeError, agreed, decoded, first_found
from swarmlet_manager.fleet.forward import forward
from swarmlet_manager.fleet.moments import with_moments
from swarmlet_manager.fleet.progress import Progress

#: Removing or tagging on every node waits this long for the slowest.
CHANGE_S = 120.0
COPY_BYTES = 1 << 20
#: Where an archive lies on its way to every node: it may be large, and /tmp may be memory.
SPOOL = "/var/tmp"


class ImageRoutes:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/images/json", self.index),
            Route("POST", "/images/create", self.create),
            Route("POST", "/images/load", self.load),
            Route("GET", "/images/get", self.save),
            Route("POST", "/images/prune", self.prune),
            Route("GET", "/images/search", self.any_node),
            Route("POST", "/build", self.any_node),
            Route("POST", "/build/cancel", self.cancel_build),
            Route("POST", "/build/prune", self.prune_builds),
            Route("POST", "/auth", self.any_node),
            Route("GET", "/distribution/{name:path}/json", self.any_node),
            Route("GET", "/images/{name:path}/json", self.one),
            Route("GET", "/images/{name:path}/history", self.one),
            Route("GET", "/images/{name:path}/get", self.one),
            Route("POST", "/images/{name:path}/push", self.push),
            Route("POST", "/images/{name:path}/tag", self.tag),
            Route("DELETE", "/images/{name:path}", self.remove),
        ]

    async def index(self, call: Call) -> web.Response:
        """Every image once, with the tags it has anywhere."""
        path = await with_moments(call, self._created_at)
        answers = await self._fleet.ask_all(self._fleet.ready(), "GET", path)
        merged: dict[str, dict[str, Any]] = {}
        for answer in agreed(answers):
            for image in answer.body:
                known = merged.setdefault(image["Id"], dict(image))
                for field in ("RepoTags", "RepoDigests"):
                    known[field] = merged_names(known.get(field), image.get(field))
                known["Containers"] = max(known.get("Containers", -1), image.get("Containers", -1))
        return json_answer(sorted(merged.values(), key=lambda image: image.get("Created", 0), reverse=True))

    async def _created_at(self, ref: str) -> int:
        """When an image that some node has was made, in ns; 0 for one that does not say."""
        answers = await self._fleet.ask_all(self._fleet.ready(), "GET", f"/images/{quote(ref, safe='/:@')}/json")
        created = first_found(answers, "image", ref).body.get("Created")
        return parse_rfc3339(created) if created else 0

    async def create(self, call: Call) -> web.StreamResponse:
        """Pull on every node at once, progress per node; an import goes to every node too."""
        if call.text("fromSrc"):
            return await self._to_all(call)
        headers = {name: value for name, value in call.request.headers.items() if name.lower() == "x-registry-auth"}
        stream = JsonStream(call)
        nodes = self._some(self._fleet.schedulable())
        if len(nodes) == 1:
            async with WhileConnected(call.request):
                return await forward(call, self._fleet, nodes[0])
        progress = Progress([node.description.hostname for node in nodes])
        path = call.request.rel_url.raw_path_qs
        async with WhileConnected(call.request), asyncio.TaskGroup() as group:
            for node in nodes:
                group.create_task(self._follow(node, path, headers, progress), name=f"pull-{node.id}")
            async for line in progress.lines():
                await stream.send(line)
        return await self._finish(stream, progress)

    async def _follow(self, node: Node, path: str, headers: Mapping[str, str], progress: Progress) -> None:
        """One node's pull into the common progress."""
        name = node.description.hostname
        try:
            async with self._fleet.request(node, "POST", path, headers=headers) as answer:
                if answer.status >= 400:
                    decoded(answer.status, await answer.read())
                async for line in answer.content:
                    if line.strip():
                        progress.take(name, json.loads(line))
            progress.end(name, None)
        except (SwarmletError, aiohttp.ClientError, ValueError) as err:
            progress.end(name, err)

    async def _finish(self, stream: JsonStream, progress: Progress) -> web.StreamResponse:
        failed = progress.failures()
        if failed and not progress.succeeded():
            error = next(iter(failed.values()))
            if not stream.started and isinstance(error, SwarmletError):
                raise error
            await stream.fail(str(error))
        elif failed:
            await stream.fail("; ".join(f"{name}: {error}" for name, error in failed.items()))
        return await stream.end()

    async def load(self, call: Call) -> web.StreamResponse:
        """What is wrong with the archive is a line of the answer, as a node says it."""
        return await self._to_all(call, always_a_stream=True)

    async def _to_all(self, call: Call, *, always_a_stream: bool = False) -> web.StreamResponse:
        """A body for every node: kept in a file, sent to all, the first node's answer for the client."""
        nodes = self._some(self._fleet.schedulable())
        if len(nodes) == 1:
            return await forward(call, self._fleet, nodes[0])
        with tempfile.TemporaryFile(dir=os.environ.get("TMPDIR", SPOOL)) as file:
            async for data in call.request.content.iter_chunked(COPY_BYTES):
                try:
                    await asyncio.to_thread(file.write, data)
                    await asyncio.to_thread(file.flush)
                except OSError as err:
                    raise Internal(f"the archive cannot be stored on the way to the nodes: {err.strerror}") from err
            headers = {"Content-Type": "application/x-tar", CREATED_AT: rfc3339(time.time_ns())}
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._send(node, call, file.fileno(), headers), name=f"load-{node.id}")
                    for node in nodes
                ]
        stream = JsonStream(call)
        results = {node.description.hostname: task.result() for node, task in zip(nodes, tasks, strict=True)}
        good = [body for body in results.values() if isinstance(body, bytes)]
        if not good:
            error = next(error for error in results.values() if isinstance(error, SwarmletError))
            if not always_a_stream:
                raise error
            await stream.fail(str(error))
            return await stream.end()
        for line in good[0].splitlines():
            if line.strip():
                await stream.send(json.loads(line))
        failed = [f"{name}: {error}" for name, error in results.items() if isinstance(error, SwarmletError)]
        if failed:
            await stream.fail("; ".join(failed))
        return await stream.end()

    async def _send(self, node: Node, call: Call, file: int, headers: Mapping[str, str]) -> bytes | SwarmletError:
        size = os.fstat(file).st_size

        async def content() -> AsyncIterator[bytes]:
            for offset in range(0, size, COPY_BYTES):
                yield await asyncio.to_thread(os.pread, file, COPY_BYTES, offset)

        headers = {**headers, "Content-Length": str(size)}
        path = call.request.rel_url.raw_path_qs
        try:
            async with self._fleet.request(node, "POST", path, headers=headers, data=content()) as answer:
                body = await answer.read()
                if answer.status >= 400:
                    decoded(answer.status, body)
                return body if (wrong := stream_error(body)) is None else Internal(wrong)
        except SwarmletError as err:
            return err
        except aiohttp.ClientError as err:
            return Unavailable(f"node {node.description.hostname}: {err}")

    async def save(self, call: Call) -> web.StreamResponse:
        """From a node that has all the names."""
        names = [name for given in call.texts("names") for name in given.split(",")]
        nodes = self._fleet.ready()
        for name in names:
            having = await self._having_any(name, nodes)
            nodes = [node for node in nodes if node.id in having]
        return await forward(call, self._fleet, self._some(nodes)[0])

    async def one(self, call: Call) -> web.StreamResponse:
        """From the first node that has it."""
        name = call.params["name"]
        nodes = self._fleet.ready()
        having = await self._having_any(name, nodes)
        return await forward(call, self._fleet, next(node for node in nodes if node.id in having))

    async def push(self, call: Call) -> web.StreamResponse:
        """From a node that has what is meant; all tags of a repository from as few nodes as have them together."""
        name, tag = call.params["name"], call.text("tag")
        nodes = self._some(self._fleet.ready())
        repository, own_tag = split_tag(name)
        if tag or own_tag:
            try:
                having = await self._having_any(f"{repository}:{tag}" if tag else name, nodes)
            except NotFound:
                having = {nodes[0].id}  # it will say so in the words of a push
            return await forward(call, self._fleet, next(node for node in nodes if node.id in having))
        answers = await self._fleet.ask_all(nodes, "GET", "/images/json")
        tags = {answer.node.id: tags_of(answer.body, repository) for answer in answers if answer.status < 400}
        shares = share_out(tags)
        if len(shares) < 2:
            chosen = next(iter(shares), nodes[0].id)
            return await forward(call, self._fleet, next(node for node in nodes if node.id == chosen))
        stream = JsonStream(call)
        try:
            for node in nodes:
                for one in shares.get(node.id, ()):
                    await self._push_one(call, stream, node, one)
        except (SwarmletError, aiohttp.ClientError, ValueError) as err:
            if not stream.started and isinstance(err, SwarmletError):
                raise
            await stream.fail(str(err))
        return await stream.end()

    async def _push_one(self, call: Call, stream: JsonStream, node: Node, tag: str) -> None:
        """One tag's push into the common answer. ValueError with a node's words if it fails on the way."""
        headers = {name: value for name, value in call.request.headers.items() if name.lower() == "x-registry-auth"}
        path = str(call.request.rel_url.update_query(tag=tag))
        async with self._fleet.request(node, "POST", path, headers=headers) as answer:
            if answer.status >= 400:
                decoded(answer.status, await answer.read())
            async for line in answer.content:
                if not line.strip():
                    continue
                said = json.loads(line)
                if "error" in said:
                    raise ValueError(said["error"])
                await stream.send(said)

    async def _having(self, name: str, nodes: list[Node]) -> set[str]:
        """Ids of the nodes that have an image; NotFound in a node's own words if none has."""
        answers = await self._fleet.ask_all(nodes, "GET", f"/images/{quote(name, safe='/:@')}/json")
        first_found(answers, "image", name)
        return {answer.node.id for answer in answers if answer.status < 400}

    async def _having_any(self, name: str, nodes: list[Node]) -> set[str]:
        """As `_having`; a name without a tag may mean a repository with others than "latest" (docker save, push -a)."""
        try:
            return await self._having(name, nodes)
        except NotFound:
            query = urlencode({"filters": json.dumps({"reference": [name]})})
            answers = await self._fleet.ask_all(nodes, "GET", f"/images/json?{query}")
            if having := {answer.node.id for answer in answers if answer.status < 400 and answer.body}:
                return having
            raise

    async def tag(self, call: Call) -> web.Response:
        path = call.request.rel_url.raw_path_qs
        answers = await self._fleet.ask_all(self._fleet.ready(), "POST", path, timeout_s=CHANGE_S)
        first_found(answers, "image", call.params["name"])
        return web.Response(status=201)

    async def remove(self, call: Call) -> web.Response:
        """On every node that has it. A node where it is in use keeps it, and says so."""
        path = call.request.rel_url.raw_path_qs
        answers = await self._fleet.ask_all(self._fleet.ready(), "DELETE", path, timeout_s=CHANGE_S)
        for answer in answers:
            if answer.status >= 400 and answer.status != 404:
                raise NodeError(answer.status, f"{answer.node.description.hostname}: {answer.body}")
        first_found(answers, "image", call.params["name"])
        lines: dict[str, dict[str, str]] = {}
        for answer in answers:
            for line in answer.body if answer.status < 400 else ():
                lines.setdefault(repr(sorted(line.items())), line)
        return json_answer(list(lines.values()))

    async def prune(self, call: Call) -> web.Response:
        good = await self._pruned(call)
        lines = {repr(sorted(line.items())): line for body in good for line in body["ImagesDeleted"] or []}
        reclaimed = sum(body["SpaceReclaimed"] for body in good)
        return json_answer({"ImagesDeleted": list(lines.values()), "SpaceReclaimed": reclaimed})

    async def cancel_build(self, call: Call) -> web.Response:
        """On every node: only the one that builds under this id minds. 400 without an id."""
        if not call.text("id"):
            raise InvalidArgument("build ID not provided")
        nodes = self._some(self._fleet.ready())
        await self._fleet.ask_all(nodes, "POST", call.request.rel_url.raw_path_qs)
        return web.Response(status=200)

    async def prune_builds(self, call: Call) -> web.Response:
        """`docker system prune` asks for this too: without it, it would fail at its end."""
        good = await self._pruned(call)
        deleted = [ident for body in good for ident in body.get("CachesDeleted") or ()]
        reclaimed = sum(body["SpaceReclaimed"] for body in good)
        return json_answer({"CachesDeleted": deleted or None, "SpaceReclaimed": reclaimed})

    async def _pruned(self, call: Call) -> list[dict[str, Any]]:
        """What each node says it pruned."""
        path = call.request.rel_url.raw_path_qs
        answers = await self._fleet.ask_all(self._fleet.ready(), "POST", path, timeout_s=CHANGE_S)
        return [answer.body for answer in agreed(answers)]

    async def any_node(self, call: Call) -> web.StreamResponse:
        """What every node answers alike: registry look-ups."""
        return await forward(call, self._fleet, self._some(self._fleet.ready())[0])

    def _some(self, nodes: list[Node]) -> list[Node]:
        if not nodes:
            raise NotFound("node", "", "no node is ready")
        return nodes


def split_tag(name: str) -> tuple[str, str]:
    """(repository, ":tag" or "@digest" behind it): a colon before the last slash is a registry's port."""
    start = name.rfind("/") + 1
    ends = [at for mark in "@:" if (at := name.find(mark, start)) >= 0]
    end = min(ends, default=len(name))
    return name[:end], name[end:]


def stream_error(body: bytes) -> str | None:
    """The error that a stream of progress ends with, if it does."""
    last = body.strip().rpartition(b"\n")[2]
    told = json.loads(last).get("error") if last.startswith(b"{") else None
    return None if told is None else str(told)


def merged_names(some: Sequence[str] | None, others: Sequence[str] | None) -> list[str]:
    """Names an image has on one node or another; what stands for none (before API 1.43) only if it has none. Pure."""
    names = {*(some or ()), *(others or ())}
    return sorted(name for name in names if not name.startswith("<none>")) or sorted(names)


def tags_of(images: list[dict[str, Any]], repository: str) -> set[str]:
    """The tags that a repository has among listed images."""
    familiar = repository.removeprefix("docker.io/").removeprefix("library/")
    named = (split_tag(name) for image in images for name in image.get("RepoTags") or ())
    return {tag.removeprefix(":") for name, tag in named if name == familiar}


def share_out(tags: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """Which node pushes which tags (by node id): every tag once, from nodes with many first. Pure."""
    left = set[str]().union(*tags.values())
    shares: dict[str, list[str]] = {}
    while left:
        node = max(tags, key=lambda ident: (len(tags[ident] & left), ident))
        shares[node] = sorted(tags[node] & left)
        left -= tags[node]
    return shares
