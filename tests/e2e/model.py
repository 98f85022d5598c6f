"""A service that changes at random and stays right, and the connections that go through it."""

import contextlib
import copy
import random
from collections.abc import Callable
from typing import Any, Final

from tests.envelope import reference
from tests.harness import dial

ROLE: Final = "web"  # the role of the one instance that is really there
OTHERS: Final = ("app", "job")  # roles of which the file knows the addresses: clients have them
SOURCES: Final = [f"127.0.{net}.{host}" for net in range(16, 20) for host in range(1, 9)]
# Each holds some of the sources: one, one network of them, half of them, all.
NETWORKS: Final = [
    *SOURCES,
    *(f"127.0.{net}.{host}/24" for net in range(16, 20) for host in (0, 5)),
    *("127.0.16.0/23", "127.0.18.0/23", "127.0.16.0/22", "127.0.0.0/8", "0.0.0.0/0", "::/0"),
]
NAMES: Final = "abcdefgh"
LISTS: Final = ("office", "partners")
PORTS: Final = 40


class World:
    """The service file's data, which `change` changes. Its ports are the `PORTS` from `first_port` on, at one of `hosts`."""

    def __init__(self, chance: random.Random, hosts: tuple[str, str], first_port: int, target: str) -> None:
        self._chance = chance
        self.hosts = hosts
        self._target = target
        self.ports = range(first_port, first_port + PORTS)
        clients = chance.sample(SOURCES, 8)
        self.service: dict[str, Any] = {
            "version": 1,
            "service": "model",
            "access_lists": {name: self._rules() for name in LISTS},
            "roles": {
                ROLE: {"instances": [hosts[0]], "endpoints": {}},
                **{role: {"instances": clients[n::2]} for n, role in enumerate(OTHERS)},
            },
        }
        for name in NAMES[:5]:
            self._endpoints[name] = self._endpoint()

    @property
    def host(self) -> str:
        """Where the instance listens."""
        return str(self.service["roles"][ROLE]["instances"][0])

    @property
    def _endpoints(self) -> dict[str, Any]:
        endpoints: dict[str, Any] = self.service["roles"][ROLE]["endpoints"]
        return endpoints

    def endpoints(self) -> list[str]:
        """Every endpoint that there is, as role/name."""
        return reference.endpoints(self.service, ROLE)

    def listening(self, endpoint: str) -> range:
        """The ports of an endpoint."""
        first, _, last = str(reference.find(self.service, endpoint)["port"]).partition("-")
        return range(int(first), int(last or first) + 1)

    def allows(self, endpoint: str, source: str) -> bool:
        """Whether the file as it now is lets this source connect."""
        return endpoint in self.endpoints() and reference.lets_in(self.service, endpoint, source)

    def change(self) -> list[str]:
        """Change one to three things, or nothing; what was done."""
        self.service = copy.deepcopy(self.service)
        ways: list[Callable[[], str]] = [
            *(self._rule, self._rule, self._shared, self._from, self._roster, self._roster),
            *(self._open, self._close, self._move, self._swap, self._retype, self._readdress, self._audit, self._audit),
        ]
        return [way() for way in self._chance.sample(ways, self._chance.choice([0, 1, 1, 1, 2, 2, 3]))]

    # --- what may change ----------------------------------------------------------------------------------------

    def _rule(self) -> str:
        """A rule more, a rule less, or other rules."""
        if not (name := self._some("input")):
            return self._open()
        declared = self._endpoints[name]
        rules = declared.get("access", [])
        if isinstance(rules, str) or self._chance.random() < 0.3:
            declared["access"] = self._access()
        elif rules and self._chance.random() < 0.5:
            del rules[self._chance.randrange(len(rules))]
        else:
            declared["access"] = rules
            rules.insert(self._chance.randint(0, len(rules)), self._one_rule())
        return f"rules of {name}"

    def _shared(self) -> str:
        name = self._chance.choice(LISTS)
        self.service["access_lists"][name] = self._rules()
        return f"list {name}"

    def _from(self) -> str:
        if not (name := self._some("internal")):
            return self._open()
        self._endpoints[name].pop("from", None)
        self._endpoints[name] |= self._admitted()
        return f"from of {name}"

    def _roster(self) -> str:
        """An instance of another role comes or goes."""
        instances = self.service["roles"][self._chance.choice(OTHERS)]["instances"]
        if instances and self._chance.random() < 0.6:
            return f"without {instances.pop(self._chance.randrange(len(instances)))}"
        taken = reference.roster(self.service).values()
        instances.append(self._chance.choice([source for source in SOURCES if source not in taken]))
        return f"with {instances[-1]}"

    def _open(self) -> str:
        if not (free := [name for name in NAMES if name not in self._endpoints]):
            return self._close()
        name = self._chance.choice(free)
        self._endpoints[name] = self._endpoint()
        return f"open {name}"

    def _close(self) -> str:
        if len(self._endpoints) < 2:
            return self._open()
        del self._endpoints[name := self._some()]
        return f"close {name}"

    def _move(self) -> str:
        name = self._some()
        self._endpoints[name] |= self._at(self._endpoints[name]["type"], self._free())
        return f"move {name}"

    def _swap(self) -> str:
        """Two endpoints change ports: what was dialled for one is the other's."""
        one, other = self._some(), self._some()
        ports = [self._endpoints[name]["port"] for name in (one, other)]
        for name, port in ((one, ports[1]), (other, ports[0])):
            self._endpoints[name] |= self._at(self._endpoints[name]["type"], port)
        return f"swap {one} and {other}"

    def _retype(self) -> str:
        """An input endpoint becomes an internal one, or the other way round, under the same name."""
        name = self._some()
        kind = "internal" if self._endpoints[name]["type"] == "input" else "input"
        self._endpoints[name] = self._endpoint(kind, self._endpoints[name]["port"])
        return f"{name} becomes {kind}"

    def _audit(self) -> str:
        """An endpoint whose envelope is enforced only counts from now on, or the other way round."""
        audited = [name for name, keys in self._endpoints.items() if keys.get("enforce") == "audit"]
        name = self._chance.choice(audited) if audited else self._some()
        self._endpoints[name]["enforce"] = "strict" if audited else "audit"
        return f"{name} is {self._endpoints[name]['enforce']}"

    def _readdress(self) -> str:
        """The instance moves to its other address, and every listening socket with it."""
        self.service["roles"][ROLE]["instances"] = [self.hosts[self.host == self.hosts[0]]]
        return f"to {self.host}"

    # --- parts ----------------------------------------------------------------------------------------------------

    def _some(self, kind: str = "") -> str:
        """One of the endpoints, of that kind if given; none: an empty string."""
        names = [name for name, keys in self._endpoints.items() if kind in ("", keys["type"])]
        return self._chance.choice(names) if names else ""

    def _endpoint(self, kind: str = "", port: int | str | None = None) -> dict[str, Any]:
        """A new endpoint, of any kind and at any place unless they are given."""
        kind = kind or self._chance.choice(["input", "internal"])
        own: dict[str, Any] = {"access": self._access()} if kind == "input" else self._admitted()
        return {"type": kind, "target": self._target, **self._at(kind, port or self._free()), **own}

    @staticmethod
    def _at(kind: str, port: int | str) -> dict[str, Any]:
        """The keys of its place. The public port of an input endpoint is its first one."""
        return {"port": port} | ({"public_port": int(str(port).partition("-")[0])} if kind == "input" else {})

    def _free(self) -> int | str:
        """A port, or a few in a row, that no endpoint has."""
        taken = {port for name in self.endpoints() for port in self.listening(name)}
        count = self._chance.choice([1, 1, 1, 2, 3])
        firsts = [port for port in self.ports[: 1 - count or None] if taken.isdisjoint(range(port, port + count))]
        first = self._chance.choice(firsts)
        return first if count == 1 else f"{first}-{first + count - 1}"

    def _admitted(self) -> dict[str, Any]:
        roles = [ROLE, *OTHERS]
        return {} if self._chance.random() < 0.3 else {"from": self._chance.sample(roles, self._chance.randint(1, 2))}

    def _access(self) -> list[dict[str, str]] | str:
        return self._chance.choice(LISTS) if self._chance.random() < 0.3 else self._rules()

    def _rules(self) -> list[dict[str, str]]:
        return [self._one_rule() for _ in range(self._chance.choice([0, 1, 2, 2, 3, 5]))]

    def _one_rule(self) -> dict[str, str]:
        return {self._chance.choice(["permit", "deny"]): self._chance.choice(NETWORKS)}


class Connection:
    """A client's connection from `source` to `endpoint`, and what it was promised: every byte comes back."""

    def __init__(self, endpoint: str, source: str, host: str, port: int) -> None:
        self.endpoint = endpoint
        self.source = source
        self.sock = dial(port, host=host, source=source)
        self._owed = b""

    def send(self, data: bytes) -> None:
        """Send, and read nothing yet."""
        self.sock.sendall(data)
        self._owed += data

    def settle(self) -> bool:
        """Read what is owed; whether it came back as it was sent."""
        back = b""
        while len(back) < len(self._owed) and (part := self.sock.recv(len(self._owed) - len(back))):
            back += part
        owed, self._owed = self._owed, b""
        return back == owed

    def is_reset(self, timeout_s: float) -> bool:
        """Whether it is reset in that time, with nothing before that but what is owed."""
        self.sock.settimeout(timeout_s)
        back = b""
        with contextlib.suppress(TimeoutError, BlockingIOError):
            try:
                while part := self.sock.recv(65536):
                    back += part
            except ConnectionResetError:
                return self._owed.startswith(back)
        return False
