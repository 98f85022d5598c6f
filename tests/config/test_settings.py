"""The settings: defaults, and what hangs together between keys."""

from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from pydantic import ValidationError

from relay.config.schema import settings_schema
from relay.config.settings import Registry, Settings
from relay.config.values import HostPort


def settings(**keys: Any) -> Settings:
    return Settings.model_validate(keys)


def registry(**keys: str) -> dict[str, Any]:
    return {"registry": {"etcd": ["https://10.0.9.1:2379"], **keys}}


def test_the_defaults() -> None:
    made = settings()
    assert (made.id, made.role, made.address, made.registry) == (None, None, None, None)
    assert (made.names.listen, made.names.hosts, made.names.ttl_s) == (None, None, 5.0)
    assert (made.admin.listen, made.machine_id) == (None, "/etc/machine-id")
    registry = Registry.model_validate({"etcd": ["http://10.0.9.1:2379"]})
    assert (registry.ttl_s, registry.hold_s, registry.state) == (10.0, 3600.0, "/var/lib/relay")


def test_every_key_of_the_fleet() -> None:
    keys: dict[str, Any] = {
        "role": "web",
        "machine_id": "/run/id",
        "admin": {"listen": "127.0.0.1:9465"},
        "names": {"listen": "127.0.0.153:53", "hosts": "/etc/hosts", "ttl": "1s"},
        "registry": {
            "etcd": ["https://10.0.9.1:2379/", "https://10.0.9.2:2379"],
            "ttl": "5s",
            "hold": "2h",
            "username": "relay",
            "password_file": "/etc/relay/password",
            "ca": "/ca",
            "cert": "/cert",
            "key": "/key",
            "state": "/var/lib/relay/",
        },
    }
    jsonschema.Draft7Validator(settings_schema()).validate(keys)
    made = settings(**keys)
    assert made.admin.listen == HostPort("127.0.0.1", 9465)
    assert made.names.listen == HostPort("127.0.0.153", 53)
    assert made.registry is not None
    assert made.registry.etcd == ("https://10.0.9.1:2379", "https://10.0.9.2:2379")
    assert (made.registry.ttl_s, made.registry.hold_s, made.registry.state) == (5.0, 7200.0, "/var/lib/relay")


@pytest.mark.parametrize(
    ("keys", "place", "said"),
    [
        ({"registry": {}}, "registry.etcd", "is missing; write `etcd: "),
        ({"registry": {"etcd": []}}, "registry.etcd", "is empty; write at least one"),
        ({"registry": {"etcd": ["http://a:1"], "directory": "/x"}}, "registry.etcd", "there is one registry"),
        ({"registry": {"directory": "x"}}, "registry.directory", "is not an absolute path"),
        ({"admin": {"listen": "10.0.0.4:9465"}}, "admin.listen", "is open to other machines"),
        ({"names": {"listen": "0.0.0.0:53"}}, "names.listen", "is open to other machines"),
        ({"names": {"listen": "127.0.0.53:53"}}, "names.listen", "is systemd-resolved's own; write another one"),
        (registry(username="relay"), "registry.password_file", "is missing beside `username`"),
        (registry(password_file="/x"), "registry.password_file", "is of no use without `username`"),
        (registry(cert="/x"), "registry.key", "is missing beside `cert`"),
        (registry(key="/x"), "registry.key", "is of no use without `cert`"),
    ],
)
def test_what_does_not_go(keys: dict[str, Any], place: str, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        settings(**keys)
    [error] = caught.value.errors()
    assert ".".join(map(str, error["loc"])) == place
    assert said in error["msg"]
