"""Requests passed on to the manager that leads: HTTP over mTLS on its port, answers relayed as they come.

What was certainly not taken (nobody listens there, or it says so itself) is told apart from what may have been: only
the former can be tried again.
"""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import web
from yarl import URL

from swarmlet.engine_api.relay import kept_headers, relay
from swarmlet.engine_api.router import Call
from swarmlet.errors import SwarmletError, Unavailable
from swarmlet.model.states import Role
from swarmlet.pki import OU
from swarmlet.wire.passing import NOT_TAKEN, PASSED_ON_FOR

#: A leader that does not accept a connection in this time is away.
CONNECT_S = 3.0
#: How long the leader may take to begin its answer: longer than anything it does itself before one.
ANSWER_S = 180.0
#: What a leader has begun before it was deposed may still be answered for so long.
DEPOSED_S = 2.0


class NotTaken(SwarmletError):
    """The request has certainly not been carried out: it may be passed on again."""


class _Broken(aiohttp.ClientError):
    """A connection that ended in the middle, in a shape in which the HTTP library does not repeat the request: it would
    with every DELETE."""


async def _once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    try:
        return await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as err:
        raise _Broken(str(err)) from err


class LeaderLine:
    """Connections to whoever leads. Made once; `close()` at the end."""

    def __init__(self, tls: ssl.SSLContext | None, leadership_moved: Callable[[], Awaitable[object]]) -> None:
        """tls: this manager's own, for dialling. leadership_moved: ends when somebody else leads than at the call."""
        self._tls = tls
        self._leadership_moved = leadership_moved
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def pass_on(self, call: Call, leader: str, body: bytes) -> web.StreamResponse:
        """The same request to the manager at "host:port"; its answer as it comes.

        NotTaken; Unavailable if it ends without an answer, when the request may have been carried out.
        """
        request = call.request
        headers = kept_headers(request.headers)
        headers.pop("Expect", None)  # the body is here
        headers[PASSED_ON_FOR] = request.remote or "-"
        asking = asyncio.create_task(
            self._client().request(
                request.method, self._url(leader, request.rel_url.raw_path_qs), headers=headers,
                data=io.BytesIO(body) if body else None, server_hostname=OU[Role.MANAGER] if self._tls else None,
            ),
            name="pass on",
        )
        answer = await self._answer(asking, leader)
        try:
            if NOT_TAKEN in answer.headers:
                raise NotTaken(f"{leader} does not lead")
            return await relay(call, answer)
        except aiohttp.ClientError as err:
            raise _uncertain(leader, err) from err
        finally:
            answer.close()

    async def _answer(self, asking: asyncio.Task[aiohttp.ClientResponse], leader: str) -> aiohttp.ClientResponse:
        """The head of the answer, waited for as long as there is hope for one."""
        moved = asyncio.ensure_future(self._leadership_moved())
        try:
            await asyncio.wait([asking, moved], timeout=ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                await asyncio.wait([asking], timeout=DEPOSED_S)
            return asking.result()
        except asyncio.InvalidStateError:
            raise _uncertain(leader, TimeoutError()) from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as err:
            raise NotTaken(f"{leader} cannot be reached: {_reason(err)}") from err
        except (aiohttp.ClientError, OSError) as err:
            raise _uncertain(leader, err) from err
        finally:
            moved.cancel()
            asking.cancel()  # unless it is done
            await asyncio.wait([moved, asking])

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls or False, limit=0), middlewares=(_once,),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S), auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _url(self, leader: str, path_qs: str) -> URL:
        return URL(f"{'https' if self._tls else 'http'}://{leader}{path_qs}", encoded=True)


def _uncertain(leader: str, err: BaseException) -> Unavailable:
    return Unavailable(
        f"the leader at {leader} went away before it had answered ({_reason(err)}): the request may have been carried "
        "out, or not; look before you repeat it"
    )


def _reason(err: BaseException) -> str:
    return "no answer in time" if isinstance(err, TimeoutError) else str(err) or type(err).__name__
