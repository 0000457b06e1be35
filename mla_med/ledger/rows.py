"""Rows of the ledger -> its nouns, and back; and the questions that several transactions ask of them.

All of it within a transaction that somebody else opened. Knows no key: what is sealed stays so.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping, select

from mla_med.errors import LedgerError
from mla_med.ledger.nouns import Document, DocumentState, Job, JobState, Kind, Lease, OutboxEntry, Outcome
from mla_med.ledger.tables import breakers, events, jobs, outbox

DEADLINE_S = 72 * 3600.0
"""A weekend with a PACS that is down; after it a person has to look."""
FIRST_BACKOFF_S = 30.0
MAX_BACKOFF_S = 15 * 60.0

_FOUND_CHANGED = ("PATIENT_CHANGED", "ACCESSION_CHANGED", "CONTENT_DIFFERS")
"""Of a document that was read back: it is there, and not as it was sent."""


def newest_job(c: Connection, study_hash: str, *, lock: bool = False) -> RowMapping | None:
    query = select(jobs).where(jobs.c.study_hash == study_hash).order_by(jobs.c.created_at.desc()).limit(1)
    return c.execute(query.with_for_update() if lock else query).mappings().first()


def jobs_before(c: Connection, job_id: str) -> Iterator[str]:
    """The jobs that this one revises, the newest first."""
    earlier = one_row(c, jobs, job_id)["revises"]
    while earlier:
        yield earlier
        earlier = one_row(c, jobs, earlier)["revises"]


def waiting_for(destination: str) -> sa.ColumnElement[bool]:
    return sa.and_(outbox.c.destination == destination, outbox.c.state == DocumentState.PENDING)


def may_be_there(c: Connection, row: RowMapping) -> bool:
    """Is a document at its destination, or can nobody say that it is not? Every lease of one that certainly
    is not ended with an answer that says so."""
    if row["state"] not in (DocumentState.PENDING, DocumentState.PARKED):
        return row["state"] in (DocumentState.DELIVERED, DocumentState.SENDING)
    query = select(events.c.event, events.c.reason).where(
        events.c.job_id == row["job_id"], events.c.document_id == row["id"]
    )
    happened = c.execute(query).all()
    leases = sum(one.event == "LEASED" for one in happened)
    refusals = sum(
        one.event in ("TRANSIENT", "DENIED", "PERMANENT")
        and not one.reason.startswith("READ_")
        and one.reason not in _FOUND_CHANGED
        for one in happened
    )
    return leases > refusals


def lock_study(c: Connection, study_hash: str) -> None:
    """On PostgreSQL, two commits of one study come one after the other; SQLite has one writer anyway."""
    if c.dialect.name == "postgresql":
        c.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": int(study_hash[:15], 16)})


def one_row(c: Connection, table: sa.Table, row_id: str, *, lock: bool = False) -> RowMapping:
    """`lock`: nobody else moves it before this transaction ends; SQLite has one writer anyway."""
    query = select(table).where(table.c.id == row_id)
    row = c.execute(query.with_for_update() if lock else query).mappings().first()
    if row is None:
        raise LedgerError(f"The ledger has no {table.name} row {row_id}.", code="JOB_NOT_FOUND")
    return row


def set_row(c: Connection, table: sa.Table, row_id: str, **values: Any) -> None:
    c.execute(table.update().where(table.c.id == row_id).values(values))


def expect_state(row: RowMapping, *states: JobState) -> None:
    if row["state"] not in states:
        raise LedgerError(
            f"Job {row['id']} is {row['state']}; this is for {', '.join(states)}.", code="STATE_WRONG"
        )


def lock_destinations(c: Connection, job_ids: Collection[str]) -> None:
    """On PostgreSQL, of all that move documents of one destination one comes after the other: its breaker
    first, then documents, then their jobs. Two that took them in another order would wait for each other."""
    query = select(outbox.c.destination).where(outbox.c.job_id.in_(job_ids)).distinct()
    for destination in sorted(c.execute(query).scalars().all()):
        breaker_of(c, destination)


def breaker_of(c: Connection, destination: str) -> RowMapping:
    query = select(breakers).where(breakers.c.destination == destination)
    row = c.execute(query.with_for_update()).mappings().first()
    if row is None:
        # two workers may come first at the same moment
        insert: Any
        if c.dialect.name == "postgresql":
            from sqlalchemy.dialects.postgresql import insert
        else:
            from sqlalchemy.dialects.sqlite import insert
        values = {"destination": destination, "failures": 0, "open_until": 0.0, "period_s": 0.0}
        c.execute(insert(breakers).values(values).on_conflict_do_nothing())
        row = c.execute(query.with_for_update()).mappings().one()
    return row


def to_job(row: RowMapping) -> Job:
    return Job(
        row["id"],
        JobState(row["state"]),
        row["reason"],
        row["instances"],
        row["counted_at"],
        row["own_instances"],
        row["revises"],
        row["created_at"],
        row["updated_at"],
    )


def to_entry(row: RowMapping) -> OutboxEntry:
    return OutboxEntry(
        row["id"],
        row["job_id"],
        row["destination"],
        row["kind"],
        DocumentState(row["state"]),
        row["reason"],
        row["attempts"],
        row["next_at"],
        row["deadline_at"],
        row["size_bytes"],
        row["created_at"],
        row["updated_at"],
    )


def to_lease(row: RowMapping, document: Document, until: float) -> Lease:
    return Lease(
        row["id"],
        row["job_id"],
        row["destination"],
        row["kind"],
        document.uid,
        document.content,
        row["attempts"] + 1,
        row["fence"] + 1,
        until,
    )


def is_denied_alone(c: Connection, lease: Lease, now: float) -> bool:
    """Has the destination let others in while it denied this document, a deadline ago for the first time and
    again since the last? Then it is about the document after all. The time for which nobody was let in does
    not count."""
    mine = select(events.c.id, events.c.event).where(
        events.c.job_id == lease.job_id, events.c.document_id == lease.document_id
    )
    denials: list[int] = []
    for event_id, event in c.execute(mine.order_by(events.c.id)):
        if event == "RETRIED":  # a person saw to it
            denials.clear()
        elif event == "DENIED":
            denials.append(event_id)
    if not denials:
        return False
    let_in = (
        select(events.c.at)
        .join(outbox, outbox.c.id == events.c.document_id)
        .where(outbox.c.destination == lease.destination, events.c.event == "DELIVERED")
        .order_by(events.c.id)
        .limit(1)
    )
    # by number: a range of the primary key, however long the ledger is
    first_at = c.execute(let_in.where(events.c.id > denials[0])).scalar()
    if first_at is None or now - first_at < DEADLINE_S:
        return False
    return c.execute(let_in.where(events.c.id > denials[-1])).scalar() is not None


def change_after(row: Any, lease: Lease, outcome: Outcome, now: float, is_alone: bool) -> dict[str, Any]:
    """Of a document's row, after a try; `is_alone`: it is denied where others are let in."""
    state, next_at = DocumentState.PENDING, now + backoff_s(lease.attempt)
    late = now >= row.deadline_at and outcome.kind is not Kind.DENIED
    if outcome.kind is Kind.DELIVERED:
        state, next_at = DocumentState.DELIVERED, row.next_at
    elif outcome.kind is Kind.PERMANENT or late or is_alone:
        state, next_at = DocumentState.PARKED, row.next_at
    return {
        "document": lease.document_id,
        "state": state,
        "reason": outcome.reason,
        "next_at": next_at,
        "owner": "",
        "updated_at": now,
    }


