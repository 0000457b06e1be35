"""What the page speaks of: drafts on a worklist, their versions, who reads them, what was decided. Codes and
numbers, no patients."""

from __future__ import annotations

from dataclasses import dataclass

OPEN_STATES = ("NEW", "OPEN")
DECIDED_STATES = ("ACCEPTED", "CHANGED", "REJECTED")
STATES = (*OPEN_STATES, *DECIDED_STATES)


@dataclass(frozen=True, slots=True)
class Item:
    """A draft, as the worklist knows it."""

    job_id: str
    state: str
    rank: int
    examination: str
    language: str
    scanner: str
    subgroup: str
    weights: str
    refusal: str
    arrived_at_s: float
    drafted_at_s: float
    head: int = 0
    opened_at_s: float = 0.0
    opened_by: str = ""
    decided_at_s: float = 0.0
    decided_by: str = ""
    updated_at_s: float = 0.0

    @property
    def key(self) -> tuple[int, float, str]:
        """Where it stands in the worklist."""
        return self.rank, self.arrived_at_s, self.job_id


@dataclass(frozen=True, slots=True)
class Filter:
    """What the worklist shows; what is empty leaves everything."""

    states: tuple[str, ...] = OPEN_STATES
    examination: str = ""
    rank: int | None = None
    min_age_s: float = 0.0
    max_age_s: float = 0.0
    job_id: str = ""
    """The beginning of one."""
    scanner: str = ""
    codes: tuple[str, ...] = ()
    """One of these is present."""


@dataclass(frozen=True, slots=True)
class Version:
    number: int
    parent: int
    at_s: float
    by: str
    what: str
    content: bytes


@dataclass(frozen=True, slots=True)
class User:
    name: str
    display: str
    role: str
    secret: str
    disabled: bool


@dataclass(frozen=True, slots=True)
class Session:
    token: str
    """Its hash."""
    name: str
    display: str
    role: str
    method: str
    csrf: str
    language: str
    made_at_s: float
    seen_at_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    id: str
    job_id: str
    at_s: float
    by: str
    decision: str
    reason: str
    version: int
    content: bytes
    """Of whoever decided; sealed in the table."""
    sent_at_s: float
    revision_job: str
    revoked_at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """One finding of one decision."""

    code: str
    outcome: str
    drafted: str
    decided: str
    confidence: float | None


@dataclass(frozen=True, slots=True)
class AuditRow:
    at_s: float
    who: str
    action: str
    job_id: str
    detail: str


class StaleVersion(Exception):
    """Somebody else has changed the draft since; `head` is the newest version."""

    def __init__(self, head: int, base: int):
        super().__init__("stale")
        self.head = head
        self.base = base
