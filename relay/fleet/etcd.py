"""A client of etcd 3.4's JSON gateway: several endpoints, TLS, password, leases, transactions, and a watch.

Whatever goes wrong on the way becomes a RegistryError here, and nowhere else.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from functools import partial
from typing import Any, Final, Self

import aiohttp

from relay.config.settings import Registry
from relay.config.wording import brief
from relay.errors import RegistryError, os_reason
from relay.fleet.credentials import Credentials
from relay.fleet.gateway import (
    NOT_FOUND,
    Batch,
    Compare,
    Operation,
    Refused,
    Reply,
    T,
    Unfit,
    all_of,
    failure,
    get_all,
    parsed,
    read_answer,
    read_batch,
    read_header,
    understood,
)

# An etcd that works answers in milliseconds, and gives a write of its own 5 s + 2 election timeouts (7 s) before it says that
# it has no quorum. Waiting for that would cost a lease of 10 s; another member may answer at once.
REQUEST_S: Final = 3.0
# An etcd that a whole fleet asks at once answers later than that. Whoever gives up and asks again makes its work in vain, and
# the next answer later still; so a request after one that came too late has twice the time. Longer would be past a lease.
_LATE_FACTOR: Final = 2
# A revision is one message, and one lease may take many keys with it. Past this it is no etcd that talks.
_LINE_MAX_BYTES: Final = 64 * 1024 * 1024
# What etcd says when a token has run out, is of before its restart, or when users and roles have changed since.
_TOKEN_TROUBLE: Final = ("invalid auth token", "revision of auth store is old", "user name is empty")
_NO_AUTH: Final = "authentication is not enabled"

# A member that has lost its cluster would keep a watch open and say nothing; with this it ends it ("no leader").
_LEADER: Final = {"Grpc-Metadata-hasleader": "true"}


class EtcdClient:
    """One program's way to an etcd cluster. Use as an async context manager, or `close` it."""

    def __init__(
        self,
        endpoints: Iterable[str],
        *,
        timeout_s: float = REQUEST_S,
        credentials: Credentials | None = None,
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._timeout_s = timeout_s
        self._late = False  # the last request's answer did not come in time
        self._credentials = credentials or Credentials()
        self._token = ""
        self._at = 0  # the endpoint that answered last
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def of(cls, registry: Registry) -> Self:
        """The client that the settings describe. Their files are read when a request needs them, which is refused else."""
        # So that after one endpoint that does not answer there is time for another one before a lease has run out.
        timeout_s = min(REQUEST_S, registry.ttl_s / 3)
        return cls(registry.etcd, timeout_s=timeout_s, credentials=Credentials.of(registry))

    @property
    def complaint(self) -> str:
        """Which of its files could not be read lately, while what could be read last is used; empty: none."""
        return self._credentials.complaint

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. A watch that goes on ends with a RegistryError."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # --- requests. Each raises RegistryError -------------------------------------------------------------------------

    async def range(self, prefix: str) -> Reply:
        """Every key that starts with `prefix`, as of one revision that the cluster agrees upon."""
        return await self.txn((), [get_all(prefix)])

    async def txn(
        self, compare: Iterable[Compare], then: Iterable[Operation], otherwise: Iterable[Operation] = ()
    ) -> Reply:
        """All of `then` when every comparison holds, all of `otherwise` when not; at one revision.

        A request whose answer got lost is made again, by another endpoint maybe: what is written must be guarded by a
        comparison that does not hold twice.
        """
        body = {"compare": list(compare), "success": list(then), "failure": list(otherwise)}
        return await self._call("kv/txn", body, read_answer)

    async def grant(self, ttl_s: float) -> int:
        """A lease for so many whole seconds; what it is called."""
        return await self._call("lease/grant", {"TTL": str(int(ttl_s))}, lambda got: int(got["ID"]))

    async def keep_alive(self, lease: int) -> bool:
        """Let the lease begin anew. False: it has run out."""
        return await self._call("lease/keepalive", {"ID": str(lease)}, lambda got: int(got["result"].get("TTL", 0)) > 0)

    async def granted_s(self, lease: int) -> int:
        """What a lease was granted for, in seconds; 0 when there is none."""

        def read(got: dict[str, Any]) -> int:
            return int(got.get("grantedTTL", 0)) if int(got.get("TTL", 0)) > 0 else 0

        return await self._call("lease/timetolive", {"ID": str(lease)}, read)

    async def revoke(self, lease: int) -> None:
        """End a lease, and remove the keys that go with it. One that is no more is no error."""
        try:
            await self._call("lease/revoke", {"ID": str(lease)}, read_header)
        except Refused as error:
            if error.code != NOT_FOUND:
                raise

    async def watch(self, prefix: str, revision: int, *, silence_s: float) -> AsyncGenerator[Batch]:
        """What changes under `prefix` from `revision` on, first an empty batch once the watch is there.

        Ends when nothing has come for `silence_s`: the path may be dead, which TCP does not tell, and a new watch from
        the revision after the last one misses nothing. Raises RegistryError when the stream breaks or is cancelled.
        Close it (contextlib.aclosing), and the connection is closed.
        """
        request = {"create_request": {**all_of(prefix), "start_revision": str(revision)}}
        url = self._endpoints[self._at]
        try:
            async with self._in_time():
                await self._authenticate(url)
                response = await self._respond(url, "watch", request)
            with contextlib.closing(response):
                lines = _Lines(response.content)
                async with self._in_time():
                    first = await lines.next(None) or b""
                yield read_batch(response.status, first)
                while (line := await lines.next(silence_s)) is not None:
                    yield (batch := read_batch(response.status, line))
                    if batch.compacted:
                        return
        except Unfit as error:
            self._pass_over(url)
            raise RegistryError(f"etcd's watch ended: {url}: {error}") from None
        except Refused as error:
            self._token = ""  # a watch is not told whether it was the token
            raise RegistryError(f"etcd's watch ended: {url}: {error}") from None

    # --- the way there -----------------------------------------------------------------------------------------------

    async def _call(self, path: str, body: dict[str, Any], read: Callable[[dict[str, Any]], T]) -> T:
        """Ask the endpoints in turn, from the one on that answered last, until one gives a definite answer."""
        failed: list[str] = []
        for _ in range(len(self._endpoints)):
            url = self._endpoints[self._at]
            try:
                return understood(await self._ask(url, path, body), read)
            except Unfit as error:
                failed.append(f"{url}: {error}")
                self._pass_over(url)
        raise RegistryError(f"etcd does not answer: {'; '.join(failed)}")

    def _pass_over(self, url: str) -> None:
        """Begin elsewhere from now on, unless another request has found out before."""
        if self._endpoints[self._at] == url:
            self._at = (self._at + 1) % len(self._endpoints)

    async def _ask(self, url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self._in_time():
            await self._authenticate(url)
            try:
                return await self._post(url, path, body)
            except Refused as error:
                if not self._token or not any(each in str(error) for each in _TOKEN_TROUBLE):
                    raise
            self._token = ""
            await self._authenticate(url)
            return await self._post(url, path, body)

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """As long as an endpoint may take. The boundary to aiohttp: all that can go wrong on the way is Unfit."""
        within_s = self._timeout_s * (_LATE_FACTOR if self._late else 1)
        try:
            async with asyncio.timeout(within_s):
                yield
        except TimeoutError:
            self._late = True
            raise Unfit(f"no answer within {within_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: a token that no header can have
            raise Unfit(_reason(error)) from None
        self._late = False

    async def _authenticate(self, url: str) -> None:
        name = self._credentials.username
        if not name or self._token:
            return
        password = await self._credentials.password()
        try:
            answer = await self._post(url, "auth/authenticate", {"name": name, "password": password})
        except Refused as error:
            if _NO_AUTH in str(error):
                return  # it asks nobody
            raise
        self._token = str(answer.get("token", ""))

    async def _post(self, url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with await self._respond(url, path, body) as response:
            status, text = response.status, await response.read()
        answer = parsed(text)
        if status != 200 or "error" in answer:
            raise failure(status, answer)
        return answer

    async def _respond(self, url: str, path: str, body: dict[str, Any]) -> aiohttp.ClientResponse:
        session = self._open()
        headers = dict(_LEADER)
        if self._token:
            headers["Authorization"] = self._token
        # Connections that were kept are those of the same TLS context: after a change of its files a new one is made.
        tls = await self._credentials.tls()
        ask = partial(session.post, f"{url}/v3/{path}", json=body, headers=headers, allow_redirects=False, ssl=tls)
        try:
            return await ask()
        except (aiohttp.ServerDisconnectedError, ConnectionResetError):
            # The connection was kept from an earlier request, and has been closed meanwhile. A new one tells.
            return await ask()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Each request has a bound of its own. No proxy and no .netrc of the environment: a registry is on the inside.
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None),
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


class _Lines:
    """The lines of a stream, however long: aiohttp's own `readline` gives up at 128 KiB."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content
        self._buffer = bytearray()
        self._searched = 0

    async def next(self, within_s: float | None) -> bytes | None:
        """The next line; None when no byte has come for so long. Raises Unfit at the end of the stream."""
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            try:
                async with asyncio.timeout(within_s):
                    part = await self._content.readany()
            except TimeoutError:
                return None
            except (aiohttp.ClientError, OSError) as error:
                raise Unfit(_reason(error)) from None
            if not part:
                raise Unfit("the stream ended")
            self._buffer += part
            if len(self._buffer) > _LINE_MAX_BYTES:
                raise Unfit("a message without end")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return line


def _reason(error: Exception) -> str:
    """An operator's wording of why a request failed."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return f"its certificate is not believed ({error.certificate_error}); check `ca`"
        case aiohttp.ClientConnectorDNSError():
            return "its name has no address"
        case aiohttp.ClientConnectorError():
            # A handshake that met a server without TLS has no errno and no text.
            return os_reason(error.os_error) or "it speaks no TLS: is it `http://…`?"
        case aiohttp.ServerDisconnectedError():
            return "it closed the connection"
        case aiohttp.ClientResponseError():
            return "it does not speak HTTP"
        case OSError():
            return os_reason(error)
        case _:
            return brief(str(error)) or type(error).__name__