def state_of(documents: Sequence[tuple[str, str]]) -> tuple[JobState, str]:
    """A job's, by the states and reasons of its documents."""
    states = {state for state, _ in documents}
    if DocumentState.PARKED in states:
        return JobState.PARKED, next(r for state, r in documents if state == DocumentState.PARKED)
    for over, state in _OVER.items():
        if over in states and states <= _OVER.keys():
            return state, "REVISED" if state is JobState.SUPERSEDED else ""
    return JobState.DRAFTED, ""


_OVER = {
    DocumentState.DELIVERED: JobState.DELIVERED,
    DocumentState.SUPERSEDED: JobState.SUPERSEDED,
    DocumentState.DISCARDED: JobState.DISCARDED,
}
"""Of documents of which nothing waits any more: the first that there is decides."""


def event_row(
    at: float,
    job_id: str,
    event: str,
    state: str,
    reason: str = "",
    document_id: str | None = None,
    fence: int = 0,
) -> dict[str, Any]:
    return {
        "at": at,
        "job_id": job_id,
        "document_id": document_id,
        "event": event,
        "state": state,
        "reason": reason,
        "fence": fence,
    }


def backoff_s(attempt: int) -> float:
    """After so many tries: doubled each time up to a cap, and spread, so that not all come at once."""
    return min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(attempt - 1, 10)) * random.uniform(0.75, 1.0)
