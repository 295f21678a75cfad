"""Further lives of a node, beside those of `tests.faults.nodes`."""

import time

from tests.faults.ledger import Ledger
from tests.faults.nodes import Spec, close, sample, wait_until_flushed

STOP = "stop"
"""Name of the file in the folder of the ledgers that makes a node end."""
LONGEST_LOG = 1.0
"""Maximum of one `log()`, s: waiting for the network or the disk would take ten times as long."""
LONGEST_RECOVERY = 55.0
"""Maximum from the end of the last fault until everything is committed, s."""


def log_until_told(spec: Spec) -> None:
    """Log until the stop file appears; fail if a `log()` takes long."""
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
