"""Listening sockets, and the reason where one cannot be opened."""

import errno
import socket

import pytest

from relay.errors import ListenError
from relay.kernel.listening import close_all, filter_refusal, open_listener
from tests.config.rig import dropping, endpoint_row
from tests.dataplane.rig import no_descriptors
from tests.ports import free_port, free_ports


def test_it_listens_where_the_row_says_and_nowhere_else() -> None:
    port = free_port("127.0.0.2")
    with open_listener(endpoint_row(listen_host="127.0.0.2", listen_port=port)) as listener:
        assert listener.getsockname() == ("127.0.0.2", port)
        assert not listener.getblocking()
        assert not listener.get_inheritable()
        socket.create_connection(("127.0.0.2", port)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_one_port_of_a_range() -> None:
    row = endpoint_row(listen_port=free_ports(3), port_count=3)
    with open_listener(row, row.listen_port + 2) as listener:
        assert listener.getsockname() == ("127.0.0.1", row.listen_port + 2)
        with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{row.listen_port + 2} for web/in"):
            open_listener(row, row.listen_port + 2)
    open_listener(row).close()


def test_all_ipv6_addresses_are_not_ipv4() -> None:
    with (
        open_listener(endpoint_row(listen_host="::", listen_port=free_port("::"))) as listener,
        pytest.raises(ConnectionRefusedError),
    ):
        socket.create_connection(("127.0.0.1", listener.getsockname()[1]))


def test_a_port_that_was_just_used_can_be_listened_on() -> None:
    row = endpoint_row(listen_port=free_port())
    with open_listener(row) as listener:
        client = socket.create_connection(listener.getsockname())
        listener.accept()[0].close()
        client.close()
    open_listener(row).close()


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        row = endpoint_row(listen_port=other.getsockname()[1])
        with pytest.raises(ListenError) as caught:
            open_listener(row)
    assert str(caught.value) == (
        f"cannot listen on {row.listen} for web/in: the address is in use by another program; "
        "stop that program (`ss -ltnp` names it), or change the endpoint's `port`"
    )


def test_a_port_for_relays_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        row = endpoint_row("web/@relay", type="relay", listen_port=other.getsockname()[1])
        with pytest.raises(ListenError, match=r"for web/@relay: .* or change `relay_port`$"):
            open_listener(row)


def test_an_address_that_is_not_here() -> None:
    with pytest.raises(
        ListenError, match=r"on 203.0.113.1:80 for web/in: .* not on any interface .*; write this machine's"
    ):
        open_listener(endpoint_row(listen_host="203.0.113.1", listen_port=80))


def test_no_descriptor_to_listen_with() -> None:
    with no_descriptors(), pytest.raises(ListenError, match=r"cannot listen on .*; .* raise LimitNOFILE"):
        open_listener(endpoint_row())


def test_a_machine_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel booted with ipv6.disable=1 says."""

    def refusing(*_: object) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "x")

    monkeypatch.setattr(socket, "socket", refusing)
    with pytest.raises(ListenError, match=r"cannot listen on \[::1\]:80"):
        open_listener(endpoint_row(listen_host="::1", listen_port=80))


def test_closing_all() -> None:
    socks = {str(n): open_listener(endpoint_row()) for n in range(3)}
    socks["1"].close()
    close_all(socks)
    assert [sock.fileno() for sock in socks.values()] == [-1] * 3


@pytest.mark.parametrize(
    ("code", "words"), [(errno.EPERM, "CAP_NET_ADMIN"), (errno.ENOMEM, "optmem_max"), (errno.EINVAL, "log")]
)
def test_why_a_filter_is_refused(code: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_sock: socket.socket, _program: bytes) -> None:
        raise OSError(code, "x")

    monkeypatch.setattr("relay.kernel.listening.attach_filter", refuse)
    said = filter_refusal(endpoint_row(**dropping("127.0.0.2")))
    assert words in said
    assert said.endswith("or write `deny: reset`")


def test_a_filter_that_the_kernel_takes(filters: None) -> None:
    assert filter_refusal(endpoint_row(**dropping("127.0.0.2"))) == ""
    assert filter_refusal(endpoint_row(listen_host="::1", **dropping("::1", version=6))) == ""
