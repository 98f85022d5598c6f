"""Failures of many dials at once: one outage, one ejection."""

from typing import Final

from relay.config.snapshot import TargetRow
from relay.ledger.layout import TargetCount
from relay.targets import why
from relay.targets.pool import EJECT_S, Pool
from tests.config.rig import endpoint_row
from tests.ledger.rig import new_ledger

NOW_NS: Final = 10**12
SOURCE: Final = bytes([203, 0, 113, 9])


def test_dials_that_fail_together_eject_once_and_for_the_first_time() -> None:
    targets = tuple(
        TargetRow(f"10.0.0.{n}:80", host=f"10.0.0.{n}", port=80, slot=n, instance=f"web_IN_{n}") for n in range(2)
    )
    with new_ledger() as ledger:
        pool = Pool(endpoint_row(listen_port=80, targets=targets, distribution="source-ip"), ledger.worker(0))

        def first(now_ns: int) -> int | None:
            return pool.choose(SOURCE, 5, 80, 0, now_ns)

        home = first(NOW_NS)
        assert home is not None
        for n in range(50):
            pool.failed(home, NOW_NS + n, why.RESET)
        back_ns = NOW_NS + int(EJECT_S[0] * 1e9)
        assert first(back_ns - 1) == 1 - home
        assert first(back_ns) == home
        pool.failed(home, back_ns, why.RESET)
        pool.failed(home, back_ns + 1, why.RESET)
        assert first(back_ns + int(EJECT_S[1] * 1e9) - 1) == 1 - home
        assert first(back_ns + int(EJECT_S[1] * 1e9)) == home
        assert ledger.target_total(home, TargetCount.FAILURES) == 52
        assert ledger.target_total(home, TargetCount.EJECTIONS) == 2
