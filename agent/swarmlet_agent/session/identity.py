"""Who this node is in the cluster: its certificate, how it gets one, and how it is renewed.

Under <data>/tls: `node.pem` (certificate and key together, so that a renewal is one atomic replacement),
`ca.pem` (the CA it trusts), and while a join is under way `joining.pem` (its request and key). All 0600 in a 0700
folder.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec

from swarmlet.errors import (
    Conflict,
    Forbidden,
    Internal,
    InvalidArgument,
    NotSupported,
    SwarmletError,
    Unauthorized,
    Unavailable,
)
from swarmlet.log import get_logger
from swarmlet.model.states import Availability, Role
from swarmlet.pki import OU, JoinToken, KeyPair, identity_of, parse_join_token, write_private
from swarmlet.tls import TlsIdentity, client_context, joining_context, unverified_context
from swarmlet.wire import joining
from swarmlet.wire.joining import Certificate, Founding, JoinRequest, RenewRequest
from swarmlet_agent.keymaker import new_request

log = get_logger(__name__)

#: Bound for one request of the joining exchange.
REQUEST_S = 10.0
MAX_ANSWER = 1 << 20
MANAGER_NAME = OU[Role.MANAGER]
_END, _END_OF_REQUEST = "-----END CERTIFICATE-----\n", "-----END CERTIFICATE REQUEST-----\n"
_JOINING = "joining.pem"


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    node_id: str
    role: Role
    cluster_id: str
    tls: TlsIdentity


def load_identity(data_dir: Path) -> NodeIdentity | None:
    """What an earlier join left; None if this host has joined nothing. Internal if the files are damaged."""
    folder = data_dir / "tls"
    try:
        pem, ca = (folder / "node.pem").read_text(), (folder / "ca.pem").read_text()
    except FileNotFoundError:
        return None
    cert, end, key = pem.partition(_END)
    try:
        who = identity_of(cert + end)
    except InvalidArgument as err:
        raise Internal(f"{folder}/node.pem is damaged ({err}): leave the cluster and join again") from err
    return NodeIdentity(who.node_id, who.role, who.cluster_id, TlsIdentity(KeyPair(cert + end, key), ca))


def forget_identity(data_dir: Path) -> None:
    """Leave the cluster, as far as this host's files are concerned."""
    for name in ("node.pem", "ca.pem", _JOINING):
        (data_dir / "tls" / name).unlink(missing_ok=True)


def forget_request(data_dir: Path) -> None:
    """The join is done, and remembered elsewhere."""
    (data_dir / "tls" / _JOINING).unlink(missing_ok=True)


async def join(
    data_dir: Path, managers: Sequence[str], token: str, *, hostname: str, addr: str,
    availability: Availability = Availability.ACTIVE,
) -> NodeIdentity:
    """Join with a token through the first manager ("host:port") that answers.

    The CA is trusted because its digest stands in the token. InvalidArgument for what is no token, Forbidden
    for one that is not valid or a CA that is not the token's, Unavailable if no manager answers. The request is kept
    until `forget_request`: where its answer was lost, the same again is the same node.
    """
    parsed = parse_join_token(token)
    failure: SwarmletError = InvalidArgument("at least one manager's address is needed to join")
    for manager in managers:
        try:
            ca = (await _call("GET", f"https://{manager}{joining.CA_PATH}", unverified_context())).decode()
            if not _trusts(parsed, ca):
                raise Forbidden(f"remote CA does not match fingerprint. Expected: {parsed.ca_digest}")
            csr, key = await _request(data_dir)
            request = JoinRequest(token=token, csr=csr, hostname=hostname, addr=addr, availability=availability)
            answer = await _ask(data_dir, f"https://{manager}{joining.JOIN_PATH}", request, joining_context(ca))
        except Unavailable as err:
            failure = err
            continue
        return await _keep(data_dir, answer, key)
    raise failure


async def join_locally(
    data_dir: Path, manager_socket: Path, *, hostname: str, addr: str, manager_addr: str, founding: Founding,
    availability: Availability = Availability.ACTIVE,
) -> NodeIdentity:
    """Become a node of the manager on this very host, through its unix socket.

    manager_addr: its "host:port". founding: what the cluster is to be like. Conflict if it is there already and
    otherwise. The request is kept as `join` keeps it.
    """
    csr, key = await _request(data_dir)
    request = JoinRequest(
        csr=csr, hostname=hostname, addr=addr, manager_addr=manager_addr, founding=founding, availability=availability
    )
    answer = await _ask(data_dir, f"http://manager{joining.LOCAL_JOIN_PATH}", request, socket=manager_socket)
    return await _keep(data_dir, answer, key)


