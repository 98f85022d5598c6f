"""The client against a real etcd: what it writes is there, what it watches comes, and what can go wrong is said."""

import asyncio
import contextlib
import json
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.errors import OperatorError, RegistryError
from relay.fleet.credentials import Credentials, Kept
from relay.fleet.entries import KeyValue
from relay.fleet.etcd import EtcdClient
from relay.fleet.gateway import absent, delete, get, get_all, holds, put, unchanged
from tests.fleet.etcds import EtcdServer, Forwarder, answering, certificates, settings, shared
from tests.ports import free_port

pytestmark = pytest.mark.real("etcd", "etcdctl", "openssl")

LONG_S = 120.0  # a bound for hanging


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    yield from shared(tmp_path_factory)


def plain(found: tuple[KeyValue, ...]) -> dict[str, bytes | None]:
    return {each.key: each.value for each in found}


async def test_transactions(server: EtcdServer) -> None:
    async with EtcdClient([server.url]) as client:
        first = await client.txn([absent("/t/a")], [put("/t/a", b"1"), get_all("/t/")])
        assert first.succeeded
        assert plain(first.found[0]) == {"/t/a": b"1"}
        again = await client.txn([absent("/t/a")], [put("/t/a", b"2")], [get("/t/a")])
        assert not again.succeeded
        (found,) = again.found[0]
        assert (found.value, found.mod_revision) == (b"1", first.revision)
        assert (await client.txn([unchanged(found), holds("/t/a", b"1")], [put("/t/a", b"\xff\x00")])).succeeded
        assert not (await client.txn([unchanged(found)], [delete("/t/a")])).succeeded
        assert not (await client.txn([holds("/t/a", b"1")], [delete("/t/a")])).succeeded
        await client.txn((), [put("/t0", b"beside"), put("/t", b"before"), put("/t/b", b"")])
        read = await client.range("/t/")
        assert plain(read.found[0]) == {"/t/a": b"\xff\x00", "/t/b": b""}
        assert read.cluster == first.cluster
        assert read.revision > first.revision
        (keys,) = (await client.txn((), [get_all("/t/", keys_only=True)])).found
        assert plain(keys) == {"/t/a": b"", "/t/b": b""}
        await client.txn((), [delete("/t/a"), delete("/t/b")])
        assert (await client.range("/t/")).found == ((),)


async def test_leases(server: EtcdServer) -> None:
    async with EtcdClient([server.url]) as client:
        lease = await client.grant(7.0)
        await client.txn((), [put("/lease/a", b"1", lease)])
        assert (await client.range("/lease/")).found[0][0].lease == lease
        assert await client.keep_alive(lease)
        assert await client.granted_s(lease) == 7
        await client.revoke(lease)
        assert (await client.range("/lease/")).found == ((),)
        assert not await client.keep_alive(lease)
        assert await client.granted_s(lease) == 0
        await client.revoke(lease)
        with pytest.raises(RegistryError, match="etcd refuses: etcdserver: requested lease not found"):
            await client.txn((), [put("/lease/a", b"1", lease)])


async def test_a_watch_misses_nothing(server: EtcdServer) -> None:
    async with EtcdClient([server.url]) as client:
        start = (await client.txn((), [put("/watch/a", b"1")])).revision
        lease = await client.grant(60)
        async with (
            asyncio.timeout(LONG_S),
            contextlib.aclosing(client.watch("/watch/", start, silence_s=LONG_S)) as stream,
        ):
            assert (await anext(stream)).events == ()
            assert plain((await anext(stream)).events) == {"/watch/a": b"1"}
            await client.txn((), [put("/watch/b", b"2", lease), put("/watches", b"beside")])
            assert plain((await anext(stream)).events) == {"/watch/b": b"2"}
            await client.revoke(lease)
            batch = await anext(stream)
            assert plain(batch.events) == {"/watch/b": None}
            assert batch.events[0].mod_revision == batch.revision


async def test_a_message_larger_than_any_buffer(server: EtcdServer) -> None:
    async with EtcdClient([server.url]) as client:
        start = (await client.range("/large/")).revision + 1
        for n in range(3):
            await client.txn((), [put(f"/large/{n}", bytes([n]) * 400_000)])
        async with (
            asyncio.timeout(LONG_S),
            contextlib.aclosing(client.watch("/large/", start, silence_s=LONG_S)) as stream,
        ):
            await anext(stream)
            events = (await anext(stream)).events
        assert plain(events) == {f"/large/{n}": bytes([n]) * 400_000 for n in range(3)}


