"""Drafts, versions, decisions, readers and the audit -> rows in the ledger's database, each change one
transaction with its line of the audit, on the disk when a call returns.

Knows no draft's content: what is sealed comes and goes as bytes. Knows no patient.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, RowMapping, select

from mla_med.errors import LedgerError
from mla_med.ledger.database import as_ledger_error, make_engine
from mla_med.ledger.seal import SiteKey
from mla_med.review.nouns import (
    DECIDED_STATES,
    OPEN_STATES,
    Decision,
    Filter,
    Item,
    OutcomeRow,
    Session,
    StaleVersion,
    User,
    Version,
)
from mla_med.review.tables import (
    audit,
    codes,
    decisions,
    drafts,
    metadata,
    outcomes,
    sessions,
    users,
    versions,
)

_LOCK = 0x6D6C62
_SEEN_EVERY_S = 30.0
"""How exact the time of a session's last request is: not every request is a write."""
MERGED_S = 8.0
"""Changes of one thing by one reader within so long are one step of undo: nobody undoes letters."""


class Store:
    def __init__(self, engine: Engine, key: SiteKey, clock: Callable[[], float] = time.time):
        self._engine = engine
        self._key = key
        self.clock = clock
        self._waiting: list[dict[str, Any]] = []
        self._queueing, self._flushing = threading.Lock(), threading.Lock()
        with self._write() as c:
            if engine.dialect.name == "postgresql":
                c.execute(sa.text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            metadata.create_all(c)

    @classmethod
    def open(cls, url: str, secret: bytes, clock: Callable[[], float] = time.time) -> Store:
        """`url` and `secret`: the ledger's."""
        return cls(make_engine(url), SiteKey(secret), clock)

    def close(self) -> None:
        self._engine.dispose()

    def derive(self, purpose: str) -> bytes:
        """A secret of this site for one purpose: signing what a browser keeps for us."""
        return bytes.fromhex(self._key.hash("review secret", purpose))

    # Worklist

    def put(self, item: Item, stated: dict[str, str]) -> None:
        """A draft that is new here. `stated`: code -> presence."""
        with self._write() as c:
            if c.execute(select(drafts.c.job_id).where(drafts.c.job_id == item.job_id)).first():
                return
            c.execute(drafts.insert().values(_to_row(item, self.clock())))
            if stated:
                rows = [
                    {"job_id": item.job_id, "code": code, "presence": presence}
                    for code, presence in stated.items()
                ]
                c.execute(codes.insert(), rows)

    def known(self) -> frozenset[str]:
        with self._read() as c:
            return frozenset(c.execute(select(drafts.c.job_id)).scalars())

    def take_off(self, job_id: str) -> bool:
        """From the worklist, what is not decided: another draft took its place, or nobody wants it."""
        with self._write() as c:
            undecided = sa.and_(drafts.c.job_id == job_id, drafts.c.state.in_(OPEN_STATES))
            done = c.execute(drafts.delete().where(undecided)).rowcount
            if done:
                c.execute(codes.delete().where(codes.c.job_id == job_id))
        return bool(done)

    def item(self, job_id: str) -> Item | None:
        with self._read() as c:
            row = c.execute(select(drafts).where(drafts.c.job_id == job_id)).mappings().first()
        return None if row is None else _to_item(row)

    def page(
        self, wanted: Filter, after: tuple[int, float, str] | None = None, limit: int = 50
    ) -> list[Item]:
        """The most urgent and then the oldest first; the next page begins after the last item's key."""
        query = self._filtered(select(drafts), wanted)
        if after is not None:
            place = sa.tuple_(drafts.c.rank, drafts.c.arrived_at, drafts.c.job_id)
            query = query.where(place > sa.tuple_(*(sa.literal(value) for value in after)))
        query = query.order_by(drafts.c.rank, drafts.c.arrived_at, drafts.c.job_id).limit(limit)
        with self._read() as c:
            return [_to_item(row) for row in c.execute(query).mappings()]

    def next_after(self, item: Item, wanted: Filter) -> str | None:
        """The draft that comes after this one in the worklist, or its first."""
        here = self.page(wanted, item.key, 1) or self.page(wanted, None, 1)
        return here[0].job_id if here and here[0].job_id != item.job_id else None

    def _filtered(self, query: Any, wanted: Filter) -> Any:
        now = self.clock()
        if wanted.states:
            query = query.where(drafts.c.state.in_(wanted.states))
        if wanted.examination:
            query = query.where(drafts.c.examination == wanted.examination)
        if wanted.rank is not None:
            query = query.where(drafts.c.rank == wanted.rank)
        if wanted.min_age_s:
            query = query.where(drafts.c.arrived_at <= now - wanted.min_age_s)
        if wanted.max_age_s:
            query = query.where(drafts.c.arrived_at >= now - wanted.max_age_s)
        if wanted.job_id:
            query = query.where(drafts.c.job_id.startswith(wanted.job_id, autoescape=True))
        if wanted.scanner:
            query = query.where(drafts.c.scanner.icontains(wanted.scanner, autoescape=True))
        if wanted.codes:
            stated = select(codes.c.job_id).where(
                codes.c.job_id == drafts.c.job_id,
                codes.c.code.in_(wanted.codes),
                codes.c.presence == "present",
            )
            query = query.where(stated.exists())
        return query

    def present_codes(self, job_ids: Sequence[str]) -> dict[str, list[str]]:
        """What is present in each."""
        found: dict[str, list[str]] = {job_id: [] for job_id in job_ids}
        query = select(codes.c.job_id, codes.c.code).where(
            codes.c.job_id.in_(job_ids), codes.c.presence == "present"
        )
        with self._read() as c:
            for job_id, code in c.execute(query):
                found[job_id].append(code)
        return found

    def counts(self) -> dict[str, int]:
        query = select(drafts.c.state, sa.func.count()).group_by(drafts.c.state)
        with self._read() as c:
            return dict(c.execute(query).tuples().all())

    def stamp(self) -> str:
        """Another one whenever something of the worklist has changed."""
        with self._read() as c:
            newest = c.execute(select(sa.func.max(drafts.c.updated_at))).scalar()
        return f"{newest or 0:.6f}"

    # Versions

    def open_draft(self, job_id: str, who: str) -> None:
        """Somebody looks at it."""
        now = self.clock()
        with self._write() as c:
            c.execute(
                drafts.update()
                .where(drafts.c.job_id == job_id)
                .values(
                    opened_at=sa.case((drafts.c.opened_at == 0, now), else_=drafts.c.opened_at),
                    opened_by=who,
                    state=sa.case((drafts.c.state == "NEW", "OPEN"), else_=drafts.c.state),
                    updated_at=now,
                )
            )
            self._log(c, who, "OPENED", job_id)

    def version(self, job_id: str, number: int) -> Version | None:
        """None: there is no such version; 0, the draft as it was made, is none."""
        query = select(versions).where(versions.c.job_id == job_id, versions.c.number == number)
        with self._read() as c:
            row = c.execute(query).mappings().first()
        return None if row is None else self._to_version(row)

    def head(self, job_id: str) -> tuple[int, Version | None]:
        item = self.item(job_id)
        number = item.head if item else 0
        return number, self.version(job_id, number) if number else None

    def history(self, job_id: str) -> list[Version]:
        query = select(versions).where(versions.c.job_id == job_id).order_by(versions.c.number)
        with self._read() as c:
            return [self._to_version(row) for row in c.execute(query).mappings()]

    def change(
        self, job_id: str, base: int, who: str, what: str, content: bytes, parent: int | None = None
    ) -> int:
        """The number of the new version. StaleVersion where `base` is not the newest any more. `parent`: what
        undoing it gives back; None: `base`, or what that gives back if the same change goes on."""
        now = self.clock()
        with self._write() as c:
            row = self._open_row(c, job_id, base)
            if parent is None:
                parent = base
                before = self._version_row(c, job_id, base)
                if before is not None and (before["by"], before["what"]) == (who, what):
                    parent = before["parent"] if now - before["at"] < MERGED_S else base
            number = row["head"] + 1
            c.execute(
                versions.insert().values(
                    job_id=job_id,
                    number=number,
                    parent=parent,
                    at=now,
                    by=who,
                    what=what[:64],
                    sealed=self._key.seal(content, _about(job_id, number)),
                )
            )
            c.execute(
                drafts.update()
                .where(drafts.c.job_id == job_id)
                .values(head=number, state="OPEN", opened_by=who, updated_at=now)
            )
            self._log(c, who, "CHANGED", job_id, what)
        return number

    def _open_row(self, c: Connection, job_id: str, base: int) -> RowMapping:
        """A draft that may be changed, locked."""
        query = select(drafts).where(drafts.c.job_id == job_id).with_for_update()
        row = c.execute(query).mappings().first()
        if row is None:
            raise LedgerError("There is no such draft any more; go back to the worklist.", code="NO_DRAFT")
        if row["state"] in DECIDED_STATES:
            raise LedgerError(f"This draft was decided by {row['decided_by']}.", code="DECIDED")
        if row["head"] != base:
            raise StaleVersion(row["head"], base)
        return row

    def _version_row(self, c: Connection, job_id: str, number: int) -> RowMapping | None:
        query = select(versions).where(versions.c.job_id == job_id, versions.c.number == number)
        return c.execute(query).mappings().first()

    def _to_version(self, row: RowMapping) -> Version:
        content = self._key.unseal(row["sealed"], _about(row["job_id"], row["number"]))
        return Version(row["number"], row["parent"], row["at"], row["by"], row["what"], content)

    # Decisions

    def decide(
        self,
        job_id: str,
        base: int,
        who: str,
        decision: str,
        reason: str,
        content: bytes,
        became: Iterable[OutcomeRow],
    ) -> str:
        """The decision's id. It is on the disk before anything of it goes out. StaleVersion as `change`."""
        now, decision_id = self.clock(), uuid.uuid4().hex
        with self._write() as c:
            row = self._open_row(c, job_id, base)
            shared = {name: row[name] for name in ("examination", "scanner", "subgroup", "weights")}
            c.execute(
                decisions.insert().values(
                    id=decision_id,
                    job_id=job_id,
                    at=now,
                    by=who,
                    decision=decision,
                    reason=reason,
                    version=base,
                    sealed=self._key.seal(content, f"decision {decision_id}"),
                    sent_at=0.0,
                    revision_job="",
                    refusal=row["refusal"],
                    drafted_at=row["drafted_at"],
                    opened_at=row["opened_at"],
                    revoked_at=0.0,
                    **shared,
                )
            )
            if rows := [
                {
                    "decision_id": decision_id,
                    "at": now,
                    "code": one.code,
                    "outcome": one.outcome,
                    "drafted": one.drafted,
                    "decided": one.decided,
                    "confidence": one.confidence,
                    **shared,
                }
                for one in became
            ]:
                c.execute(outcomes.insert(), rows)
            c.execute(
                drafts.update()
                .where(drafts.c.job_id == job_id)
                .values(state=decision, decided_at=now, decided_by=who, updated_at=now)
            )
            self._log(c, who, decision, job_id, reason)
        return decision_id

    def revised(self, decision_id: str, revision_job: str) -> None:
        """Its revision is committed to the outbox, and no draft to review however its folder comes to lie
        there."""
        with self._write() as c:
            ours = decisions.c.id == decision_id
            c.execute(decisions.update().where(ours).values(revision_job=revision_job))

    def sent(self, decision_id: str) -> None:
        """All of it is done; or there is nothing to send."""
        with self._write() as c:
            ours = decisions.c.id == decision_id
            c.execute(decisions.update().where(ours).values(sent_at=self.clock()))

    def unsent(self) -> list[Decision]:
        """Of which the server was killed before the revision was committed and laid down."""
        query = select(decisions).where(decisions.c.sent_at == 0, decisions.c.revoked_at == 0)
        with self._read() as c:
            rows = c.execute(query.order_by(decisions.c.at)).mappings().all()
        return [self._to_decision(row) for row in rows]

    def decision(self, decision_id: str) -> Decision:
        with self._read() as c:
            row = c.execute(select(decisions).where(decisions.c.id == decision_id)).mappings().one()
        return self._to_decision(row)

    def decisions_of(self, job_id: str) -> list[Decision]:
        query = select(decisions).where(decisions.c.job_id == job_id).order_by(decisions.c.at)
        with self._read() as c:
            return [self._to_decision(row) for row in c.execute(query).mappings()]

    def revisions(self) -> frozenset[str]:
        """Jobs that this page made: no drafts to review."""
        query = select(decisions.c.revision_job).where(decisions.c.revision_job != "")
        with self._read() as c:
            return frozenset(c.execute(query).scalars())

    def reopen(self, job_id: str, who: str) -> None:
        """An administrator lets it be decided again; what went out stays out, until the next revision."""
        now = self.clock()
        with self._write() as c:
            query = select(drafts).where(drafts.c.job_id == job_id).with_for_update()
            row = c.execute(query).mappings().first()
            if row is None or row["state"] not in DECIDED_STATES:
                raise LedgerError("Only a draft that was decided can be opened again.", code="NOT_DECIDED")
            ours = sa.and_(decisions.c.job_id == job_id, decisions.c.revoked_at == 0)
            if c.execute(select(decisions.c.id).where(ours, decisions.c.sent_at == 0)).first():
                raise LedgerError("Its revision is on its way; try again in a moment.", code="BEING_SENT")
            c.execute(decisions.update().where(ours).values(revoked_at=now))
            c.execute(
                drafts.update()
                .where(drafts.c.job_id == job_id)
                .values(state="OPEN", decided_at=0.0, decided_by="", updated_at=now)
            )
            self._log(c, who, "REOPENED", job_id)

    def _to_decision(self, row: RowMapping) -> Decision:
        content = self._key.unseal(row["sealed"], f"decision {row['id']}")
        return Decision(
            row["id"],
            row["job_id"],
            row["at"],
            row["by"],
            row["decision"],
            row["reason"],
            row["version"],
            content,
            row["sent_at"],
            row["revision_job"],
            row["revoked_at"],
        )

    # To learn from

    def outcomes_of(self, weights: str = "", since_s: float = 0.0) -> list[dict[str, Any]]:
        """Of decisions that stand: code, outcome, drafted, decided, confidence, at, scanner, subgroup."""
        query = (
            select(outcomes)
            .join(decisions, decisions.c.id == outcomes.c.decision_id)
            .where(decisions.c.revoked_at == 0, outcomes.c.at >= since_s)
            .order_by(outcomes.c.id)
        )
        if weights:
            query = query.where(outcomes.c.weights == weights)
        with self._read() as c:
            return [dict(row) for row in c.execute(query).mappings()]

    def decided(self, since_s: float = 0.0) -> list[dict[str, Any]]:
        """Decisions that stand, without what is sealed."""
        columns = [column for column in decisions.c if column.name != "sealed"]
        query = select(*columns).where(decisions.c.revoked_at == 0, decisions.c.at >= since_s)
        with self._read() as c:
            return [dict(row) for row in c.execute(query.order_by(decisions.c.at)).mappings()]

    # Readers

    def add_user(self, name: str, display: str, role: str, secret: str) -> None:
        """Or gives an old one a new role and secret."""
        values = {"display": display, "role": role, "secret": secret, "disabled": 0}
        with self._write() as c:
            if c.execute(select(users.c.name).where(users.c.name == name)).first():
                c.execute(users.update().where(users.c.name == name).values(values))
                c.execute(sessions.delete().where(sessions.c.name == name))
            else:
                c.execute(users.insert().values(name=name, made_at=self.clock(), **values))
            self._log(c, name, "USER_MADE", "", role)

    def disable_user(self, name: str, who: str) -> None:
        """He comes in no more, and is out at once."""
        with self._write() as c:
            done = c.execute(users.update().where(users.c.name == name).values(disabled=1))
            if not done.rowcount:
                raise LedgerError("There is no reader of that name here.", code="NO_USER")
            c.execute(sessions.delete().where(sessions.c.name == name))
            self._log(c, who, "USER_DISABLED", "", name)

    def user(self, name: str) -> User | None:
        with self._read() as c:
            row = c.execute(select(users).where(users.c.name == name)).mappings().first()
        return None if row is None else _to_user(row)

    def users(self) -> list[User]:
        with self._read() as c:
            return [_to_user(row) for row in c.execute(select(users).order_by(users.c.name)).mappings()]

    # Sessions

    def begin_session(self, name: str, display: str, role: str, method: str, language: str) -> str:
        """The secret that the browser keeps."""
        secret, now = secrets.token_urlsafe(32), self.clock()
        with self._write() as c:
            c.execute(
                sessions.insert().values(
                    token=_hash(secret),
                    name=name,
                    display=display,
                    role=role,
                    method=method,
                    csrf=secrets.token_urlsafe(32),
                    language=language,
                    made_at=now,
                    seen_at=now,
                )
            )
            self._log(c, name, "SIGNED_IN", "", method)
        return secret

    def session(self, secret: str, idle_s: float, longest_s: float, is_awake: bool = True) -> Session | None:
        """None: there is none, or it has ended. `is_awake`: somebody asks, and not a clock."""
        token, now = _hash(secret), self.clock()
        with self._read() as c:
            row = c.execute(select(sessions).where(sessions.c.token == token)).mappings().first()
        if row is None:
            return None
        if now - row["seen_at"] > idle_s or now - row["made_at"] > longest_s:
            with self._write() as c:
                c.execute(sessions.delete().where(sessions.c.token == token))
                self._log(c, row["name"], "SESSION_ENDED")
            return None
        if is_awake and now - row["seen_at"] > min(_SEEN_EVERY_S, idle_s / 4):
            with self._write() as c:
                c.execute(sessions.update().where(sessions.c.token == token).values(seen_at=now))
        return Session(
            row["token"],
            row["name"],
            row["display"],
            row["role"],
            row["method"],
            row["csrf"],
            row["language"],
            row["made_at"],
            row["seen_at"],
        )

    def set_language(self, token: str, language: str) -> None:
        with self._write() as c:
            c.execute(sessions.update().where(sessions.c.token == token).values(language=language))

    def end_session(self, session: Session) -> None:
        with self._write() as c:
            c.execute(sessions.delete().where(sessions.c.token == session.token))
            self._log(c, session.name, "SIGNED_OUT")

    # Audit

    def log(self, who: str, action: str, job_id: str = "", detail: str = "") -> None:
        """On the disk when it returns. What fifty readers do at once is one transaction, and one wait for
        the disk: whoever comes first writes for all that wait."""
        row = _audit_row(self.clock(), who, action, job_id, detail)
        with self._queueing:
            self._waiting.append(row)
        with self._flushing:
            with self._queueing:
                rows, self._waiting = self._waiting, []
            if all(one is not row for one in rows):
                with self._queueing:
                    self._waiting = rows + self._waiting
                return  # somebody wrote it along
            try:
                with self._write() as c:
                    c.execute(audit.insert(), rows)
            except BaseException:  # whatever it is
                # the others find theirs and say themselves that it failed
                with self._queueing:
                    self._waiting = [one for one in rows if one is not row] + self._waiting
                raise

    def _log(self, c: Connection, who: str, action: str, job_id: str = "", detail: str = "") -> None:
        c.execute(audit.insert().values(_audit_row(self.clock(), who, action, job_id, detail)))

    def audit_rows(
        self, job_id: str = "", who: str = "", before_id: int = 0, limit: int = 100
    ) -> list[RowMapping]:
        """The newest first."""
        query = select(audit).order_by(audit.c.id.desc()).limit(limit)
        if job_id:
            query = query.where(audit.c.job_id == job_id)
        if who:
            query = query.where(audit.c.who == who)
        if before_id:
            query = query.where(audit.c.id < before_id)
        with self._read() as c:
            return list(c.execute(query).mappings().all())

    def failures(self, who: str, since_s: float) -> int:
        """Failed sign-ins under a name."""
        query = select(sa.func.count()).where(
            audit.c.who == who, audit.c.action == "SIGN_IN_FAILED", audit.c.at >= since_s
        )
        with self._read() as c:
            return c.execute(query).scalar() or 0

    def hidden(self, name: str) -> str:
        """Stands for what somebody typed as a name: a password often stands there by mistake."""
        return "?" + self._key.hash("review name", name)[:20]

    # Within

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with as_ledger_error(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with as_ledger_error(), self._engine.connect() as connection:
            yield connection.execution_options(reads=True)


def _audit_row(at: float, who: str, action: str, job_id: str, detail: str) -> dict[str, Any]:
    return {"at": at, "who": who[:64], "action": action, "job_id": job_id, "detail": detail[:64]}


def _about(job_id: str, number: int) -> str:
    return f"review {job_id} {number}"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _to_row(item: Item, now: float) -> dict[str, Any]:
    return {
        "job_id": item.job_id,
        "state": item.state,
        "rank": item.rank,
        "examination": item.examination,
        "language": item.language,
        "scanner": item.scanner[:64],
        "subgroup": item.subgroup,
        "weights": item.weights,
        "refusal": item.refusal[:64],
        "arrived_at": item.arrived_at_s,
        "drafted_at": item.drafted_at_s,
        "head": item.head,
        "opened_at": item.opened_at_s,
        "opened_by": item.opened_by,
        "decided_at": item.decided_at_s,
        "decided_by": item.decided_by,
        "updated_at": now,
    }


def _to_item(row: RowMapping) -> Item:
    return Item(
        row["job_id"],
        row["state"],
        row["rank"],
        row["examination"],
        row["language"],
        row["scanner"],
        row["subgroup"],
        row["weights"],
        row["refusal"],
        row["arrived_at"],
        row["drafted_at"],
        row["head"],
        row["opened_at"],
        row["opened_by"],
        row["decided_at"],
        row["decided_by"],
        row["updated_at"],
    )


def _to_user(row: RowMapping) -> User:
    return User(row["name"], row["display"], row["role"], row["secret"], bool(row["disabled"]))
