"""Which data paths the suite runs over: RELAY_DATA_PATHS=relay,several,bare,direct,edge (one or several).

Without it: `relay` and `direct`, and the others in the modules where they have most to get wrong. All of the suite over
each of them takes daemons more for every set of keys, and minutes. A bare instance is at a TCP address always.
"""

import os
from collections.abc import Iterator
from typing import Final

import pytest

from tests.conformance.paths import DataPath, make
from tests.conformance.peers import Site, Target
from tests.conftest import Daemons

_ASKED: Final = os.environ.get("RELAY_DATA_PATHS")
_CHOSEN: Final = [name.strip() for name in (_ASKED or "relay,direct,edge,several,bare").split(",")]
_USUAL: Final = ("relay", "direct")
_OTHERS_UNASKED: Final = (
    "test_backpressure",
    "test_resets",
    "test_streams",
)  # bytes, FIN and reset, the memory plateau


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`path`: every data path chosen; `forwarder`: those of them that have a process between client and target."""
    module = metafunc.module.__name__.rpartition(".")[2]
    names = [name for name in _CHOSEN if _ASKED or name in _USUAL or module in _OTHERS_UNASKED]
    if "path" in metafunc.fixturenames:
        metafunc.parametrize("path", names, indirect=True)
    if "forwarder" in metafunc.fixturenames:
        metafunc.parametrize("forwarder", [name for name in names if name != "direct"], indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """There is no such thing as a bare instance at a Unix path."""
    here = f"{__name__.rpartition('.')[0]}."
    items[:] = [
        item
        for item in items
        if not (isinstance(item, pytest.Function) and item.module.__name__.startswith(here) and _is_none(item.name))
    ]


def _is_none(name: str) -> bool:
    test, _, parameters = name.partition("[")
    return "bare" in parameters and ("unix" in parameters or "unix" in test)


@pytest.fixture(scope="session")
def data_paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, DataPath]]:
    """The chosen data paths by name; what they started ends with the session."""
    daemons = Daemons(tmp_path_factory.mktemp("conformance"))
    try:
        yield {name: make(name, daemons) for name in _CHOSEN}
    finally:
        daemons.end()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Where all targets stand."""
    return Site.within(tmp_path_factory.mktemp("target"))


@pytest.fixture
def path(request: pytest.FixtureRequest, data_paths: dict[str, DataPath]) -> DataPath:
    """A data path."""
    return data_paths[request.param]


@pytest.fixture
def forwarder(request: pytest.FixtureRequest, data_paths: dict[str, DataPath]) -> DataPath:
    """A data path that forwards: for what has no meaning without."""
    return data_paths[request.param]


@pytest.fixture(params=["tcp", "unix"])
def target(request: pytest.FixtureRequest, site: Site) -> Iterator[Target]:
    """A listening target, on TCP and then on a Unix socket."""
    with Target(site, request.param) as made:
        yield made


@pytest.fixture
def tcp_target(site: Site) -> Iterator[Target]:
    """A listening target on TCP: for resets, which Unix sockets do not have."""
    with Target(site, "tcp") as made:
        yield made


@pytest.fixture
def narrow_target(site: Site) -> Iterator[Target]:
    """As `tcp_target`, with the smallest receive buffers, so that little fits between relay and it."""
    with Target(site, "tcp", rcvbuf_bytes=4096) as made:
        yield made


@pytest.fixture
def unix_target(site: Site) -> Iterator[Target]:
    """A listening target on a Unix socket."""
    with Target(site, "unix") as made:
        yield made
