"""Jobs and documents -> rows that survive a kill at any moment. SQLite on one host, PostgreSQL on several.

Every transition is one transaction with its event. The final bytes of a document are committed before
the first send, so that whatever happens later the same bytes go out under the same UID. Delivery is
by leases with fencing tokens: who lost its lease cannot record. Knows no DICOM and sends nothing.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, RowMapping, select

from mla_med.errors import ConfigError, LedgerError
from mla_med.ledger.nouns import (
    Document,
    DocumentState,
    Event,
    Job,
    JobState,
    Kind,
    Lease,
    OutboxEntry,
    Outcome,
)
from mla_med.ledger.seal import SiteKey
from mla_med.ledger.tables import breakers, events, jobs, outbox

FIRST_BACKOFF_S = 30.0
MAX_BACKOFF_S = 15 * 60.0
DEADLINE_S = 72 * 3600.0
"""A weekend with a PACS that is down; after it a person has to look."""
LEASE_S = 300.0
"""Longer than any try may take; a worker that died holds its documents for as long."""
BREAKER_THRESHOLD = 3
"""Failures of a destination in a row, after which it is asked with one document at a time."""
KEEP_DELIVERED_S = 30 * 86_400.0
"""Bytes of a delivered document; the row and its events stay."""

OPEN = (JobState.DISCOVERED, JobState.WAITING)
_NEWEST_FORM = "0001"
_MIGRATION_LOCK = 0x6D6C61  # any number that nobody else takes for an advisory lock


class Ledger:
    def __init__(self, engine: Engine, key: SiteKey, clock: Callable[[], float] = time.time):
        self._engine = engine
        self._key = key
        self.clock = clock
        with _as_ledger_error():
            _migrate(engine)
        if newest := self.list_jobs(limit=1):
            # a key that was lost and made anew would find no study again, and everything would go out twice
            self.study_uid(newest[0].id)

    @classmethod
    def open(cls, url: str, secret: bytes, clock: Callable[[], float] = time.time) -> Ledger:
        """`url`: sqlite:///PATH or postgresql+psycopg://...; made, and brought to its newest form."""
        return cls(_engine(url), SiteKey(secret), clock)

    def close(self) -> None:
        self._engine.dispose()

    # In: studies

    def see(self, study_uid: str, instances: int) -> Job:
        """The job of a study of which the PACS has so many instances; a new one where there is none, and a
        revision where there are more than the newest one was made from."""
        now, study_hash = self.clock(), self._key.hash("study", study_uid)
        with self._write() as c:
            _lock_study(c, study_hash)
            row = _newest_job(c, study_hash)
            if row is None:
                return self._new_job(c, study_uid, instances=instances, counted_at=now)
            if row["state"] in OPEN:
                if instances != row["instances"]:
                    _set(c, jobs, row["id"], instances=instances, counted_at=now, updated_at=now)
                    self._log(c, row["id"], "COUNTED", row["state"])
            elif instances > max(row["instances"], row["own_instances"]):
                if row["state"] == JobState.READY:
                    self._move_job(c, row["id"], JobState.SUPERSEDED, "MORE_IMAGES")
                return self._new_job(
                    c, study_uid, instances=instances, counted_at=now, revises=row["id"], reason="MORE_IMAGES"
                )
            return _job(_one(c, jobs, row["id"]))

    def hold(self, job_id: str, reason: str, own_instances: int) -> None:
        """Not complete: asked again at the next pull."""
        self._judge(job_id, JobState.WAITING, reason, own_instances)

    def ready(self, job_id: str, own_instances: int, reason: str = "") -> None:
        """`reason`: what its completeness rests on, where that is less than two counts of a PACS."""
        self._judge(job_id, JobState.READY, reason, own_instances)

    def quarantine(self, job_id: str, reason: str, own_instances: int = 0) -> None:
        self._judge(job_id, JobState.QUARANTINED, reason, own_instances)

    def _judge(self, job_id: str, state: JobState, reason: str, own_instances: int) -> None:
        with self._write() as c:
            row = _one(c, jobs, job_id)
            _expect(row, *OPEN)
            _set(c, jobs, job_id, own_instances=own_instances)
            self._move_job(c, job_id, state, reason)

    def study_uid(self, job_id: str) -> str:
        with self._read() as c:
            row = _one(c, jobs, job_id)
        return self._key.unseal(row["sealed"], job_id).decode()

    def newest_job(self, study_uid: str) -> Job | None:
        with self._read() as c:
            row = _newest_job(c, self._key.hash("study", study_uid))
        return None if row is None else _job(row)

    def predecessors(self, job_id: str) -> tuple[str, ...]:
        """UIDs of the delivered documents of the newest job that this one revises; for the link of a
        revision (PS3.3 C.17.2, Predecessor Documents Sequence)."""
        with self._read() as c:
            row = _one(c, jobs, job_id)
            while row["revises"]:
                row = _one(c, jobs, row["revises"])
                found = select(outbox).where(
                    outbox.c.job_id == row["id"],
                    outbox.c.state == DocumentState.DELIVERED,
                    outbox.c.sealed.is_not(None),
                )
                if rows := c.execute(found.order_by(outbox.c.created_at)).mappings().all():
                    return tuple(dict.fromkeys(self._unseal(r)[0] for r in rows))
        return ()

    # Between: documents

    def commit(
        self,
        study_uid: str,
        work: Sequence[str],
        documents: Sequence[Document],
        destinations: Sequence[str],
        job_id: str | None = None,
    ) -> Job:
        """The job whose documents these are, with their bytes on the disk when this returns.

        `work`: what was drafted by what (instance UIDs, weights, version). The same work committed again is
        the job of the first time with the bytes of the first time: a model that words its draft anew after
        a kill changes nothing that may have been sent. `job_id`: of the READY job that was drafted."""
        assert documents, "a job without documents would count as delivered"
        job_key = self._key.hash("work", "\0".join((study_uid, *work)))
        now, study_hash = self.clock(), self._key.hash("study", study_uid)
        with self._write() as c:
            _lock_study(c, study_hash)
            found = c.execute(select(jobs).where(jobs.c.job_key == job_key)).mappings().first()
            if found is not None:
                newest = _newest_job(c, study_hash)
                if newest is not None and newest["state"] == JobState.READY:
                    self._move_job(c, newest["id"], JobState.SUPERSEDED, "SAME_WORK")
                return _job(found)
            fresh, owner = self._not_yet_committed(c, documents, destinations)
            if not fresh:
                return _job(_one(c, jobs, owner))
            job_id = job_id or self._ready_job(c, study_uid, study_hash)
            row = _one(c, jobs, job_id)
            _expect(row, JobState.READY)
            if row["study_hash"] != study_hash:
                raise LedgerError(f"Job {job_id} is of another study.", code="JOB_OF_OTHER_STUDY")
            for document, destination in fresh:
                self._put(c, job_id, document, destination, now)
            _set(c, jobs, job_id, job_key=job_key)
            self._move_job(c, job_id, JobState.DRAFTED)
            return _job(_one(c, jobs, job_id))

    def _ready_job(self, c: Connection, study_uid: str, study_hash: str) -> str:
        """The newest job of the study, where it waits to be drafted; else a new one."""
        newest = _newest_job(c, study_hash)
        if newest is not None and newest["state"] == JobState.READY:
            return newest["id"]
        if newest is not None and newest["state"] in (*OPEN, JobState.QUARANTINED):
            raise LedgerError(
                f"The study of this draft is {newest['state']} ({newest['reason'] or 'not yet complete'}), "
                f"job {newest['id']}; it could be a draft of half of it. Pull it, and draft what is ready.",
                code="STUDY_HELD",
            )
        job = self._new_job(
            c,
            study_uid,
            instances=newest["instances"] if newest else 0,
            revises=newest["id"] if newest else None,
        )
        self._move_job(c, job.id, JobState.READY)
        return job.id

    def _not_yet_committed(
        self, c: Connection, documents: Sequence[Document], destinations: Sequence[str]
    ) -> tuple[list[tuple[Document, str]], str]:
        """Those that are not in the outbox with these very bytes, and the job of one that is."""
        fresh, owner = [], ""
        for document in documents:
            for destination in destinations:
                known = (
                    outbox.c.destination == destination,
                    outbox.c.uid_hash == self._key.hash("instance", document.uid),
                )
                row = c.execute(select(outbox.c.job_id, outbox.c.digest).where(*known)).first()
                if row is None:
                    fresh.append((document, destination))
                elif row.digest != self._key.hash("content", document.content):
                    raise _uid_used(document)
                else:
                    owner = row.job_id
        return fresh, owner

    def _put(self, c: Connection, job_id: str, document: Document, destination: str, now: float) -> None:
        document_id = uuid.uuid4().hex
        values = {
            "id": document_id,
            "job_id": job_id,
            "destination": destination,
            "kind": document.kind,
            "uid_hash": self._key.hash("instance", document.uid),
            "digest": self._key.hash("content", document.content),
            "sealed": self._seal(document, document_id),
            "size_bytes": len(document.content),
            "state": DocumentState.PENDING,
            "reason": "",
            "attempts": 0,
            "next_at": now,
            "deadline_at": now + DEADLINE_S,
            "owner": "",
            "leased_until": 0.0,
            "fence": 0,
            "created_at": now,
            "updated_at": now,
        }
        try:
            c.execute(outbox.insert().values(values))
        except sa.exc.IntegrityError:  # another process was a moment faster
            raise _uid_used(document) from None
        self._log(c, job_id, "COMMITTED", DocumentState.PENDING, document_id=document_id)

    # Out: deliveries

    def lease(
        self, destination: str, owner: str, limit: int = 1, lease_s: float = LEASE_S
    ) -> tuple[Lease, ...]:
        """Documents that are due, each for this owner alone until its lease ends. Of a destination that
        failed lately one at a time, and none before its next try."""
        now = self.clock()
        with self._write() as c:
            self._park_overdue(c, destination, now)
            breaker = _breaker(c, destination)
            if breaker["open_until"] > now:
                return ()
            if breaker["period_s"]:
                limit = 1
            due = sa.or_(
                sa.and_(outbox.c.state == DocumentState.PENDING, outbox.c.next_at <= now),
                sa.and_(outbox.c.state == DocumentState.SENDING, outbox.c.leased_until <= now),
            )
            rows = (
                c.execute(
                    select(outbox)
                    .where(outbox.c.destination == destination, due)
                    .order_by(outbox.c.next_at, outbox.c.created_at)
                    .limit(limit)
                    .with_for_update(skip_locked=True)
                )
                .mappings()
                .all()
            )
            if not rows:
                return ()
            if breaker["period_s"]:
                # the probe is out: no other worker sends one before it has answered
                self._set_breaker(c, destination, open_until=now + lease_s)
            c.execute(
                outbox.update()
                .where(outbox.c.id.in_([row["id"] for row in rows]))
                .values(
                    state=DocumentState.SENDING,
                    owner=owner,
                    leased_until=now + lease_s,
                    fence=outbox.c.fence + 1,
                    attempts=outbox.c.attempts + 1,
                    updated_at=now,
                )
            )
            leases = tuple(self._to_lease(row, now + lease_s) for row in rows)
            self._log_all(
                c,
                [
                    _event(
                        now, lease.job_id, "LEASED", DocumentState.SENDING, "", lease.document_id, lease.fence
                    )
                    for lease in leases
                ],
            )
            return leases

    def _to_lease(self, row: RowMapping, until: float) -> Lease:
        uid, content = self._unseal(row)
        if self._key.hash("content", content) != row["digest"]:
            raise LedgerError(f"The bytes of document {row['id']} are not the committed ones.")
        return Lease(
            row["id"],
            row["job_id"],
            row["destination"],
            row["kind"],
            uid,
            content,
            row["attempts"] + 1,
            row["fence"] + 1,
            until,
        )

    def record(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> tuple[bool, ...]:
        """What came of leased documents of one destination; False for each whose lease was lost."""
        if not outcomes:
            return ()
        (destination,) = {lease.destination for lease, _ in outcomes}
        now = self.clock()
        with self._write() as c:
            _breaker(c, destination)  # locked first, as by `lease`: two that wait for each other would fail
            ids = [lease.document_id for lease, _ in outcomes]
            query = select(
                outbox.c.id, outbox.c.fence, outbox.c.state, outbox.c.next_at, outbox.c.deadline_at
            )
            rows = {r.id: r for r in c.execute(query.where(outbox.c.id.in_(ids)).with_for_update())}
            kept, changes, happened = [], [], []
            for lease, outcome in outcomes:
                row = rows[lease.document_id]
                holds = row.fence == lease.fence and row.state == DocumentState.SENDING
                change = _change(row, lease, outcome, now)
                kept.append(holds)
                changes += [change] if holds else []
                happened.append(
                    _event(
                        now,
                        lease.job_id,
                        outcome.kind.upper() if holds else "STALE_REFUSED",
                        change["state"] if holds else row.state,
                        outcome.reason,
                        lease.document_id,
                        lease.fence,
                    )
                )
            if changes:
                c.execute(outbox.update().where(outbox.c.id == sa.bindparam("document")), changes)
            self._log_all(c, happened)
            self._follow(c, {lease.job_id for (lease, _), held in zip(outcomes, kept, strict=True) if held})
            self._judge_destination(c, destination, [outcome.kind for _, outcome in outcomes])
        return tuple(kept)

    def _follow(self, c: Connection, job_ids: Collection[str]) -> None:
        """Jobs after some of their documents moved."""
        found: dict[str, list[tuple[str, str]]] = {job_id: [] for job_id in job_ids}
        query = select(outbox.c.job_id, outbox.c.state, outbox.c.reason)
        for job_id, state, reason in c.execute(query.where(outbox.c.job_id.in_(job_ids))):
            found[job_id].append((state, reason))
        moves = {job_id: _state_of(documents) for job_id, documents in found.items()}
        before = dict(c.execute(select(jobs.c.id, jobs.c.state).where(jobs.c.id.in_(job_ids))).tuples().all())
        self._move_jobs(c, {j: move for j, move in moves.items() if move[0] != before[j]})

    def _judge_destination(self, c: Connection, destination: str, kinds: Sequence[Kind]) -> None:
        """One answer that is not about the destination's health closes the breaker, and what waited for it is
        due at once; failures in a row open it, for twice as long each time."""
        breaker, now = _breaker(c, destination), self.clock()
        if any(kind in (Kind.DELIVERED, Kind.PERMANENT) for kind in kinds):
            if breaker["failures"]:
                self._set_breaker(c, destination, failures=0, open_until=0.0, period_s=0.0)
            if breaker["period_s"]:
                waiting = sa.and_(
                    outbox.c.destination == destination, outbox.c.state == DocumentState.PENDING
                )
                c.execute(outbox.update().where(waiting, outbox.c.next_at > now).values(next_at=now))
            return
        failures, period_s = breaker["failures"] + 1, 0.0
        if failures >= BREAKER_THRESHOLD:
            period_s = min(MAX_BACKOFF_S, 2 * breaker["period_s"] or FIRST_BACKOFF_S)
        self._set_breaker(
            c,
            destination,
            failures=failures,
            period_s=period_s,
            open_until=now + period_s if period_s else 0.0,
        )

    def _park_overdue(self, c: Connection, destination: str, now: float) -> None:
        """What was tried until its deadline, or could not be tried as the destination was down. What was
        never tried, as nothing ran here, still gets its try."""
        overdue = sa.and_(
            outbox.c.destination == destination,
            outbox.c.state == DocumentState.PENDING,
            outbox.c.deadline_at <= now,
        )
        if not _breaker(c, destination)["period_s"]:
            overdue = sa.and_(overdue, outbox.c.attempts > 0)
        for row in c.execute(select(outbox.c.id, outbox.c.job_id).where(overdue)).all():
            _set(c, outbox, row.id, state=DocumentState.PARKED, reason="DEADLINE", updated_at=now)
            self._log(c, row.job_id, "PARKED", DocumentState.PARKED, "DEADLINE", row.id)
            self._follow(c, [row.job_id])

    # A person's part

    def retry(self, job_id: str) -> Job:
        """Parked documents are due again, with a new deadline; a quarantined study is asked for again."""
        now = self.clock()
        with self._write() as c:
            row = _one(c, jobs, job_id)
            _expect(row, JobState.PARKED, JobState.QUARANTINED)
            if row["state"] == JobState.QUARANTINED:
                self._move_job(c, job_id, JobState.DISCOVERED, "RETRIED")
            parked = sa.and_(outbox.c.job_id == job_id, outbox.c.state == DocumentState.PARKED)
            for (document_id,) in c.execute(select(outbox.c.id).where(parked)).all():
                _set(
                    c,
                    outbox,
                    document_id,
                    state=DocumentState.PENDING,
                    reason="RETRIED",
                    next_at=now,
                    deadline_at=now + DEADLINE_S,
                    updated_at=now,
                )
                self._log(c, job_id, "RETRIED", DocumentState.PENDING, document_id=document_id)
            if row["state"] == JobState.PARKED:
                self._follow(c, [job_id])
            return _job(_one(c, jobs, job_id))

    def discard(self, job_id: str, reason: str) -> Job:
        """A person decided that it is not delivered: bytes are erased, the row and its events stay."""
        now = self.clock()
        with self._write() as c:
            _expect(
                _one(c, jobs, job_id),
                *(JobState.PARKED, JobState.QUARANTINED, JobState.WAITING, JobState.DISCOVERED),
                *(JobState.READY, JobState.DRAFTED),
            )
            sending = sa.and_(outbox.c.job_id == job_id, outbox.c.state == DocumentState.SENDING)
            if c.execute(select(outbox.c.id).where(sending, outbox.c.leased_until > now)).first():
                raise LedgerError(
                    f"A document of job {job_id} is being sent; try again in a moment.", code="BEING_SENT"
                )
            rest = sa.and_(outbox.c.job_id == job_id, outbox.c.state != DocumentState.DELIVERED)
            c.execute(
                outbox.update()
                .where(rest)
                .values(state=DocumentState.DISCARDED, reason=reason, sealed=None, updated_at=now)
            )
            self._move_job(c, job_id, JobState.DISCARDED, reason)
            return _job(_one(c, jobs, job_id))

    def purge(self) -> int:
        """Erases the bytes of what was delivered long ago, not its UID, which a revision refers to."""
        old = sa.and_(
            outbox.c.state == DocumentState.DELIVERED,
            outbox.c.size_bytes > 0,
            outbox.c.updated_at < self.clock() - KEEP_DELIVERED_S,
        )
        with self._write() as c:
            rows = c.execute(select(outbox).where(old)).mappings().all()
            for row in rows:
                erased = Document(row["kind"], self._unseal(row)[0], b"")
                _set(c, outbox, row["id"], sealed=self._seal(erased, row["id"]), size_bytes=0)
        return len(rows)

    # To look at

    def list_jobs(self, state: JobState | None = None, limit: int = 100) -> tuple[Job, ...]:
        """The newest first."""
        query = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id).limit(limit)
        with self._read() as c:
            rows = c.execute(query.where(jobs.c.state == state) if state else query).mappings().all()
        return tuple(map(_job, rows))

    def job(self, job_id: str) -> Job:
        """By its id, or by the beginning of it that no other has."""
        with self._read() as c:
            like = jobs.c.id.startswith(job_id, autoescape=True)
            rows = c.execute(select(jobs).where(like).limit(2)).mappings().all()
        if len(rows) != 1 or not job_id:
            found = "No job has" if not rows else "Several jobs have"
            raise LedgerError(
                f"{found} an id that begins so. See: mla-med ledger list.", code="JOB_NOT_FOUND"
            )
        return _job(rows[0])

    def documents(self, job_id: str) -> tuple[OutboxEntry, ...]:
        query = select(outbox).where(outbox.c.job_id == job_id).order_by(outbox.c.created_at, outbox.c.id)
        with self._read() as c:
            rows = c.execute(query).mappings().all()
        return tuple(map(_entry, rows))

    def content(self, document_id: str) -> bytes:
        """The committed bytes of a document."""
        with self._read() as c:
            row = _one(c, outbox, document_id)
        if row["sealed"] is None or not row["size_bytes"]:
            raise LedgerError(f"The bytes of document {document_id} were erased.", code="CONTENT_ERASED")
        return self._unseal(row)[1]

    def history(self, job_id: str) -> tuple[Event, ...]:
        query = select(events).where(events.c.job_id == job_id).order_by(events.c.id)
        with self._read() as c:
            rows = c.execute(query).mappings().all()
        return tuple(
            Event(r["at"], r["job_id"], r["document_id"], r["event"], r["state"], r["reason"], r["fence"])
            for r in rows
        )

    def next_due_s(self, destination: str) -> float | None:
        """When something can be tried at this destination; None while nothing is to be sent."""
        waiting = sa.and_(
            outbox.c.destination == destination,
            outbox.c.state.in_((DocumentState.PENDING, DocumentState.SENDING)),
        )
        when = sa.case(
            (outbox.c.state == DocumentState.SENDING, outbox.c.leased_until), else_=outbox.c.next_at
        )
        with self._read() as c:
            first = c.execute(select(sa.func.min(when)).where(waiting)).scalar()
            opens = c.execute(
                select(breakers.c.open_until).where(breakers.c.destination == destination)
            ).scalar()
        return None if first is None else max(first, opens or 0.0)

    def depths(self) -> dict[tuple[str, str], int]:
        """(destination, document state) -> how many."""
        query = select(outbox.c.destination, outbox.c.state, sa.func.count()).group_by(
            outbox.c.destination, outbox.c.state
        )
        with self._read() as c:
            return {(d, s): n for d, s, n in c.execute(query).all()}

    def job_counts(self) -> Counter[str]:
        with self._read() as c:
            return Counter(
                dict(c.execute(select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)).tuples().all())
            )

    def oldest_pending_s(self, destination: str) -> float:
        """How long the oldest undelivered document has waited; 0 where none does."""
        waiting = sa.and_(
            outbox.c.destination == destination,
            outbox.c.state.in_((DocumentState.PENDING, DocumentState.SENDING)),
        )
        with self._read() as c:
            first = c.execute(select(sa.func.min(outbox.c.created_at)).where(waiting)).scalar()
        return 0.0 if first is None else max(0.0, self.clock() - first)

    def is_open(self, destination: str) -> bool:
        """Is the destination being spared?"""
        with self._read() as c:
            found = select(breakers.c.period_s).where(breakers.c.destination == destination)
            return bool(c.execute(found).scalar())

    # Within

    def _new_job(
        self,
        c: Connection,
        study_uid: str,
        *,
        instances: int = 0,
        counted_at: float = 0.0,
        revises: str | None = None,
        reason: str = "",
    ) -> Job:
        job_id, now = uuid.uuid4().hex, self.clock()
        c.execute(
            jobs.insert().values(
                id=job_id,
                study_hash=self._key.hash("study", study_uid),
                state=JobState.DISCOVERED,
                reason=reason,
                instances=instances,
                counted_at=counted_at,
                own_instances=0,
                revises=revises,
                sealed=self._key.seal(study_uid.encode(), job_id),
                created_at=now,
                updated_at=now,
            )
        )
        self._log(c, job_id, "DISCOVERED", JobState.DISCOVERED, reason)
        return _job(_one(c, jobs, job_id))

    def _move_job(self, c: Connection, job_id: str, state: JobState, reason: str = "") -> None:
        self._move_jobs(c, {job_id: (state, reason)})

    def _move_jobs(self, c: Connection, moves: Mapping[str, tuple[JobState, str]]) -> None:
        now = self.clock()
        if moves:
            values = [
                {"job": job_id, "state": state, "reason": reason, "updated_at": now}
                for job_id, (state, reason) in sorted(moves.items())
            ]
            c.execute(jobs.update().where(jobs.c.id == sa.bindparam("job")), values)
        self._log_all(c, [_event(now, job_id, "JOB", *move) for job_id, move in moves.items()])

    def _log(
        self,
        c: Connection,
        job_id: str,
        event: str,
        state: str,
        reason: str = "",
        document_id: str | None = None,
    ) -> None:
        self._log_all(c, [_event(self.clock(), job_id, event, state, reason, document_id)])

    def _log_all(self, c: Connection, happened: Sequence[dict[str, Any]]) -> None:
        if happened:
            c.execute(events.insert(), happened)

    def _set_breaker(self, c: Connection, destination: str, **values: float) -> None:
        c.execute(breakers.update().where(breakers.c.destination == destination).values(values))

    def _seal(self, document: Document, document_id: str) -> bytes:
        return self._key.seal(document.uid.encode() + b"\0" + document.content, document_id)

    def _unseal(self, row: RowMapping) -> tuple[str, bytes]:
        uid, _, content = self._key.unseal(row["sealed"], row["id"]).partition(b"\0")
        return uid.decode(), content

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with _as_ledger_error(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with _as_ledger_error(), self._engine.connect() as connection:
            yield connection.execution_options(reads=True)


def backoff_s(attempt: int) -> float:
    """After so many tries: doubled each time up to a cap, and spread, so that not all come at once."""
    return min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(attempt - 1, 10)) * random.uniform(0.75, 1.0)


