"""A peer's answer -> stored, later, perhaps, never, or not let in.

DIMSE statuses: PS3.7 annex C, PS3.4 B.2.3; failure reasons of STOW: PS3.18 10.5.3 and PS3.3 C.14.1.1.
Which of them are worth a retry was measured and decided by hand. A success is not a proof of storage.
"""

from __future__ import annotations

from mla_med.ledger.nouns import Kind, Outcome

STORED_WITH_WARNING = frozenset((0x0001, 0x0107, 0x0116, 0xB000, 0xB006, 0xB007))
"""Stored, with attributes coerced or elements dropped: what of it is left is seen when it is read back."""
DUPLICATE = 0x0111
TRANSIENT = frozenset((0x0110, 0x0213))
"""Processing failure, resource limitation; and 0xA7xx, out of resources."""
SUCCESS = Outcome(Kind.DELIVERED)
"""As far as the peer says; not delivered before it was read back."""
DENIED = {401: "CREDENTIALS_REFUSED", 403: "ACCESS_DENIED"}
"""Who we are is not known, or may not do this (RFC 9110 15.5.2 and 15.5.4): every document would be
answered so, and none of them is at fault."""
UNPROVEN = Outcome(Kind.UNKNOWN, "NOT_REFERENCED")
"""A success that names nothing as stored."""


def of_dimse(status: int | None) -> Outcome:
    """None: no status came, after a time-out, an abort or a lost answer alike."""
    if status is None:
        return Outcome(Kind.UNKNOWN, "NO_STATUS")
    if status == 0x0000 or status in STORED_WITH_WARNING or status == DUPLICATE:
        return SUCCESS
    reason = f"DIMSE_{status:04X}"
    if 0xA700 <= status <= 0xA7FF or status in TRANSIENT:
        return Outcome(Kind.TRANSIENT, reason)
    return Outcome(Kind.PERMANENT, reason)


def of_http(status: int) -> Outcome:
    """Of a whole request, where no answer for each instance came with it."""
    if status in DENIED:
        return Outcome(Kind.DENIED, DENIED[status])
    reason = f"HTTP_{status}"
    if status in (408, 425, 429) or status >= 500:
        return Outcome(Kind.TRANSIENT, reason)
    if 200 <= status < 300:
        return UNPROVEN
    return Outcome(Kind.PERMANENT, reason)
