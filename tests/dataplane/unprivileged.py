"""Programs that run as nobody."""

import os
from typing import Final

NOBODY: Final = 65534


def as_nobody() -> tuple[str, ...]:
    """The command that runs another one as nobody. Empty where the tests do not run as root: then they are ordinary already.

    The interpreter and the sources may stand where only root can go, such as below /root. So one capability stays:
    reading files. The kernel's pipe limits are lifted by two others only (CAP_SYS_RESOURCE, CAP_SYS_ADMIN).
    """
    if os.getuid() != 0:
        return ()
    keep = "-all,+dac_read_search"
    identity = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    return ("setpriv", *identity, f"--inh-caps={keep}", f"--ambient-caps={keep}", f"--bounding-set={keep}")