def _uid_used(document: Document) -> LedgerError:
    return LedgerError(
        f"The UID of a {document.kind} names a document that was committed before with other content. "
        "A changed document needs a UID of its own, and a link to the one before.",
        code="UID_USED",
    )


def _change(row: Any, lease: Lease, outcome: Outcome, now: float) -> dict[str, Any]:
    """Of a document's row, after a try."""
    state, next_at = DocumentState.PENDING, now + backoff_s(lease.attempt)
    if outcome.kind is Kind.DELIVERED:
        state, next_at = DocumentState.DELIVERED, row.next_at
    elif outcome.kind is Kind.PERMANENT or now >= row.deadline_at:
        state, next_at = DocumentState.PARKED, row.next_at
    return {
        "document": lease.document_id,
        "state": state,
        "reason": outcome.reason,
        "next_at": next_at,
        "owner": "",
        "updated_at": now,
    }


def _state_of(documents: Sequence[tuple[str, str]]) -> tuple[JobState, str]:
    """A job's, by the states and reasons of its documents."""
    states = {state for state, _ in documents}
    if DocumentState.PARKED in states:
        return JobState.PARKED, next(r for state, r in documents if state == DocumentState.PARKED)
    if states <= {DocumentState.DELIVERED, DocumentState.DISCARDED}:
        return (JobState.DELIVERED if DocumentState.DELIVERED in states else JobState.DISCARDED), ""
    return JobState.DRAFTED, ""


