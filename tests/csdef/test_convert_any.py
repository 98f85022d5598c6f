"""Any service as a definition, and any bytes: it is imported, or every problem is told."""

import os
import re
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.config import model
from relay.config.load import Loaded, load_service
from relay.csdef.convert import Imported, import_files
from relay.errors import ConfigError, Problem
from tests.csdef import PATIENT
from tests.csdef.comparison import BareComparison, Comparison
from tests.csdef.services import CORPUS, SCHEMA, Service, Xml, services, write

EXAMPLES = int(os.environ.get("RELAY_FUZZ_EXAMPLES", "100"))  # a long run sets more

pytestmark = pytest.mark.timeout(300 + EXAMPLES)


@settings(PATIENT, max_examples=EXAMPLES)
@given(services(), st.integers(0, 2**32))
def test_round_trip(folder: Path, service: Service, seed: int) -> None:
    found, loaded = there_and_back(folder, service, seed, bare=False)
    assert [each for each in loaded.warnings if "host bits" in each.what] == []
    Comparison(service, loaded.value, [note.text for note in found.notes if note.kind == "left out"]).run()


@settings(PATIENT, max_examples=EXAMPLES)
@given(services(), st.integers(0, 2**32))
def test_round_trip_of_machines_without_relay(folder: Path, service: Service, seed: int) -> None:
    found, loaded = there_and_back(folder, service, seed, bare=True)
    assert [each for each in loaded.warnings if "host bits" in each.what] == []
    BareComparison(service, loaded.value, [note.text for note in found.notes if note.kind == "left out"]).run()


def there_and_back(folder: Path, service: Service, seed: int, *, bare: bool) -> tuple[Imported, Loaded[model.Service]]:
    """What the service's two files become, and what relay reads in that."""
    xml = Xml(service, Random(seed))
    files = write(folder, xml.definition(), xml.configuration() if service.has_configuration else None)
    found = import_files(*files, bare=bare)
    file = folder / "service.yaml"
    file.write_text(found.text, encoding="utf-8")
    loaded = load_service(str(file))
    SCHEMA.validate(loaded.document.data)
    return found, loaded


TOKENS = [
    *(
        b"<",
        b">",
        b"/>",
        b"</",
        b'"',
        b"'",
        b"&",
        b"&#0;",
        b"&#10;",
        b"&lt;",
        b"]]>",
        b"<![CDATA[",
        b"<!--",
        b"-->",
        b"<?",
        b"?>",
    ),
    *(
        b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
        b"xmlns=''",
        b'xmlns:a="b"',
        b"a:",
        b"\xff",
        b"\0",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
    ),
    *(
        b'"*"',
        b'"0"',
        b'"65535"',
        b'"65536"',
        b'"-1"',
        b'"udp"',
        b'"any"',
        b'"10000"',
        b'""',
        b'"\xe2\x80\x9c"',
        b"\r\n",
        b" ",
    ),
    *(
        b"InputEndpoint",
        b"InternalEndpoint",
        b"InstanceInputEndpoint",
        b"FixedPortRange",
        b"AllowAllTraffic",
        b"Rule",
        b"Role",
    ),
]


def check(folder: Path, definition: bytes, configuration: bytes | None) -> None:
    """A file that relay reads without an error, or problems that can be printed; nothing else may come of any bytes."""
    files = write(folder, definition, configuration)
    for problem in [*problems_of(folder, *files, bare=False), *problems_of(folder, *files, bare=True)]:
        assert str(problem).isprintable()
        assert problem.what
        assert problem.fix


def problems_of(folder: Path, definition: str, configuration: str | None, *, bare: bool) -> list[Problem]:
    """What is wrong with the two files; nothing, and what they become is read."""
    try:
        found = import_files(definition, configuration, bare=bare)
    except ConfigError as error:
        return error.problems
    file = folder / "service.yaml"
    file.write_text(found.text, encoding="utf-8")
    load_service(str(file))
    return []


@settings(PATIENT, max_examples=EXAMPLES)
@given(st.binary(max_size=300), st.none() | st.binary(max_size=300))
def test_any_bytes(folder: Path, definition: bytes, configuration: bytes | None) -> None:
    check(folder, definition, configuration)


def pieces(content: bytes) -> list[bytes]:
    """A file's text cut where its parts meet: so that a mutation is more often still XML."""
    return re.findall(rb'\s+|"[^"]*"|[<>=/]|[^\s"<>=/]+', content)


@st.composite
def mutated(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """A file of the corpus after some accidents."""
    parts = pieces(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(0, 6))):
        at, to = sorted((draw(st.integers(0, len(parts))), draw(st.integers(0, len(parts)))))
        to = min(to, at + draw(st.sampled_from([0, 1, 1, 1, 3, 12, len(parts)])))
        from_at = draw(st.integers(0, len(parts)))
        new = draw(
            st.sampled_from([[], parts[at:to] * 2, [draw(st.sampled_from(TOKENS))], parts[from_at : from_at + 5]])
        )
        parts[at:to] = new
    return b"".join(parts)


DEFINITIONS = [file.read_bytes() for file in sorted(CORPUS.glob("*.csdef")) if file.stat().st_size < 4_000]


CONFIGURATIONS = [file.read_bytes() for file in sorted(CORPUS.glob("*.cscfg")) if file.stat().st_size < 4_000]


@settings(PATIENT, max_examples=EXAMPLES * 2)
@given(mutated(DEFINITIONS), st.none() | mutated(CONFIGURATIONS))
def test_files_after_accidents(folder: Path, definition: bytes, configuration: bytes | None) -> None:
    check(folder, definition, configuration)


@settings(PATIENT, max_examples=EXAMPLES)
@given(services(), st.integers(0, 2**32), st.data())
def test_services_after_accidents(folder: Path, service: Service, seed: int, data: st.DataObject) -> None:
    xml = Xml(service, Random(seed))
    check(folder, data.draw(mutated([xml.definition()])), data.draw(mutated([xml.configuration()])))
