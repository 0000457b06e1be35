"""READY jobs -> who drafts each: one worker at a time, whatever number of processes and hosts there is.

A claim ends by itself, and a later claim of the same job has a higher fence: who was too slow is told so
before it commits. This guards against work done twice; that nothing is *delivered* twice is the ledger's
doing, which takes the same work once. Lives in the ledger's database, in a table of its own. Knows no DICOM.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, RowMapping, select

from mla_med.errors import LedgerError
from mla_med.ledger.database import make_engine
from mla_med.ledger.owners import is_dead

CLAIM_S = 600.0
"""Longer than any step of a draft may take; renewed at each."""
MAX_TRIES = 5
"""Claims of one job, after which it is left for a person: it may be what kills the workers."""
_LOCK = 0x6D6C62  # any number that nobody else takes for an advisory lock

metadata = sa.MetaData()
claims = sa.Table(
    "night_claims",
    metadata,
    sa.Column("job_id", sa.String(32), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),  # CLAIMED, HELD, FAILED or "": free
    sa.Column("code", sa.String(256), nullable=False),  # DRAFTED, the codes of a refusal or of a failure
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("claimed_until", sa.Double, nullable=False),
    sa.Column("fence", sa.Integer, nullable=False),  # counts claims: an older one may not commit
    sa.Column("tries", sa.Integer, nullable=False),  # since a person last asked for one
    sa.Column("updated_at", sa.Double, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Claim:
    job_id: str
    fence: int
    tries: int = 1
    """Of this job, this one counted."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands of a job that was claimed."""

    job_id: str
    state: str
    code: str
    fence: int
    tries: int
    changed_s: float


class Claims:
    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time):
        self._engine = engine
        self.clock = clock
        with self._write() as c:
            if engine.dialect.name == "postgresql":
                c.execute(sa.text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            metadata.create_all(c)

    @classmethod
    def open(cls, url: str, clock: Callable[[], float] = time.time) -> Claims:
        """`url`: the ledger's, whose file or database exists."""
        return cls(make_engine(url), clock)

    def close(self) -> None:
        self._engine.dispose()

    def take(self, job_id: str, owner: str, claim_s: float = CLAIM_S) -> Claim | None:
        """None where somebody else has it, it waits for a person, or it was tried too often."""
        now = self.clock()
        with self._write() as c:
            row = self._row(c, job_id)
            if row["state"] in ("HELD", "FAILED"):
                return None
            # one that lasts much longer was taken by a clock that has been set back since
            lasts = now < row["claimed_until"] < now + 2 * max(CLAIM_S, claim_s)
            if row["state"] == "CLAIMED" and lasts and not is_dead(row["owner"]):
                return None
            if row["tries"] >= MAX_TRIES:
                self._set(c, job_id, state="FAILED", code=row["code"] or "WORKER_DIED", owner="")
                return None
            fence = row["fence"] + 1
            self._set(
                c,
                job_id,
                state="CLAIMED",
                owner=owner,
                claimed_until=now + claim_s,
                fence=fence,
                tries=row["tries"] + 1,
            )
            return Claim(job_id, fence, row["tries"] + 1)

    def keep(self, claim: Claim, claim_s: float = CLAIM_S) -> bool:
        """It lasts anew; False where it was lost, and whoever held it must not commit."""
        with self._write() as c:
            holds = self._holds(c, claim)
            if holds:
                self._set(c, claim.job_id, claimed_until=self.clock() + claim_s)
            return holds

    def end(self, claim: Claim, state: str = "", code: str = "") -> bool:
        """HELD: a person releases it. FAILED: no more tries. "": free for the next, if it is READY still."""
        with self._write() as c:
            holds = self._holds(c, claim)
            if holds:
                self._set(c, claim.job_id, state=state, code=code[:256], owner="", claimed_until=0.0)
            return holds

    def free(self, job_id: str) -> None:
        """A person asks for new tries, or has let it go out."""
        with self._write() as c:
            self._row(c, job_id)
            self._set(c, job_id, state="", owner="", claimed_until=0.0, tries=0)

    def standing(self, state: str | None = None) -> tuple[Standing, ...]:
        query = select(claims).order_by(claims.c.updated_at)
        with self._write() as c:
            rows = c.execute(query.where(claims.c.state == state) if state else query).mappings().all()
        return tuple(
            Standing(r["job_id"], r["state"], r["code"], r["fence"], r["tries"], r["updated_at"])
            for r in rows
        )

    def _holds(self, c: Connection, claim: Claim) -> bool:
        row = self._row(c, claim.job_id)
        return row["state"] == "CLAIMED" and row["fence"] == claim.fence

    def _row(self, c: Connection, job_id: str) -> RowMapping:
        query = select(claims).where(claims.c.job_id == job_id).with_for_update()
        row = c.execute(query).mappings().first()
        if row is None:
            fresh = {"job_id": job_id, "state": "", "code": "", "owner": "", "claimed_until": 0.0}
            fresh |= {"fence": 0, "tries": 0, "updated_at": self.clock()}
            c.execute(_insert(c).values(fresh).on_conflict_do_nothing())
            row = c.execute(query).mappings().one()
        return row

    def _set(self, c: Connection, job_id: str, **values: object) -> None:
        c.execute(claims.update().where(claims.c.job_id == job_id).values(**values, updated_at=self.clock()))

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except (sa.exc.OperationalError, sa.exc.InterfaceError):
            raise LedgerError(
                "The ledger's database could not be read or written; nothing was changed. Is there space on "
                "its disk, and is its server up?",
                code="LEDGER_UNREACHABLE",
            ) from None


def _insert(c: Connection):
    if c.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(claims)
    from sqlalchemy.dialects import sqlite

    return sqlite.insert(claims)
