"""What a service's names are answered with: dnspython asks and reads the answers."""

from random import Random
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.reversename
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.document import parse
from relay.config.load import parse_service
from relay.config.roster import Member, Roster
from relay.names.zone import NEGATIVE_MAX_S, Zone, ports_of
from tests.harness import examples

PORTS = {"web": {"http-in": 8080}, "store": {"postgres": 5432, "Admin.v1": 9000}, "idle": {}, "edge": {}}
MEMBERS = (
    Member("web", 0, "10.0.0.4"),
    Member("web", 1, "10.0.0.5"),
    Member("web", 2, "2001:db8::4"),
    Member("store", 0, "10.0.1.4"),
    Member("edge", 0, "198.51.100.10"),
)


def zone(*members: Member, ports: dict[str, dict[str, int]] | None = None, **keys: Any) -> Zone:
    keys = {"address": "127.0.0.153", "serial": 7, "ttl_s": 30.0, **keys}
    return Zone("shop", ports or PORTS, Roster(members or MEMBERS), **keys)


SHOP = zone()


def ask(names: Zone, name: str, kind: str, *, tcp: bool = False, **keys: Any) -> dns.message.Message:
    """The answer as the oracle reads it, after it agrees that it is one."""
    asked = dns.message.make_query(name, kind, **keys)
    answer = names.answer(asked.to_wire(), tcp)
    assert answer is not None
    read = dns.message.from_wire(answer)
    assert asked.is_response(read)
    assert not read.flags & dns.flags.RA
    assert bool(read.flags & dns.flags.AA) == (read.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN))
    return read


def texts(sets: list[dns.rrset.RRset]) -> set[str]:
    return {f"{each.name} {dns.rdatatype.to_text(each.rdtype)} {one}" for each in sets for one in each}


def found(names: Zone, name: str, kind: str, **keys: Any) -> set[str]:
    """What is in the answer section, without the owner."""
    answer = ask(names, name, kind, **keys)
    assert answer.rcode() == dns.rcode.NOERROR
    assert {str(each.name) for each in answer.answer} <= {name}
    return {str(one) for each in answer.answer for one in each}


WEB = "web.shop.internal."
SRV = "_http-in._tcp.web.shop.internal."


def test_a_role() -> None:
    assert found(SHOP, WEB, "A") == {"10.0.0.4", "10.0.0.5"}
    assert found(SHOP, WEB, "AAAA") == {"2001:db8::4"}
    assert found(SHOP, "WEB.Shop.Internal.", "A") == {"10.0.0.4", "10.0.0.5"}
    assert {each.ttl for each in ask(SHOP, WEB, "A").answer} == {30}


def test_each_answer_is_shuffled() -> None:
    def first(names: Zone) -> str:
        packet = dns.message.make_query(WEB, "A").to_wire()
        answer = names.answer(packet, False)
        assert answer is not None
        return ".".join(map(str, answer[len(packet) + 12 : len(packet) + 16]))

    seeded = zone(dice=Random(1))
    assert {first(seeded) for _ in range(50)} == {"10.0.0.4", "10.0.0.5"}


def test_only_the_healthy_are_given_out() -> None:
    assert found(zone(unhealthy={"web_IN_0"}), WEB, "A") == {"10.0.0.5"}
    assert found(zone(unhealthy={"web_IN_0"}), SRV, "SRV") == {
        "0 0 8080 web-1.web.shop.internal.",
        "0 0 8080 web-2.web.shop.internal.",
    }
    assert found(zone(unhealthy={"web_IN_0"}), "web-0.web.shop.internal.", "A") == {"10.0.0.4"}
    busy = zone(Member("web", 0, "10.0.0.4", busy=True), Member("web", 1, "10.0.0.5"))
    assert found(busy, WEB, "A") == {"10.0.0.5"}
    assert found(busy, SRV, "SRV") == {"0 0 8080 web-1.web.shop.internal."}


def test_an_endpoint_that_is_down_on_an_instance() -> None:
    """By its role's name it is not given out, since nobody knows for which port; by another endpoint's name it is."""
    names = zone(Member("store", 0, "10.0.1.4", down=("postgres",)), Member("store", 1, "10.0.1.5"))
    assert found(names, "store.shop.internal.", "A") == {"10.0.1.5"}
    assert found(names, "_postgres._tcp.store.shop.internal.", "SRV") == {"0 0 5432 store-1.store.shop.internal."}
    assert len(found(names, "_admin-v1._tcp.store.shop.internal.", "SRV")) == 2


