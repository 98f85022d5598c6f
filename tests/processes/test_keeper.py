"""What the keeper makes of messages. The end-to-end tests run a real one."""

import os
from types import SimpleNamespace
from typing import Any, cast

from relay.kernel import channel
from relay.processes.child import Phase
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


def test_a_reload_is_kept_for_the_control_that_can_do_it() -> None:
    """The one that is replaced says that it cannot: then it is the next one's, and is asked for once."""
    mine, controls = channel.pair()
    with new_ledger() as ledger, mine, controls:
        keeper = Keeper(cast(Any, SimpleNamespace(ledger=ledger, log=None, keeper_end=mine)), lambda _: None)
        keeper._control.replaced = True
        keeper._on_message({"op": "reload"}, [])
        keeper._have_reloaded()
        assert channel.receive(controls) is None
        keeper._control.replaced = False
        keeper._have_reloaded()
        keeper._have_reloaded()
        assert channel.receive(controls) == ({"op": "reload"}, [])
        assert channel.receive(controls) is None
        for fd in (keeper._wake_r, keeper._wake_w):
            os.close(fd)


def test_who_asks_for_an_upgrade_too_early_is_told_so() -> None:
    mine, controls = channel.pair()
    with new_ledger() as ledger, mine, controls:
        keeper = Keeper(cast(Any, SimpleNamespace(ledger=ledger, log=None, keeper_end=mine)), lambda _: None)
        keeper._phase = Phase.READY
        keeper._workers[0].successor = 7
        keeper._on_message({"op": "upgrade"}, [os.memfd_create("trial")])
        why = "worker-0 is just being started; nothing has changed: upgrade again"
        assert channel.receive(controls) == ({"op": "failed", "message": why}, [])
        for fd in (keeper._wake_r, keeper._wake_w):
            os.close(fd)
