"""Jobs and documents -> rows that survive a kill at any moment. SQLite on one host, PostgreSQL on several.

Every transition is one transaction with its event. The final bytes of a document are committed before
the first send, so that whatever happens later the same bytes go out under the same UID. Delivery is
by leases with fencing tokens: who lost its lease cannot record. Knows no DICOM and sends nothing.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, RowMapping, select

from mla_med.errors import LedgerError
from mla_med.ledger.database import as_ledger_error, make_engine, migrate
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
from mla_med.ledger.owners import is_dead
from mla_med.ledger.rows import (
    DEADLINE_S,
    FIRST_BACKOFF_S,
    MAX_BACKOFF_S,
    breaker_of,
    change_after,
    event_row,
    expect_state,
    is_denied_alone,
    jobs_before,
    lock_destinations,
    lock_study,
    may_be_there,
    newest_job,
    one_row,
    set_row,
    state_of,
    to_entry,
    to_job,
    to_lease,
    waiting_for,
)
from mla_med.ledger.seal import SiteKey
from mla_med.ledger.tables import breakers, events, jobs, outbox

LEASE_S = 300.0
"""Longer than any try may take; a worker that died holds its documents for as long."""
BREAKER_THRESHOLD = 3
"""Failures of a destination in a row, after which it is asked with one document at a time."""
KEEP_DELIVERED_S = 30 * 86_400.0
"""Bytes of a delivered document; the row and its events stay."""

OPEN = (JobState.DISCOVERED, JobState.WAITING)
DAMAGED = "BYTES_DAMAGED"
"""Of a document whose bytes are not the committed ones any more."""
_KEY_WITNESSES = 20
_LONGEST_LEASE_S = 86_400.0
"""Far more than any lasts, as some lease for longer than others: a lease that was taken away is work done
for nothing."""
_WHEN = {
    DocumentState.PENDING: (outbox.c.next_at, MAX_BACKOFF_S),
    DocumentState.SENDING: (outbox.c.leased_until, _LONGEST_LEASE_S),
}
"""When a document can be leased, and how far ahead that ever is: what is later was written by a clock that
has been set back since."""
_WITHHELD = {"state": DocumentState.SUPERSEDED, "reason": "REVISED", "sealed": None}
"""Of a document that never left, and whose place another takes."""


class Ledger:
    def __init__(self, engine: Engine, key: SiteKey, clock: Callable[[], float] = time.time):
        self._engine = engine
        self._key = key
        self.clock = clock
        with as_ledger_error():
            migrate(engine)
        self._check_key()

    @classmethod
    def open(cls, url: str, secret: bytes, clock: Callable[[], float] = time.time) -> Ledger:
        """`url`: sqlite:///PATH or postgresql+psycopg://...; made, and brought to its newest form."""
        return cls(make_engine(url), SiteKey(secret), clock)

    def close(self) -> None:
        self._engine.dispose()

    def _check_key(self) -> None:
        """A key that was lost and made anew would find no study again, and everything would go out twice.
        One row that does not open is damaged; where none does, it is the key."""
        wrong: LedgerError | None = None
        for job in self.list_jobs(limit=_KEY_WITNESSES):
            try:
                self.study_uid(job.id)
                return
            except LedgerError as error:
                wrong = error
        if wrong is not None:
            raise wrong

    # In: studies

    def see(self, study_uid: str, instances: int) -> Job:
        """The job of a study of which the PACS has so many instances; a new one where there is none, and a
        revision where there are more than the newest one was made from."""
        now, study_hash = self.clock(), self._key.hash("study", study_uid)
        with self._write() as c:
            lock_study(c, study_hash)
            row = newest_job(c, study_hash, lock=True)
            if row is None:
                return self._new_job(c, study_uid, instances=instances, counted_at=now)
            if row["state"] in OPEN:
                if instances != row["instances"]:
                    set_row(c, jobs, row["id"], instances=instances, counted_at=now, updated_at=now)
                    self._log(c, row["id"], "COUNTED", row["state"])
            elif instances > max(row["instances"], row["own_instances"]):
                if row["state"] == JobState.READY:
                    self._move_job(c, row["id"], JobState.SUPERSEDED, "MORE_IMAGES")
                return self._new_job(
                    c, study_uid, instances=instances, counted_at=now, revises=row["id"], reason="MORE_IMAGES"
                )
            return to_job(one_row(c, jobs, row["id"]))

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
            row = one_row(c, jobs, job_id, lock=True)
            expect_state(row, *OPEN)
            set_row(c, jobs, job_id, own_instances=own_instances)
            self._move_job(c, job_id, state, reason)

    def study_uid(self, job_id: str) -> str:
        with self._read() as c:
            row = one_row(c, jobs, job_id)
        return self._key.unseal(row["sealed"], job_id).decode()

    def open_studies(self) -> tuple[str, ...]:
        """UIDs of those that are not shown to be complete yet, the oldest first."""
        query = select(jobs).where(jobs.c.state.in_(OPEN)).order_by(jobs.c.created_at)
        with self._read() as c:
            rows = c.execute(query).mappings().all()
        uids = []
        for row in rows:
            with suppress(LedgerError):  # a damaged row must not hide the others
                uids.append(self._key.unseal(row["sealed"], row["id"]).decode())
        return tuple(uids)

    def newest_job(self, study_uid: str) -> Job | None:
        with self._read() as c:
            row = newest_job(c, self._key.hash("study", study_uid))
        return None if row is None else to_job(row)

    def predecessors(self, job_id: str) -> tuple[str, ...]:
        """UIDs of `predecessor_documents`."""
        return tuple(document.uid for document in self.predecessor_documents(job_id))

    def predecessor_documents(self, job_id: str) -> tuple[Document, ...]:
        """Of the newest job that this one revises and of which something is at a destination, or may be; for
        the link of a revision (PS3.3 C.17.2, Predecessor Documents Sequence). Without their bytes."""
        with self._read() as c:
            return next((found for found in self._sent_before(c, job_id) if found), ())

    def generation(self, job_id: str) -> int:
        """1 for the first draft of a study that may have got out, 2 for its first revision."""
        with self._read() as c:
            return 1 + sum(map(bool, self._sent_before(c, job_id)))

    def _sent_before(self, c: Connection, job_id: str) -> Iterator[tuple[Document, ...]]:
        """Of each job before this one, the newest first, what may be at a destination."""
        for earlier in jobs_before(c, job_id):
            found = {}
            query = select(outbox).where(outbox.c.job_id == earlier, outbox.c.sealed.is_not(None))
            for row in c.execute(query.order_by(outbox.c.created_at, outbox.c.id)).mappings().all():
                if may_be_there(c, row) and (document := self._open(row)):
                    found[document.uid] = Document(document.kind, document.uid, b"", document.place)
            yield tuple(found.values())

    # Between: documents

    def commit(
        self,
        study_uid: str,
        work: Sequence[str],
        documents: Sequence[Document],
        destinations: Sequence[str],
        job_id: str | None = None,
        *,
        supersede: bool = False,
        withheld: bool = False,
        predecessors: Collection[str] | None = None,
    ) -> Job:
        """The job whose documents these are, with their bytes on the disk when this returns.

        `work`: what was drafted by what (instance UIDs, weights, version). The same work committed again is
        the job of the first time with the bytes of the first time: a model that words its draft anew after
        a kill changes nothing that may have been sent. `job_id`: of the READY job that was drafted.

        `supersede`: these take the place of what was committed for the study before; what of it was certainly
        not sent never is. `withheld`: these are not sent themselves, as what takes their place is committed
        next. `predecessors`: as `predecessors(job_id)` said when these were made; LedgerError if it says
        otherwise by now, as these would not name what went out meanwhile."""
        assert documents, "a job without documents would count as delivered"
        job_key = self._key.hash("work", "\0".join((study_uid, *work)))
        now, study_hash = self.clock(), self._key.hash("study", study_uid)
        with self._write() as c:
            lock_study(c, study_hash)
            found = c.execute(select(jobs).where(jobs.c.job_key == job_key)).mappings().first()
            if found is not None:
                newest = newest_job(c, study_hash)
                if newest is not None and newest["state"] == JobState.READY:
                    self._move_job(c, newest["id"], JobState.SUPERSEDED, "SAME_WORK")
                return to_job(found)
            fresh, owner = self._not_yet_committed(c, documents, destinations)
            if not fresh:
                return to_job(one_row(c, jobs, owner))
            job_id = job_id or self._ready_job(c, study_uid, study_hash)
            row = one_row(c, jobs, job_id, lock=True)
            expect_state(row, JobState.READY)
            if row["study_hash"] != study_hash:
                raise LedgerError(f"Job {job_id} is of another study.", code="JOB_OF_OTHER_STUDY")
            if supersede:
                self._supersede_unsent(c, job_id)
            if predecessors is not None:
                sent = next((found for found in self._sent_before(c, job_id) if found), ())
                if {document.uid for document in sent} != set(predecessors):
                    raise LedgerError(
                        f"Of the study of job {job_id} something was sent while it was drafted, which its "
                        "documents do not name; draft it again.",
                        code="PREDECESSORS_CHANGED",
                    )
            for document, destination in fresh:
                self._put(c, job_id, document, destination, now, withheld)
            set_row(c, jobs, job_id, job_key=job_key)
            if withheld:
                self._move_job(c, job_id, JobState.SUPERSEDED, "REVISED")
            else:
                self._move_job(c, job_id, JobState.DRAFTED)
            return to_job(one_row(c, jobs, job_id))

    def _supersede_unsent(self, c: Connection, job_id: str) -> None:
        """Of the jobs before this one: what waits and is certainly not at its destination stays here, and
        its bytes are erased. What may be there is left to be delivered: half a delivery helps nobody."""
        now, earlier = self.clock(), tuple(jobs_before(c, job_id))
        lock_destinations(c, earlier)
        unsent_states = (DocumentState.PENDING, DocumentState.PARKED)
        waiting = sa.and_(outbox.c.job_id.in_(earlier), outbox.c.state.in_(unsent_states))
        rows = c.execute(select(outbox).where(waiting).with_for_update()).mappings().all()
        unsent = [row for row in rows if not may_be_there(c, row)]
        for row in unsent:
            set_row(c, outbox, row["id"], **_WITHHELD, updated_at=now)
            self._log(c, row["job_id"], "SUPERSEDED", DocumentState.SUPERSEDED, "REVISED", row["id"])
        self._follow(c, {row["job_id"] for row in unsent})

    def _ready_job(self, c: Connection, study_uid: str, study_hash: str) -> str:
        """The newest job of the study, where it waits to be drafted; else a new one."""
        newest = newest_job(c, study_hash)
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

    def _put(
        self, c: Connection, job_id: str, document: Document, destination: str, now: float, withheld: bool
    ) -> None:
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
        values |= _WITHHELD if withheld else {}
        try:
            c.execute(outbox.insert().values(values))
        except sa.exc.IntegrityError:  # another process was a moment faster
            raise _uid_used(document) from None
        if withheld:
            self._log(c, job_id, "COMMITTED", DocumentState.SUPERSEDED, "REVISED", document_id)
        else:
            self._log(c, job_id, "COMMITTED", DocumentState.PENDING, document_id=document_id)

    # Out: deliveries

    def free_dead(self, destination: str) -> int:
        """Ends the leases of processes of this host that are gone, which their successor need not wait for;
        -> how many."""
        now = self.clock()
        with self._write() as c:
            breaker_of(c, destination)
            rows = c.execute(
                sa.select(outbox.c.id, outbox.c.owner).where(
                    outbox.c.destination == destination,
                    outbox.c.state == DocumentState.SENDING,
                    outbox.c.leased_until > now,
                )
            ).all()
            dead = [row.id for row in rows if is_dead(row.owner)]
            if dead:
                c.execute(outbox.update().where(outbox.c.id.in_(dead)).values(leased_until=now))
            return len(dead)

    def lease(
        self, destination: str, owner: str, limit: int = 1, lease_s: float = LEASE_S
    ) -> tuple[Lease, ...]:
        """Documents that are due, each for this owner alone until its lease ends. Of a destination that
        failed lately one at a time, and none before its next try."""
        now = self.clock()
        with self._write() as c:
            self._park_overdue(c, destination, now)
            breaker = breaker_of(c, destination)
            if now < breaker["open_until"] <= now + MAX_BACKOFF_S:  # or the clock was set back
                return ()
            if breaker["period_s"]:
                # one, and not as long as a batch: if whoever sends it dies, the next is sent after that
                limit, lease_s = 1, min(lease_s, LEASE_S)
            due = sa.or_(
                *(
                    sa.and_(outbox.c.state == state, sa.or_(when <= now, when > now + longest_s))
                    for state, (when, longest_s) in _WHEN.items()
                )
            )
            query = (
                select(outbox)
                .where(outbox.c.destination == destination, due)
                .order_by(outbox.c.next_at, outbox.c.created_at)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            leases: list[Lease] = []
            while not leases and (rows := c.execute(query).mappings().all()):
                for row in rows:
                    if document := self._open(row):
                        leases.append(to_lease(row, document, now + lease_s))
                    else:
                        # not sent any more, and in nobody's way
                        self._park(c, row["id"], row["job_id"], DAMAGED, now)
            if not leases:
                return ()
            if breaker["period_s"]:
                # the probe is out: no other worker sends one before it has answered
                self._set_breaker(c, destination, open_until=now + lease_s)
            c.execute(
                outbox.update()
                .where(outbox.c.id.in_([lease.document_id for lease in leases]))
                .values(
                    state=DocumentState.SENDING,
                    owner=owner,
                    leased_until=now + lease_s,
                    fence=outbox.c.fence + 1,
                    attempts=outbox.c.attempts + 1,
                    updated_at=now,
                )
            )
            self._log_all(
                c,
                [
                    event_row(
                        now, lease.job_id, "LEASED", DocumentState.SENDING, "", lease.document_id, lease.fence
                    )
                    for lease in leases
                ],
            )
            return tuple(leases)

    def record(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> tuple[bool, ...]:
        """What came of leased documents of one destination; False for each whose lease was lost."""
        if not outcomes:
            return ()
        (destination,) = {lease.destination for lease, _ in outcomes}
        now = self.clock()
        with self._write() as c:
            breaker_of(c, destination)  # locked first, as by `lease`: two that wait for each other would fail
            ids = [lease.document_id for lease, _ in outcomes]
            query = select(
                outbox.c.id, outbox.c.fence, outbox.c.state, outbox.c.next_at, outbox.c.deadline_at
            )
            rows = {r.id: r for r in c.execute(query.where(outbox.c.id.in_(ids)).with_for_update())}
            kept, changes, happened = [], [], []
            for lease, outcome in outcomes:
                row = rows[lease.document_id]
                holds = row.fence == lease.fence and row.state == DocumentState.SENDING
                alone = holds and outcome.kind is Kind.DENIED and is_denied_alone(c, lease, now)
                change = change_after(row, lease, outcome, now, alone)
                kept.append(holds)
                changes += [change] if holds else []
                happened.append(
                    event_row(
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
            self._judge_destination(c, destination, [outcome for _, outcome in outcomes])
            self._follow(c, {lease.job_id for (lease, _), held in zip(outcomes, kept, strict=True) if held})
        return tuple(kept)

    def _follow(self, c: Connection, job_ids: Collection[str]) -> None:
        """Jobs after some of their documents moved."""
        mine = select(jobs.c.id, jobs.c.state).where(jobs.c.id.in_(job_ids)).order_by(jobs.c.id)
        # locked before their documents are read: of two that move the last ones, one must see both
        before = dict(c.execute(mine.with_for_update()).tuples().all())
        found: dict[str, list[tuple[str, str]]] = {job_id: [] for job_id in job_ids}
        query = select(outbox.c.job_id, outbox.c.state, outbox.c.reason)
        for job_id, state, reason in c.execute(query.where(outbox.c.job_id.in_(job_ids))):
            found[job_id].append((state, reason))
        moves = {job_id: state_of(documents) for job_id, documents in found.items()}
        self._move_jobs(c, {j: move for j, move in moves.items() if move[0] != before[j]})

    def _judge_destination(self, c: Connection, destination: str, outcomes: Sequence[Outcome]) -> None:
        """One answer that is not about the destination's health closes the breaker, and what waited for it is
        due at once; failures in a row open it, for twice as long each time, and not to be let in at once."""
        breaker, now = breaker_of(c, destination), self.clock()
        if any(outcome.kind in (Kind.DELIVERED, Kind.PERMANENT) for outcome in outcomes):
            if breaker["failures"]:
                self._set_breaker(c, destination, failures=0, open_until=0.0, period_s=0.0, reason="")
            if breaker["period_s"]:
                self._make_due(c, destination, now)
            if breaker["reason"]:
                # the time for which nobody was let in is not theirs
                late = sa.and_(waiting_for(destination), outbox.c.deadline_at < now + DEADLINE_S)
                c.execute(outbox.update().where(late).values(deadline_at=now + DEADLINE_S))
            return
        denied = next((outcome.reason for outcome in outcomes if outcome.kind is Kind.DENIED), "")
        failures, period_s = breaker["failures"] + 1, 0.0
        if denied or failures >= BREAKER_THRESHOLD:
            period_s = min(MAX_BACKOFF_S, 2 * breaker["period_s"] or FIRST_BACKOFF_S)
        self._set_breaker(
            c,
            destination,
            failures=failures,
            period_s=period_s,
            open_until=now + period_s if period_s else 0.0,
            reason=denied,
        )

    def _make_due(self, c: Connection, destination: str, now: float) -> None:
        later = sa.and_(waiting_for(destination), outbox.c.next_at > now)
        c.execute(outbox.update().where(later).values(next_at=now))

    def _park_overdue(self, c: Connection, destination: str, now: float) -> None:
        """What was tried until its deadline, or could not be tried as the destination was down. What was
        never tried, as nothing ran here, still gets its try; while we are not let in, nothing is overdue."""
        breaker = breaker_of(c, destination)
        if breaker["reason"]:
            return
        overdue = sa.and_(waiting_for(destination), outbox.c.deadline_at <= now)
        if not breaker["period_s"]:
            overdue = sa.and_(overdue, outbox.c.attempts > 0)
        for row in c.execute(select(outbox.c.id, outbox.c.job_id).where(overdue)).all():
            self._park(c, row.id, row.job_id, "DEADLINE", now)

    def _park(self, c: Connection, document_id: str, job_id: str, reason: str, now: float) -> None:
        set_row(c, outbox, document_id, state=DocumentState.PARKED, reason=reason, owner="", updated_at=now)
        self._log(c, job_id, "PARKED", DocumentState.PARKED, reason, document_id)
        self._follow(c, [job_id])

    # A person's part

    def retry(self, job_id: str) -> Job:
        """Parked documents are due again, with a new deadline; a quarantined study is asked for again. Not
        where a newer job took its place: a draft of half a study would follow that of the whole."""
        now = self.clock()
        with self._write() as c:
            lock_destinations(c, [job_id])
            row = one_row(c, jobs, job_id, lock=True)
            expect_state(row, JobState.PARKED, JobState.QUARANTINED)
            newest = newest_job(c, row["study_hash"])
            if newest is not None and newest["id"] != job_id:
                raise LedgerError(
                    f"Job {job_id} was revised: job {newest['id']} is of more images of its study. "
                    "Discard the older one.",
                    code="STATE_WRONG",
                )
            if row["state"] == JobState.QUARANTINED:
                self._move_job(c, job_id, JobState.DISCOVERED, "RETRIED")
            parked = sa.and_(outbox.c.job_id == job_id, outbox.c.state == DocumentState.PARKED)
            for (document_id,) in c.execute(select(outbox.c.id).where(parked)).all():
                set_row(
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
            return to_job(one_row(c, jobs, job_id))

    def ask_again(self) -> tuple[str, ...]:
        """Destinations that were being spared, or did not let us in: each is asked at the next delivery, with
        one document."""
        now = self.clock()
        with self._write() as c:
            query = select(breakers.c.destination).where(breakers.c.period_s > 0)
            names = tuple(c.execute(query.order_by(breakers.c.destination)).scalars().all())
            for destination in names:
                self._set_breaker(c, destination, open_until=now)
                self._make_due(c, destination, now)
        return names

    def discard(self, job_id: str, reason: str) -> Job:
        """A person decided that it is not delivered: bytes are erased, the row and its events stay."""
        now = self.clock()
        with self._write() as c:
            lock_destinations(c, [job_id])
            expect_state(
                one_row(c, jobs, job_id, lock=True),
                *(JobState.PARKED, JobState.QUARANTINED, JobState.WAITING, JobState.DISCOVERED),
                *(JobState.READY, JobState.DRAFTED),
            )
            rest = sa.and_(outbox.c.job_id == job_id, outbox.c.state != DocumentState.DELIVERED)
            query = select(outbox.c.state, outbox.c.leased_until, outbox.c.reason).where(rest)
            rows = c.execute(query.with_for_update()).all()
            if any(row.state == DocumentState.SENDING and row.leased_until > now for row in rows):
                raise LedgerError(
                    f"A document of job {job_id} is being sent; try again in a moment.", code="BEING_SENT"
                )
            if any(row.reason == DAMAGED for row in rows):
                # nobody decided against this work: it was lost here, and may be done again
                set_row(c, jobs, job_id, job_key=None)
            c.execute(
                outbox.update()
                .where(rest)
                .values(state=DocumentState.DISCARDED, reason=reason, sealed=None, updated_at=now)
            )
            self._move_job(c, job_id, JobState.DISCARDED, reason)
            return to_job(one_row(c, jobs, job_id))

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
                whole = self._open(row)
                erased = Document(row["kind"], whole.uid, b"", whole.place) if whole else None
                sealed = self._seal(erased, row["id"]) if erased else None
                set_row(c, outbox, row["id"], sealed=sealed, size_bytes=0)
        return len(rows)

    # To look at

    def list_jobs(self, state: JobState | None = None, limit: int = 100) -> tuple[Job, ...]:
        """The newest first."""
        query = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id).limit(limit)
        with self._read() as c:
            rows = c.execute(query.where(jobs.c.state == state) if state else query).mappings().all()
        return tuple(map(to_job, rows))

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
        return to_job(rows[0])

    def documents(self, job_id: str) -> tuple[OutboxEntry, ...]:
        query = select(outbox).where(outbox.c.job_id == job_id).order_by(outbox.c.created_at, outbox.c.id)
        with self._read() as c:
            rows = c.execute(query).mappings().all()
        return tuple(map(to_entry, rows))

    def content(self, document_id: str) -> bytes:
        """The committed bytes of a document."""
        with self._read() as c:
            row = one_row(c, outbox, document_id)
        if row["sealed"] is None or not row["size_bytes"]:
            raise LedgerError(f"The bytes of document {document_id} were erased.", code="CONTENT_ERASED")
        if (document := self._open(row)) is None:
            raise LedgerError(
                f"The bytes of document {document_id} are not the committed ones: the database was damaged.",
                code=DAMAGED,
            )
        return document.content

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
        when = sa.case(*((outbox.c.state == state, column) for state, (column, _) in _WHEN.items()))
        with self._read() as c:
            first = c.execute(select(sa.func.min(when)).where(waiting)).scalar()
            opens = c.execute(
                select(breakers.c.open_until).where(breakers.c.destination == destination)
            ).scalar()
        # never later than anything is put off, however far ahead the clock was when it was
        return None if first is None else min(max(first, opens or 0.0), self.clock() + MAX_BACKOFF_S)

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

    def denied(self, destination: str) -> str:
        """The reason code while a destination does not let us in; else empty."""
        with self._read() as c:
            found = select(breakers.c.reason).where(breakers.c.destination == destination)
            return c.execute(found).scalar() or ""

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
        study_hash = self._key.hash("study", study_uid)
        newest = newest_job(c, study_hash)
        # where the clock was set back it would be older than the one that it follows
        created_at = max(now, newest["created_at"] + 1e-3) if newest else now
        c.execute(
            jobs.insert().values(
                id=job_id,
                study_hash=study_hash,
                state=JobState.DISCOVERED,
                reason=reason,
                instances=instances,
                counted_at=counted_at,
                own_instances=0,
                revises=revises,
                sealed=self._key.seal(study_uid.encode(), job_id),
                created_at=created_at,
                updated_at=now,
            )
        )
        self._log(c, job_id, "DISCOVERED", JobState.DISCOVERED, reason)
        return to_job(one_row(c, jobs, job_id))

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
        self._log_all(c, [event_row(now, job_id, "JOB", *move) for job_id, move in moves.items()])

    def _log(
        self,
        c: Connection,
        job_id: str,
        event: str,
        state: str,
        reason: str = "",
        document_id: str | None = None,
    ) -> None:
        self._log_all(c, [event_row(self.clock(), job_id, event, state, reason, document_id)])

    def _log_all(self, c: Connection, happened: Sequence[dict[str, Any]]) -> None:
        if happened:
            c.execute(events.insert(), happened)

    def _set_breaker(self, c: Connection, destination: str, **values: float | str) -> None:
        c.execute(breakers.update().where(breakers.c.destination == destination).values(values))

    def _seal(self, document: Document, document_id: str) -> bytes:
        names = f"{document.uid} {document.place}".strip().encode()
        return self._key.seal(names + b"\0" + document.content, document_id)

    def _open(self, row: RowMapping) -> Document | None:
        """None where they are not the committed bytes any more."""
        try:
            names, _, content = self._key.unseal(row["sealed"] or b"", row["id"]).partition(b"\0")
        except LedgerError:  # that the key is right was seen when the ledger was opened
            return None
        if row["size_bytes"] and self._key.hash("content", content) != row["digest"]:
            return None
        uid, _, place = names.decode().partition(" ")
        return Document(row["kind"], uid, content, place)

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with as_ledger_error(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with as_ledger_error(), self._engine.connect() as connection:
            yield connection.execution_options(reads=True)


def _uid_used(document: Document) -> LedgerError:
    return LedgerError(
        f"The UID of a {document.kind} names a document that was committed before with other content. "
        "A changed document needs a UID of its own, and a link to the one before.",
        code="UID_USED",
    )
