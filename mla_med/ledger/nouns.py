"""What the ledger speaks of: jobs, documents, leases, outcomes. Codes and counts, no patients."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class JobState(StrEnum):
    DISCOVERED = "DISCOVERED"
    """The PACS has it."""
    WAITING = "WAITING"
    """Not complete, or not shown to be: held, with a reason."""
    READY = "READY"
    """Complete and here; not drafted."""
    DRAFTED = "DRAFTED"
    """Its documents' final bytes are committed; not all are delivered."""
    DELIVERED = "DELIVERED"
    """Every document was read back from its destination."""
    PARKED = "PARKED"
    """A document cannot be delivered without a person."""
    QUARANTINED = "QUARANTINED"
    """The study must not be drafted."""
    SUPERSEDED = "SUPERSEDED"
    """Another one took its place before anything of it was sent."""
    DISCARDED = "DISCARDED"
    """A person decided."""


class DocumentState(StrEnum):
    PENDING = "PENDING"
    SENDING = "SENDING"
    DELIVERED = "DELIVERED"
    PARKED = "PARKED"
    DISCARDED = "DISCARDED"
    SUPERSEDED = "SUPERSEDED"


class Kind(StrEnum):
    """What came of one try."""

    DELIVERED = "delivered"
    """Referenced as stored, read back, equal."""
    TRANSIENT = "transient"
    """Not stored, and may be later."""
    UNKNOWN = "unknown"
    """No answer, or one that proves nothing: it may be stored. Looked for before it is sent again."""
    PERMANENT = "permanent"
    """Will not be stored however often it is sent."""
    DENIED = "denied"
    """The destination does not let us in: that says nothing of the document, and a person has to mend it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    kind: Kind
    reason: str = ""
    """A code: DIMSE_A700, HTTP_503, TIMEOUT. Never a text that a peer wrote."""


@dataclass(frozen=True, slots=True)
class Document:
    """The final bytes of one document. Nothing after this builds or changes it."""

    kind: str
    uid: str
    """By which its destination knows it."""
    content: bytes
    place: str = ""
    """What else a reference to it needs, in the words of who commits it; kept as long as the UID."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to deliver one document until a time. A later lease of it has a higher fence."""

    document_id: str
    job_id: str
    destination: str
    kind: str
    uid: str
    content: bytes
    attempt: int
    """1 for the first: from 2 on it may have been stored already."""
    fence: int
    until_s: float


@dataclass(frozen=True, slots=True)
class Job:
    id: str
    state: JobState
    reason: str
    instances: int
    counted_at_s: float
    own_instances: int
    revises: str | None
    created_at_s: float
    updated_at_s: float


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    id: str
    job_id: str
    destination: str
    kind: str
    state: DocumentState
    reason: str
    attempts: int
    next_at_s: float
    deadline_at_s: float
    size_bytes: int
    created_at_s: float
    updated_at_s: float


@dataclass(frozen=True, slots=True)
class Event:
    at_s: float
    job_id: str
    document_id: str | None
    event: str
    state: str
    reason: str
    fence: int
