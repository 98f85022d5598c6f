"""What a control process begins with."""

import socket
from dataclasses import dataclass

from relay.config.load import Loaded
from relay.config.model import Service
from relay.config.settings import Settings
from relay.config.snapshot import Snapshot
from relay.control.reload import ConfigFiles
from relay.ledger.ledger import Ledger


@dataclass(frozen=True, slots=True)
class ControlInherits:
    """What the keeper gives a new control process."""

    files: ConfigFiles
    settings: Settings
    snapshot: Snapshot
    ledger: Ledger
    keeper: socket.socket
    workers: tuple[socket.socket, ...]
    log_sink: socket.socket
    log_source: socket.socket
    listeners: dict[str, socket.socket]  # by what is served there: admin, metrics, discovery
    service: Loaded[Service] | None = None  # as the keeper has read it, if it has; another one may be in force by now
    crashes: int = 0  # times in a row that it has ended at its start