async def renew(data_dir: Path, identity: NodeIdentity, managers: Sequence[str], *, addr: str) -> NodeIdentity:
    """A fresh certificate for the same node, proven by the old one. Unavailable if no manager answers."""
    csr, key = await new_request()
    failure: SwarmletError = Unavailable("no manager is known")
    for manager in managers:
        try:
            body = msgspec.json.encode(RenewRequest(csr=csr, addr=addr))
            url = f"https://{manager}{joining.RENEW_PATH}"
            answer = await _call("POST", url, client_context(identity.tls), body)
        except Unavailable as err:
            failure = err
            continue
        renewed = await _keep(data_dir, answer, key)
        log.info("certificate renewed", node_id=renewed.node_id)
        return renewed
    raise failure


def _trusts(token: JoinToken, ca: str) -> bool:
    try:
        return token.trusts(ca)
    except InvalidArgument:
        return False


async def _request(data_dir: Path) -> tuple[str, str]:
    """(CSR, key) of the join that is under way, PEM; on disk before a manager sees it."""
    file = data_dir / "tls" / _JOINING
    try:
        csr, end, key = (await asyncio.to_thread(file.read_text)).partition(_END_OF_REQUEST)
    except FileNotFoundError:
        made = await new_request()
        await asyncio.to_thread(write_private, file, "".join(made))
        return made
    return csr + end, key


async def _ask(
    data_dir: Path, url: str, request: JoinRequest, tls: ssl.SSLContext | None = None, *, socket: Path | None = None
) -> bytes:
    try:
        return await _call("POST", url, tls, msgspec.json.encode(request), socket=socket)
    except Unavailable:
        raise
    except SwarmletError:  # refused: there is no node of this request
        forget_request(data_dir)
        raise


async def _keep(data_dir: Path, answer: bytes, key: str) -> NodeIdentity:
    try:
        certificate = msgspec.json.decode(answer, type=Certificate)
        identity_of(certificate.cert)
    except (msgspec.DecodeError, InvalidArgument) as err:
        raise Internal(f"the manager's answer makes no sense: {err}") from err
    await asyncio.to_thread(write_private, data_dir / "tls" / "ca.pem", certificate.ca)
    await asyncio.to_thread(write_private, data_dir / "tls" / "node.pem", certificate.cert + key)
    identity = load_identity(data_dir)
    assert identity is not None
    return identity


async def _call(
    method: str, url: str, tls: ssl.SSLContext | None, body: bytes | None = None, *, socket: Path | None = None
) -> bytes:
    """The body of a 200 answer; the manager's refusals as our errors, Unavailable if it cannot be reached."""
    connector = aiohttp.UnixConnector(str(socket)) if socket is not None else aiohttp.TCPConnector(ssl=tls or False)
    name = MANAGER_NAME if tls is not None and tls.check_hostname else None
    try:
        async with (
            asyncio.timeout(REQUEST_S),
            aiohttp.ClientSession(connector=connector) as client,
            client.request(method, url, data=body, server_hostname=name) as response,
        ):
            text = await _bounded(response.content)
            if response.status != 200:
                raise _refusal(response.status, text)
            return text
    except (aiohttp.ClientError, OSError, TimeoutError) as err:
        raise Unavailable(f"cannot reach a manager at {url.split('/')[2]}: {err or type(err).__name__}") from err


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    parts, size = [], 0
    async for part in content.iter_any():
        size += len(part)
        if size > MAX_ANSWER:
            raise Internal(f"the manager's answer is larger than {MAX_ANSWER} bytes")
        parts.append(part)
    return b"".join(parts)


def _refusal(status: int, text: bytes) -> SwarmletError:
    try:
        message = str(msgspec.json.decode(text)["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        message = f"the manager answered with status {status}"
    kinds: dict[int, type[SwarmletError]] = {
        400: InvalidArgument, 401: Unauthorized, 403: Forbidden, 409: Conflict, 501: NotSupported,
    }
    return kinds.get(status, Unavailable)(message)
