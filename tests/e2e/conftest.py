"""Targets for every test of a whole daemon: simple ones, and real programs."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from relay import ENGINE, engine
from tests.e2e import programs
from tests.e2e.installed import Installed
from tests.harness import HANG_S, Echo

_TRACED: Final = str(
    Path(__file__).parents[2] / "build/traced"
)  # compiled so that it can be told where it is: setup.py


@pytest.fixture(params=[_TRACED, "interpreted"] if ENGINE.compiled else ["interpreted"], ids=os.path.basename)
def walking(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment of a daemon whose workers are to walk (faults.py), in each form of the engine that can."""
    return {engine.VARIABLE: str(request.param)}


@pytest.fixture
def echo() -> Iterator[Echo]:
    """A target that sends back what it gets."""
    with Echo() as target:
        yield target


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A target in the test's own hands."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(HANG_S)
        yield made


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    """A copy of the package, for a daemon of the test's own."""
    directory = tmp_path / "installed"
    directory.mkdir()
    return Installed(directory)


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[programs.Nginx]:
    directory = tmp_path / "nginx"
    directory.mkdir()
    with programs.nginx(directory) as server:
        yield server


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[programs.Redis]:
    directory = tmp_path / "redis"
    directory.mkdir()
    with programs.redis(directory) as server:
        yield server


@pytest.fixture(scope="module")
def postgres() -> Iterator[programs.Postgres]:
    # Not below tmp_path: its parents are closed to the user that PostgreSQL runs as.
    with (
        tempfile.TemporaryDirectory(prefix="relay-postgres-") as directory,
        programs.postgres(Path(directory)) as server,
    ):
        yield server


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[programs.Sshd]:
    directory = tmp_path / "sshd"
    directory.mkdir()
    with programs.sshd(directory) as server:
        yield server
