"""What names something elsewhere: taken as it is meant, or refused with what to write."""

from collections.abc import Callable
from typing import Any

import pytest

from relay.config import places
from relay.config.values import HostPort


@pytest.mark.parametrize(
    ("parse", "written", "read"),
    [
        (places.url, "http://10.0.9.1:2379", "http://10.0.9.1:2379"),
        (places.url, "https://etcd-0.example:2379/", "https://etcd-0.example:2379"),
        (places.url, "http://[2001:db8::1]:2379", "http://[2001:db8::1]:2379"),
        (places.file, "/etc/hosts", "/etc/hosts"),
        (places.file, "/var/lib/relay/", "/var/lib/relay"),
        (places.endpoint, "store/postgres", ("store", "postgres")),
        (places.endpoint, "Web-1/Http.In_1", ("Web-1", "Http.In_1")),
        (places.loopback, "127.0.0.1:5432", HostPort("127.0.0.1", 5432)),
        (places.loopback, "localhost:5432", HostPort("127.0.0.1", 5432)),
        (places.loopback, "[::1]:53", HostPort("::1", 53)),
        (places.lease, "2s", 2.0),
        (places.lease, "1h", 3600.0),
        (places.word, "relay", "relay"),
    ],
)
def test_taken(parse: Callable[[object], Any], written: str, read: object) -> None:
    assert parse(written) == read


@pytest.mark.parametrize(
    ("parse", "written", "said"),
    [
        (places.url, "10.0.9.1:2379", "is not the URL of a registry; write `http://10.0.9.1:2379`"),
        (places.url, "etcd.example/v3", "is not the URL of a registry; write `http://10.0.9.1:2379`, or one like it"),
        (places.url, "http://user:secret@10.0.9.1:2379", "is not the URL"),
        (places.url, "http://10.0.9.1:70000", "no valid port; write 1 to 65535"),
        (places.url, 2379, "is not the URL"),
        (places.file, "hosts", "is not an absolute path; write one that starts with"),
        (places.file, "/", "names no file; write the path of one"),
        (places.file, "/a\nb", "names no file"),
        (places.endpoint, "postgres", "is not an endpoint; write its role and its name"),
        (places.endpoint, "store/postgres/1", "is not an endpoint"),
        (places.loopback, "10.0.0.4:5432", "is open to other machines; write a loopback address: `127.0.0.1:5432`"),
        (places.loopback, "0.0.0.0:5432", "is open to other machines"),
        (places.loopback, 5432, "has no address; write `127.0.0.1:5432`"),
        (places.lease, "1s", "is no lease of etcd's; write whole seconds, `2s` or more"),
        (places.lease, "2500ms", "is no lease"),
        (places.lease, "10", "is not a duration"),
        (places.word, "two words", "is not a name; write one word"),
    ],
)
def test_refused(parse: Callable[[object], Any], written: object, said: str) -> None:
    with pytest.raises(ValueError, match="; ") as caught:
        parse(written)
    assert said in str(caught.value)
