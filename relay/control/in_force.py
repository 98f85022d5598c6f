"""What stands: the service file and the snapshot compiled from it. Control replaces it; everybody else reads it."""

from dataclasses import dataclass

from relay.config.load import Loaded
from relay.config.model import Service
from relay.config.roster import Roster
from relay.config.snapshot import Snapshot


@dataclass(slots=True)
class InForce:
    """`loaded` is the file with its warnings and its text; `snapshot` is what this machine does by it."""

    loaded: Loaded[Service]
    snapshot: Snapshot

    @property
    def service(self) -> Service:
        """What the file declares."""
        return self.loaded.value

    @property
    def roster(self) -> Roster:
        """Who is there."""
        return self.snapshot.roster

    def counted(self) -> dict[str, list[int]]:
        """Of each counted role, how many instances are there, and how many there may be."""
        service = self.service
        return {name: [len(self.roster.of(name)), service.roles[name].count] for name in service.counted}