async def test_silence_ends_a_watch_and_nothing_else(server: EtcdServer) -> None:
    async with EtcdClient([server.url]) as client, asyncio.timeout(LONG_S):
        batches = [batch async for batch in client.watch("/silent/", 0, silence_s=0.2)]
        assert [batch.events for batch in batches] == [()]


async def test_a_watch_from_before_a_compaction(server: EtcdServer) -> None:
    async with EtcdClient([server.url]) as client, asyncio.timeout(LONG_S):
        start = (await client.txn((), [put("/compact/a", b"1")])).revision
        latest = (await client.txn((), [put("/compact/a", b"2")])).revision
        await asyncio.to_thread(server.ctl, "compact", str(latest))
        batches = [batch async for batch in client.watch("/compact/", start, silence_s=LONG_S)]
        assert [batch.compacted for batch in batches] == [False, True]


async def test_a_dying_server_ends_the_watch(tmp_path: Path) -> None:
    with EtcdServer(tmp_path / "etcd") as server:
        async with EtcdClient([server.url]) as client, asyncio.timeout(LONG_S):
            stream = client.watch("/a/", 0, silence_s=LONG_S)
            await anext(stream)
            server.kill()
            with pytest.raises(RegistryError, match=rf"etcd's watch ended: {server.url}: "):
                await anext(stream)
            with pytest.raises(RegistryError, match=rf"etcd does not answer: {server.url}: nobody listens there"):
                await client.range("/a/")
            await asyncio.to_thread(server.start)
            assert (await client.range("/a/")).found == ((),)  # though the client's connections are the former server's


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "it answers, but not as etcd does"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n[[[[", "it answers, but not as etcd does"),
        (
            b'HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"header":{"cluster_id":"1","revision":"several"}}',
            "it answers, but not as etcd does",
        ),
        (b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\n{}", "HTTP status 404, and nothing that etcd would say"),
        (b"HTTP/1.1 302 No\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", "HTTP status 302, and nothing that etcd"),
        (b"SSH-2.0-OpenSSH\r\n", "it does not speak HTTP"),
        (b"", "it closed the connection"),
    ],
)
async def test_a_wrong_one_is_left_for_the_next(server: EtcdServer, answer: bytes, said: str) -> None:
    async with answering(answer) as wrong:
        async with EtcdClient([wrong]) as client:
            with pytest.raises(RegistryError) as caught:
                await client.range("/a/")
            assert str(caught.value).startswith(f"etcd does not answer: {wrong}: {said}")
            with pytest.raises(RegistryError, match=f"etcd's watch ended: {wrong}: "):
                await anext(client.watch("/a/", 0, silence_s=LONG_S))
        async with EtcdClient([wrong, server.url]) as client:
            assert (await client.range("/a/")).found == ((),)


async def test_a_dead_and_a_silent_one_are_left_for_the_next(server: EtcdServer) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    async with Forwarder(server.port) as path:
        path.swallow()
        async with EtcdClient([dead, path.url, server.url], timeout_s=3) as client:
            assert (await client.range("/a/")).found == ((),)
            accepted = path.accepted
            for _ in range(5):
                await client.range("/a/")
            assert path.accepted == accepted  # the one that answers is asked from then on
        async with EtcdClient([dead, path.url], timeout_s=1) as client:
            with pytest.raises(RegistryError) as caught:
                await client.range("/a/")
            assert str(caught.value) == (
                f"etcd does not answer: {dead}: nobody listens there; {path.url}: no answer within 1 s"
            )


async def test_an_answer_that_is_late_has_twice_the_time(server: EtcdServer) -> None:
    async with Forwarder(server.port) as path, EtcdClient([path.url], timeout_s=0.4) as client:

        async def fails_within(seconds: str) -> None:
            with pytest.raises(RegistryError, match=f"no answer within {seconds} s"):
                await client.range("/a/")

        path.swallow()
        await fails_within("0.4")
        await fails_within("0.8")
        await fails_within("0.8")
        path.drop()
        async with asyncio.timeout(LONG_S):
            while True:
                with contextlib.suppress(RegistryError):
                    await client.range("/a/")
                    break
        path.swallow()
        await fails_within("0.4")


async def test_no_proxy_of_the_environment(server: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with EtcdClient([server.url]) as client:
        assert (await client.range("/a/")).found == ((),)


async def test_a_cancelled_request_leaves_a_client_that_works(server: EtcdServer) -> None:
    async with Forwarder(server.port) as path, EtcdClient([path.url]) as client:
        await client.range("/a/")
        path.swallow()
        asking = asyncio.ensure_future(client.range("/a/"))
        watching = asyncio.ensure_future(anext(client.watch("/a/", 0, silence_s=LONG_S)))
        await asyncio.sleep(0)
        for task in (asking, watching):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        path.flow()
        assert (await client.range("/a/")).found == ((),)


def guard(server: EtcdServer) -> None:
    """Users and passwords from now on: root, and `relay` that may only read /relay/."""
    server.ctl("user", "add", "root:secret")
    server.ctl("user", "grant-role", "root", "root")
    server.ctl("role", "add", "reader")
    server.ctl("role", "grant-permission", "reader", "--prefix=true", "read", "/relay/")
    server.ctl("user", "add", "relay:word of pass")
    server.ctl("user", "grant-role", "relay", "reader")
    server.ctl("auth", "enable")


async def test_a_password(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("word of pass\nand more\n")
    with EtcdServer(tmp_path / "etcd") as server:
        keys: dict[str, Any] = {"username": "relay", "password_file": str(tmp_path / "password"), "ttl": "60s"}
        registry = settings(tmp_path, [server.url], **keys).registry
        assert registry is not None
        async with EtcdClient.of(registry) as client, asyncio.timeout(LONG_S):
            await client.range("/relay/a/")  # not guarded yet: nobody is asked for a password
            await asyncio.to_thread(guard, server)
            await client.range("/relay/a/")
            stream = client.watch("/relay/a/", 0, silence_s=LONG_S)
            await anext(stream)
            await stream.aclose()
            with pytest.raises(RegistryError, match="etcd refuses: etcdserver: permission denied"):
                await client.txn((), [put("/relay/a/b", b"")])
            with pytest.raises(RegistryError, match="permission denied"):
                await client.range("/other/")
            with pytest.raises(RegistryError, match=r"etcd's watch ended: .*permission denied"):
                await anext(client.watch("/other/", 0, silence_s=LONG_S))
            server.kill()
            await asyncio.to_thread(server.start)  # it knows none of the tokens that it gave
            await client.range("/relay/a/")
            # Which makes every token one of before.
            await asyncio.to_thread(server.ctl, "--user=root:secret", "role", "add", "another")
            await client.range("/relay/a/")
        wrong = Credentials("relay", Kept("a password", lambda: "wrong"))
        async with EtcdClient([server.url], credentials=wrong) as client:
            with pytest.raises(
                RegistryError, match=r"etcd refuses: .*authentication failed, invalid user ID or password"
            ):
                await client.range("/relay/a/")
        async with EtcdClient([server.url]) as client:
            with pytest.raises(RegistryError, match="etcd refuses: etcdserver: user name is empty"):
                await client.range("/relay/a/")


async def test_tls(tmp_path: Path) -> None:
    made = certificates(tmp_path / "tls")
    options = ["--cert-file", made["server.pem"], "--key-file", made["server.key"]]
    options += ["--trusted-ca-file", made["ca.pem"], "--client-cert-auth"]
    asking = ssl.create_default_context(cafile=made["ca.pem"])
    asking.load_cert_chain(made["client.pem"], made["client.key"])
    with EtcdServer(tmp_path / "etcd", options=tuple(options), tls=asking) as server:
        ours: dict[str, Any] = {"ca": made["ca.pem"], "cert": made["client.pem"], "key": made["client.key"]}

        async def read(**keys: Any) -> None:
            registry = settings(tmp_path, [server.url], ttl="60s", **keys).registry
            assert registry is not None
            async with EtcdClient.of(registry) as client, asyncio.timeout(LONG_S):
                await client.range("/a/")
                stream = client.watch("/a/", 0, silence_s=LONG_S)
                await anext(stream)
                await stream.aclose()

        await read(**ours)
        with pytest.raises(RegistryError, match=r"its certificate is not believed \(.*\); check `ca`"):
            await read(cert=ours["cert"], key=ours["key"])
        with pytest.raises(RegistryError, match=r"etcd does not answer: https"):
            await read(ca=ours["ca"])
        with pytest.raises(OperatorError, match=r"cannot read /nowhere: no such file; check `ca`"):
            await read(ca="/nowhere")
        with pytest.raises(
            OperatorError, match=r"etcd's certificates .* cannot be used: .*; check `ca`, `cert`, `key`"
        ):
            await read(**ours | {"key": made["server.key"]})


async def test_a_password_that_is_changed(tmp_path: Path) -> None:
    """In etcd and in the file, one after the other: by the next login all is well."""
    file = tmp_path / "password"
    file.write_text("word of pass\n")
    with EtcdServer(tmp_path / "etcd") as server:
        guard(server)
        keys: dict[str, Any] = {"username": "relay", "password_file": str(file), "ttl": "60s"}
        registry = settings(tmp_path, [server.url], **keys).registry
        assert registry is not None
        async with EtcdClient.of(registry) as client, asyncio.timeout(LONG_S):
            await client.range("/relay/a/")

            async def change(password: str) -> None:
                """Also to the same: etcd forgets all logins of the user."""
                words = ("--user=root:secret", "user", "passwd", "relay", "--interactive=false")
                await asyncio.to_thread(server.ctl, *words, told=f"{password}\n")

            await change("second")
            with pytest.raises(RegistryError, match="authentication failed"):
                await client.range("/relay/a/")
            file.write_text("second\n")
            await client.range("/relay/a/")
            file.unlink()
            await change("second")
            await client.range("/relay/a/")
            assert client.complaint == (
                f"cannot read etcd's password: {file}: no such file; check `password_file`; "
                "what could be read last is used"
            )
            file.write_text("third\n")
            await change("third")
            await client.range("/relay/a/")
            assert client.complaint == ""
            stream = client.watch("/relay/a/", 0, silence_s=LONG_S)
            await anext(stream)
            await stream.aclose()


async def test_certificates_that_are_changed(tmp_path: Path) -> None:
    """The authority's, ours and our key, while connections are open by those of before."""
    made = [certificates(tmp_path / f"tls{n}") for n in range(2)]
    ours = {key: str(tmp_path / key) for key in ("ca", "cert", "key")}

    def put_files(n: int) -> None:
        for key, name in (("ca", "ca.pem"), ("cert", "client.pem"), ("key", "client.key")):
            shutil.copy(made[n][name], ours[key])

    def guarded(n: int, directory: Path) -> EtcdServer:
        options = ["--cert-file", made[n]["server.pem"], "--key-file", made[n]["server.key"]]
        options += ["--trusted-ca-file", made[n]["ca.pem"], "--client-cert-auth"]
        asking = ssl.create_default_context(cafile=made[n]["ca.pem"])
        asking.load_cert_chain(made[n]["client.pem"], made[n]["client.key"])
        return EtcdServer(directory, options=tuple(options), tls=asking)

    put_files(0)
    with guarded(0, tmp_path / "etcd0") as first, guarded(1, tmp_path / "etcd1") as second:
        registry = settings(tmp_path, [first.url], ttl="60s", **ours).registry
        assert registry is not None
        async with EtcdClient.of(registry) as client, asyncio.timeout(LONG_S):
            await client.range("/a/")
            client._endpoints = (second.url,)
            with pytest.raises(RegistryError, match="its certificate is not believed"):
                await client.range("/a/")
            put_files(1)
            await client.range("/a/")
            shutil.copy(made[0]["client.key"], ours["key"])
            await client.range("/a/")
            assert "cannot be used: " in client.complaint
            assert client.complaint.endswith("check `ca`, `cert`, `key`; what could be read last is used")
            put_files(1)
            await client.range("/a/")
            assert client.complaint == ""


@pytest.mark.parametrize(
    ("text", "said"), [(None, "no such file; check `password_file`"), ("\n", "no password on the first")]
)
async def test_a_password_file_that_is_of_no_use(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "password").write_text(text)
    registry = settings(
        tmp_path, ["http://127.0.0.1:1"], username="a", password_file=str(tmp_path / "password")
    ).registry
    assert registry is not None
    async with EtcdClient.of(registry) as client:
        with pytest.raises(RegistryError, match=said):
            await client.range("/a/")
        with pytest.raises(RegistryError, match=said):
            await anext(client.watch("/a/", 0, silence_s=LONG_S))
        assert client.complaint == "", "nothing was read before that could be used"


def test_the_answers_are_json() -> None:
    assert json.loads(json.dumps(put("/a", b"1", 5))) == {"request_put": {"key": "L2E=", "value": "MQ==", "lease": "5"}}