def test_two_instances_at_one_address_with_a_port_each() -> None:
    names = zone(Member("store", 0, "10.0.1.4", port=6001), Member("store", 1, "10.0.1.4", port=6002))
    asked = dns.message.make_query("store.shop.internal.", "A")
    read = dns.message.from_wire(names.answer(asked.to_wire(), False) or b"", one_rr_per_rrset=True)
    assert [str(one) for each in read.answer for one in each] == ["10.0.1.4"], "a record is there once (RFC 2181, 5)"
    assert found(names, "_postgres._tcp.store.shop.internal.", "SRV") == {
        "0 0 6001 store-0.store.shop.internal.",
        "0 0 6002 store-1.store.shop.internal.",
    }
    assert found(names, "4.1.0.10.in-addr.arpa.", "PTR") == {
        "store-0.store.shop.internal.",
        "store-1.store.shop.internal.",
    }


def test_where_nobody_is_healthy_everybody_is_given_out() -> None:
    names = zone(unhealthy={"web_IN_0", "web_IN_1", "web_IN_2"})
    assert found(names, WEB, "A") == {"10.0.0.4", "10.0.0.5"}
    assert len(found(names, SRV, "SRV")) == 3
    # One healthy instance is enough, of whichever family.
    assert found(zone(unhealthy={"web_IN_0", "web_IN_1"}), WEB, "A") == set()


def test_an_instance() -> None:
    assert found(SHOP, "web-1.web.shop.internal.", "A") == {"10.0.0.5"}
    assert found(SHOP, "WEB-2.web.shop.internal.", "AAAA") == {"2001:db8::4"}
    assert found(SHOP, "edge-0.edge.shop.internal.", "A") == {"198.51.100.10"}


def test_an_endpoint() -> None:
    answer = ask(SHOP, SRV, "SRV", use_edns=0)
    assert texts(answer.answer) == {f"{SRV} SRV 0 0 8080 web-{n}.web.shop.internal." for n in range(3)}
    assert texts(answer.additional) == {
        "web-0.web.shop.internal. A 10.0.0.4",
        "web-1.web.shop.internal. A 10.0.0.5",
        "web-2.web.shop.internal. AAAA 2001:db8::4",
    }
    assert found(SHOP, "_ADMIN-V1._tcp.store.shop.internal.", "SRV") == {"0 0 9000 store-0.store.shop.internal."}


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.id)
def test_whose_address_that_is(member: Member) -> None:
    name = str(dns.reversename.from_address(member.address))
    assert found(SHOP, name, "PTR") == {f"{member.role}-{member.ordinal}.{member.role}.shop.internal."}
    nothing = ask(SHOP, name, "A")
    assert (nothing.answer, nothing.rcode()) == ([], dns.rcode.NOERROR)
    assert str(nothing.authority[0].name) == name


def test_the_apex() -> None:
    assert found(SHOP, "shop.internal.", "SOA") == {
        "ns.shop.internal. hostmaster.shop.internal. 7 1200 180 1209600 5",
    }
    answer = ask(SHOP, "shop.internal.", "NS")
    assert texts(answer.answer) == {"shop.internal. NS ns.shop.internal."}
    assert texts(answer.additional) == {"ns.shop.internal. A 127.0.0.153"}
    assert found(SHOP, "ns.shop.internal.", "A") == {"127.0.0.153"}
    assert found(zone(address="::1"), "ns.shop.internal.", "AAAA") == {"::1"}
    (wrapped,) = found(zone(serial=2**32 + 8), "shop.internal.", "SOA")
    assert wrapped.split()[2] == "8"


def test_a_role_called_ns() -> None:
    names = zone(Member("ns", 0, "10.0.0.9"), ports={"ns": {}})
    assert found(names, "ns.shop.internal.", "A") == {"10.0.0.9"}
    assert texts(ask(names, "shop.internal.", "NS").additional) == {"0ns.shop.internal. A 127.0.0.153"}


