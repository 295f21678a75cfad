"""The names of the reasons of gaps, as the store keeps them, and their numbers in the contract."""

GAP_REASONS = (
    None,
    "dropped_oldest",
    "dropped_newest",
    "spool_bytes",
    "spool_age",
    "disk_reserve",
    "spool_damaged",
    "unreadable",
    "released",
    "spool_write_failed",
)
"""Names of GapReason by number; None: unspecified, which is refused."""
_UNKNOWN = "reason_"


def gap_reason_name(number: int) -> str | None:
    """Return the name of a GapReason, which may be of a newer contract; None: unspecified."""
    # A device with a newer contract must not be refused because of an unknown reason.
    return GAP_REASONS[number] if 0 <= number < len(GAP_REASONS) else f"{_UNKNOWN}{number}"


def gap_reason_number(name: str) -> int:
    """Return the number of the GapReason with a name of `gap_reason_name`."""
    return GAP_REASONS.index(name) if name in GAP_REASONS else int(name.removeprefix(_UNKNOWN))