def _event(
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


def _engine(url: str) -> Engine:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise ConfigError(
            "The ledger's address is no database URL; give sqlite:////path/ledger.db or "
            "postgresql+psycopg://host/database."
        ) from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ConfigError(f"A ledger lives in sqlite or postgresql, not in {parsed.get_backend_name()}.")
    if parsed.get_backend_name() == "postgresql":
        # hide_parameters: an error's text would show what was written
        return sa.create_engine(parsed, hide_parameters=True, pool_pre_ping=True)
    _make_private(Path(parsed.database or ""))
    engine = sa.create_engine(parsed, hide_parameters=True, connect_args={"timeout": 30})
    sa.event.listen(engine, "connect", _on_connect)
    sa.event.listen(engine, "begin", _on_begin)
    return engine


def _make_private(path: Path) -> None:
    """SQLite gives its side files the mode of the database."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise LedgerError(f"Cannot open the ledger {path}: {error.strerror}.") from error


def _on_connect(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says, DDL included
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _on_begin(connection: Connection) -> None:
    # A transaction that first reads and then writes would fail where another wrote in between.
    reads = connection.get_execution_options().get("reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _migrate(engine: Engine) -> None:
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
        if _form(connection) == _NEWEST_FORM:
            return
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _form(connection: Connection) -> str:
    if not sa.inspect(connection).has_table("alembic_version"):
        return ""
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() or ""


@contextmanager
def _as_ledger_error() -> Iterator[None]:
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.InterfaceError) as error:
        words = str(error.orig).splitlines()[0] if error.orig and str(error.orig) else "no answer"
        code = "LEDGER_FULL" if "full" in words or "No space" in words else "LEDGER_UNREACHABLE"
        raise LedgerError(
            f"The ledger could not be read or written ({words}); nothing was changed. "
            "Is there space on its disk, and is its server up?",
            code=code,
        ) from None


def _newest_job(c: Connection, study_hash: str) -> RowMapping | None:
    query = select(jobs).where(jobs.c.study_hash == study_hash).order_by(jobs.c.created_at.desc())
    return c.execute(query.limit(1)).mappings().first()


def _lock_study(c: Connection, study_hash: str) -> None:
    """On PostgreSQL, two commits of one study come one after the other; SQLite has one writer anyway."""
    if c.dialect.name == "postgresql":
        c.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": int(study_hash[:15], 16)})


def _one(c: Connection, table: sa.Table, row_id: str) -> RowMapping:
    row = c.execute(select(table).where(table.c.id == row_id)).mappings().first()
    if row is None:
        raise LedgerError(f"The ledger has no {table.name} row {row_id}.", code="JOB_NOT_FOUND")
    return row


def _set(c: Connection, table: sa.Table, row_id: str, **values: Any) -> None:
    c.execute(table.update().where(table.c.id == row_id).values(values))


def _expect(row: RowMapping, *states: JobState) -> None:
    if row["state"] not in states:
        raise LedgerError(
            f"Job {row['id']} is {row['state']}; this is for {', '.join(states)}.", code="STATE_WRONG"
        )


def _breaker(c: Connection, destination: str) -> RowMapping:
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


def _job(row: RowMapping) -> Job:
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


def _entry(row: RowMapping) -> OutboxEntry:
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
