"""What names something elsewhere: taken as it is meant, or refused with what to write."""

from collections.abc import Callable
from typing import Any

import pytest

from relay.config import references
from relay.config.values import HostPort


@pytest.mark.parametrize(
    ("parse", "written", "read"),
    [
        (references.url, "http://10.0.9.1:2379", "http://10.0.9.1:2379"),
        (references.url, "https://etcd-0.example:2379/", "https://etcd-0.example:2379"),
        (references.url, "http://[2001:db8::1]:2379", "http://[2001:db8::1]:2379"),
        (references.file, "/etc/hosts", "/etc/hosts"),
        (references.file, "/var/lib/relay/", "/var/lib/relay"),
        (references.endpoint, "store/postgres", ("store", "postgres")),
        (references.endpoint, "Web-1/Http.In_1", ("Web-1", "Http.In_1")),
        (references.loopback, "127.0.0.1:5432", HostPort("127.0.0.1", 5432)),
        (references.loopback, "localhost:5432", HostPort("127.0.0.1", 5432)),
        (references.loopback, "[::1]:53", HostPort("::1", 53)),
        (references.resolver, "10.0.0.2:53", HostPort("10.0.0.2", 53)),
        (references.resolver, "[2001:db8::2]:5353", HostPort("2001:db8::2", 5353)),
        (references.lease, "2s", 2.0),
        (references.lease, "1h", 3600.0),
        (references.word, "relay", "relay"),
    ],
)
def test_taken(parse: Callable[[object], Any], written: str, read: object) -> None:
    assert parse(written) == read


@pytest.mark.parametrize(
    ("parse", "written", "said"),
    [
        (references.url, "10.0.9.1:2379", "is not the URL of a registry; write `http://10.0.9.1:2379`"),
        (
            references.url,
            "etcd.example/v3",
            "is not the URL of a registry; write `http://10.0.9.1:2379`, or one like it",
        ),
        (references.url, "http://user:secret@10.0.9.1:2379", "is not the URL"),
        (references.url, "http://10.0.9.1:70000", "no valid port; write 1 to 65535"),
        (references.url, 2379, "is not the URL"),
        (references.file, "hosts", "is not an absolute path; write one that starts with"),
        (references.file, "/", "names no file; write the path of one"),
        (references.file, "/a\nb", "names no file"),
        (references.endpoint, "postgres", "is not an endpoint; write its role and its name"),
        (references.endpoint, "store/postgres/1", "is not an endpoint"),
        (references.loopback, "10.0.0.4:5432", "is open to other machines; write a loopback address: `127.0.0.1:5432`"),
        (references.loopback, "0.0.0.0:5432", "is open to other machines"),
        (references.loopback, 5432, "has no address; write `127.0.0.1:5432`"),
        (references.resolver, "localhost:53", "is not the address of a DNS server; write one such as `10.0.0.2:53`"),
        (references.resolver, "0.0.0.0:53", "is not the address of a DNS server"),
        (references.resolver, "10.0.0.2", "has no port"),
        (references.lease, "1s", "is no lease of etcd's; write whole seconds, `2s` or more"),
        (references.lease, "2500ms", "is no lease"),
        (references.lease, "10", "is not a duration"),
        (references.word, "two words", "is not a name; write one word"),
    ],
)
def test_refused(parse: Callable[[object], Any], written: object, said: str) -> None:
    with pytest.raises(ValueError, match="; ") as caught:
        parse(written)
    assert said in str(caught.value)
