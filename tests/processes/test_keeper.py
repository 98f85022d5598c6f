"""What the keeper makes of messages. The end-to-end tests run a real one."""

import os
from types import SimpleNamespace
from typing import Any, cast

from relay.processes.keeper import Keeper
from tests.ledger.rig import new_ledger


def test_what_the_replaced_program_still_says_is_let_be() -> None:
    """A roster may come into force at that moment, in a form that the new program cannot read."""
    with new_ledger() as ledger:
        stands = object()
        keeper = Keeper(cast(Any, SimpleNamespace(ledger=ledger, log=None, snapshot=stands)), lambda _: None)
        keeper._control.replaced = True
        for op in ("snapshot", "listeners"):
            of_old_form = os.memfd_create("snapshot")
            keeper._on_message({"op": op, "generation": 7, "addresses": ["127.0.0.1:1"]}, [of_old_form])
            assert not os.path.exists(f"/proc/self/fd/{of_old_form}"), "it is closed all the same"
        assert keeper._state.snapshot is stands
        for fd in (keeper._wake_r, keeper._wake_w):
            os.close(fd)