@pytest.mark.parametrize(
    ("name", "kind", "rcode"),
    [
        ("idle.shop.internal.", "A", "NOERROR"),  # a role without instances
        ("web-0.web.shop.internal.", "AAAA", "NOERROR"),
        ("web.shop.internal.", "MX", "NOERROR"),
        ("shop.internal.", "A", "NOERROR"),
        ("_tcp.store.shop.internal.", "A", "NOERROR"),  # an empty non-terminal (RFC 8020)
        ("_tcp.store.shop.internal.", "ANY", "NOERROR"),
        ("_tcp.idle.shop.internal.", "SRV", "NXDOMAIN"),
        ("cache.shop.internal.", "A", "NXDOMAIN"),
        ("web-3.web.shop.internal.", "A", "NXDOMAIN"),
        ("x.web-0.web.shop.internal.", "A", "NXDOMAIN"),
        ("_http-in._udp.web.shop.internal.", "SRV", "NXDOMAIN"),
    ],
)
def test_what_is_not_there(name: str, kind: str, rcode: str) -> None:
    answer = ask(SHOP, name, kind)
    assert (dns.rcode.to_text(answer.rcode()), answer.answer) == (rcode, [])
    (soa,) = answer.authority
    assert (str(soa.name), soa.ttl, soa[0].minimum) == ("shop.internal.", NEGATIVE_MAX_S, NEGATIVE_MAX_S)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (".", "NS"),
        ("internal.", "SOA"),
        ("other.internal.", "A"),
        ("web.shop.internal.example.com.", "A"),
        ("notshop.internal.", "A"),
        ("9.9.9.10.in-addr.arpa.", "PTR"),
        ("10.in-addr.arpa.", "PTR"),
        ("1.4.0.0.10.in-addr.arpa.", "PTR"),
        ("shop.internal.", "AXFR"),
        ("shop.internal.", "IXFR"),
    ],
)
def test_what_is_refused(name: str, kind: str) -> None:
    answer = ask(SHOP, name, kind, tcp=kind.endswith("XFR"))
    assert (answer.rcode(), answer.answer, answer.authority) == (dns.rcode.REFUSED, [], [])


def test_another_class_is_refused() -> None:
    asked = dns.message.make_query("version.bind.", "TXT", "CH")
    answer = SHOP.answer(asked.to_wire(), False)
    assert answer is not None
    assert dns.message.from_wire(answer).rcode() == dns.rcode.REFUSED


def test_any_is_answered_with_one_record() -> None:
    answer = ask(SHOP, WEB, "ANY")
    assert texts(answer.answer) == {f'{WEB} HINFO "RFC8482" ""'}


def test_a_later_edns_is_told_ours() -> None:
    asked = dns.message.make_query(WEB, "A", use_edns=1)
    answer = SHOP.answer(asked.to_wire(), False)
    assert answer is not None
    read = dns.message.from_wire(answer)
    assert (read.rcode(), read.edns, read.payload, read.answer) == (dns.rcode.BADVERS, 0, 1232, [])


def test_packets_that_are_no_queries() -> None:
    assert SHOP.answer(b"", False) is None
    asked = dns.message.make_query(WEB, "A")
    asked.flags |= dns.flags.QR
    assert SHOP.answer(asked.to_wire(), True) is None
    formerr = SHOP.answer(bytes(12), False)
    assert formerr is not None
    assert dns.message.from_wire(formerr).rcode() == dns.rcode.FORMERR


