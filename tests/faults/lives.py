"""More lives of a node: see `tests.faults.nodes`."""

import time

from tests.faults.ledger import Ledger
from tests.faults.nodes import Spec, close, sample, wait_until_flushed

STOP = "stop"
"""File in the folder of the ledgers that tells a node to end."""
LONGEST_LOG = 1.0
"""Of one `log()`, s: one that waited for the network or the disk would take ten times as long."""
LONGEST_RECOVERY = 55.0
"""From the end of the last fault until everything is committed, s."""


def log_until_told(spec: Spec) -> None:
    """The life of a node that logs until a file says stop; no `log()` may ever take long."""
    ledger = Ledger(spec.ledgers, spec.name)
    log = spec.logger()
    number, slowest = 0, 0.0
    while not (spec.ledgers / STOP).exists():
        ledger.will_log(number + 1)
        before = time.perf_counter()
        log(sample(ledger.image_id(number)))
        slowest = max(slowest, time.perf_counter() - before)
        number += 1
        if number % 10 == 0:
            wait_until_flushed(log)
            ledger.has_spooled(number)
        time.sleep(spec.pause)
    assert slowest < LONGEST_LOG, slowest
    wait_until_flushed(log, LONGEST_RECOVERY, until="committed")
    close(log)
    ledger.has_ended()