def many(count: int) -> Zone:
    return zone(*(Member("web", n, f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}") for n in range(count)))


THOUSAND = many(1000)


@pytest.mark.parametrize(
    ("keys", "limit"),
    [({}, 512), ({"use_edns": 0, "payload": 900}, 900), ({"use_edns": 0, "payload": 4096}, 1232)],
)
@pytest.mark.parametrize(("name", "kind"), [(WEB, "A"), (SRV, "SRV")])
def test_a_large_role_over_udp(name: str, kind: str, keys: dict[str, Any], limit: int) -> None:
    packet = dns.message.make_query(name, kind, **keys).to_wire()
    answer = THOUSAND.answer(packet, False)
    assert answer is not None
    assert limit - 60 < len(answer) <= limit
    read = dns.message.from_wire(answer)
    assert read.flags & dns.flags.TC
    assert len(read.answer[0]) > 3


def test_a_large_role_over_tcp_is_whole() -> None:
    answer = ask(THOUSAND, WEB, "A", tcp=True)
    assert len(answer.answer[0]) == 1000
    assert not answer.flags & dns.flags.TC
    answer = ask(THOUSAND, SRV, "SRV", tcp=True)
    assert len(answer.answer[0]) == 1000
    assert not answer.flags & dns.flags.TC
    by_name = {str(each.name): str(each[0]) for each in answer.additional}
    assert len(by_name) > 100
    for name, address in by_name.items():  # beyond 16 KiB of message too, where no pointer reaches
        assert f"10.0.{int(name[4:].partition('.')[0]) >> 8}.{int(name[4:].partition('.')[0]) & 255}" == address


def test_more_than_a_message_can_hold() -> None:
    names = many(5000)
    answer = names.answer(dns.message.make_query(WEB, "A").to_wire(), True)
    assert answer is not None
    assert 65_500 < len(answer) <= 65_535
    read = dns.message.from_wire(answer)
    assert not read.flags & dns.flags.TC
    assert len(read.answer[0]) > 4000


def test_addresses_of_targets_are_left_out_where_there_is_no_room() -> None:
    names = many(12)
    answer = ask(names, SRV, "SRV", use_edns=0, payload=700)
    assert len(answer.answer[0]) == 12
    assert not answer.flags & dns.flags.TC
    assert len(answer.additional) < 12


def test_names_that_cannot_be() -> None:
    long_role, long_endpoint = "r" * 62, "e" * 63
    names = zone(
        Member("web", 0, "10.0.0.4"),
        Member("Web", 0, "10.0.0.5"),
        Member(long_role, 0, "10.0.0.6"),
        ports={"web": {"in.x": 1, "In-X": 2, "in_x": 3, long_endpoint: 4}, "Web": {}, long_role: {"in": 5}},
    )
    assert names.left_out == (
        "endpoint web/In-X has no name: `_in-x._tcp.web.shop.internal` is another endpoint's; rename one of the two",
        f"endpoint web/{long_endpoint} has no name: `_{long_endpoint}` is longer than 63; shorten its name",
        "role Web has no name: `web.shop.internal` is another role's; rename one of the two",
        f"instance {long_role}_IN_0 has no name: `{long_role}-0` is longer than 63; shorten its role's name",
    )
    assert found(names, "_in-x._tcp.web.shop.internal.", "SRV") == {"0 0 1 web-0.web.shop.internal."}
    assert found(names, "_in_x._tcp.web.shop.internal.", "SRV") == {"0 0 3 web-0.web.shop.internal."}
    assert found(names, WEB, "A") == {"10.0.0.4"}
    assert found(names, f"{long_role}.shop.internal.", "A") == {"10.0.0.6"}
    assert found(names, f"_in._tcp.{long_role}.shop.internal.", "SRV") == set()
    assert ask(names, str(dns.reversename.from_address("10.0.0.6")), "PTR").rcode() == dns.rcode.REFUSED


def test_one_address_of_two_instances() -> None:
    names = zone(Member("web", 0, "10.0.0.4"), Member("store", 0, "10.0.0.4"))
    assert found(names, "4.0.0.10.in-addr.arpa.", "PTR") == {"web-0.web.shop.internal.", "store-0.store.shop.internal."}


def test_of_a_service_file() -> None:
    text = b"""\
version: 1
service: shop
edge: {instances: [198.51.100.10]}
roles:
  web:
    instances: [10.0.0.4]
    endpoints:
      many: {type: internal, port: 8995-8999, target: "127.0.0.1:1"}
"""
    service = parse_service(parse(text, "service.yaml")).value
    assert ports_of(service) == {"web": {"many": 8995}, "edge": {}}
    names = Zone.of_service(service, Roster.of_service(service), address="127.0.0.153", serial=1, ttl_s=0.2)
    assert found(names, "_many._tcp.web.shop.internal.", "SRV") == {"0 0 8995 web-0.web.shop.internal."}
    assert found(names, "edge-0.edge.shop.internal.", "A") == {"198.51.100.10"}
    assert ask(names, WEB, "A").answer[0].ttl == 0, "less than a second is nothing that DNS can say"


@examples(200)
@given(packet=st.binary(max_size=100), tcp=st.booleans(), data=st.data())
def test_no_packet_makes_it_raise(packet: bytes, tcp: bool, data: st.DataObject) -> None:
    SHOP.answer(packet, tcp)
    asked = bytearray(dns.message.make_query(data.draw(st.sampled_from((WEB, SRV, "."))), "ANY", use_edns=0).to_wire())
    for _ in range(data.draw(st.integers(1, 3))):
        asked[data.draw(st.integers(0, len(asked) - 1))] = data.draw(st.integers(0, 255))
    answer = SHOP.answer(bytes(asked), tcp)
    if answer is not None:
        dns.message.from_wire(answer)


@examples(100)
@given(
    kind=st.sampled_from(("A", "AAAA", "SRV", "PTR", "ANY", "SOA", "NS")),
    labels=st.lists(st.sampled_from(("web", "web-0", "_tcp", "_http-in", "ns", "x")), max_size=3),
    payload=st.integers(0, 2000),
    tcp=st.booleans(),
)
def test_answers_fit_and_can_be_read(kind: str, labels: list[str], payload: int, tcp: bool) -> None:
    asked = dns.message.make_query(".".join((*labels, "shop.internal.")), kind, use_edns=0, payload=payload)
    answer = THOUSAND.answer(asked.to_wire(), tcp)
    assert answer is not None
    assert len(answer) <= (65_535 if tcp else min(max(payload, 512), 1232))
    assert asked.is_response(dns.message.from_wire(answer))
