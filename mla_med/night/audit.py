"""A night -> what became of every study that it touched: HTML for people, CSV for spreadsheets, JSON for
programs.

All of it comes from the ledger, so it is right after kills too. Job ids, states, codes, counts and times:
nothing of a patient is in it, and nothing that a header said.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader

from mla_med.errors import OutputError
from mla_med.files import write_text
from mla_med.ledger.ledger import OPEN
from mla_med.ledger.nouns import Job, JobState
from mla_med.night.loop import Night, Site

NEEDS_PERSON = ("PARKED", "QUARANTINED", "FAILED", "HELD", "OVERDUE")
OVERDUE_S = 86_400.0
"""Of a study that is not shown to be complete: it is asked for again, and somebody has to look why."""


@dataclass(frozen=True, slots=True)
class Row:
    """One study of the night."""

    job_id: str
    state: str
    """As in the ledger; HELD and FAILED stand for READY that waits for a person, OVERDUE for what has not
    been complete for a day."""
    reason: str
    images: int
    draft: str
    """DRAFTED, or the reason codes of the refusal; empty where there is no draft."""
    tries: int
    """Of its delivery."""
    found_s: float
    changed_s: float
    minutes: float
    """From its discovery to where it is."""


@dataclass(frozen=True, slots=True)
class Audit:
    night: Night
    destination: str
    rows: tuple[Row, ...]

    @property
    def counts(self) -> dict[str, int]:
        return dict(sorted(Counter(row.state for row in self.rows).items()))

    @property
    def for_people(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.state in NEEDS_PERSON)


def audit_night(site: Site, night: Night) -> Audit:
    """Every job that changed since the night began, and every one that still waits for a person."""
    standing = {s.job_id: s for s in site.claims.standing()}
    rows = []
    for job in site.book.list_jobs(limit=10**6):
        claim = standing.get(job.id)
        waits = claim is not None and claim.state in ("HELD", "FAILED") and job.state is JobState.READY
        state = claim.state if claim is not None and waits else str(job.state)
        if job.state in OPEN and job.created_at_s < night.began_s - OVERDUE_S:
            state = "OVERDUE"
        if job.updated_at_s >= night.began_s or state in NEEDS_PERSON:
            code = claim.code if claim is not None else ""
            rows.append(_row(site, job, state, code))
    return Audit(night, site.pacs.name, tuple(reversed(rows)))


def _row(site: Site, job: Job, state: str, code: str) -> Row:
    return Row(
        job.id,
        state,
        code if state == "FAILED" else job.reason,
        job.own_instances,
        "" if state == "FAILED" else code,
        max((document.attempts for document in site.book.documents(job.id)), default=0),
        job.created_at_s,
        job.updated_at_s,
        round((job.updated_at_s - job.created_at_s) / 60, 1),
    )


def write_audit(audit: Audit, folder: Path) -> Path:
    """night.html, night.csv and night.json in a folder named by the time and id of the night."""
    began = datetime.fromtimestamp(audit.night.began_s, UTC)
    to = folder / f"{began:%Y%m%dT%H%M%SZ}-{audit.night.id}"
    values = {
        "night": asdict(audit.night),
        "counts": audit.counts,
        "studies": [asdict(r) for r in audit.rows],
    }
    try:
        to.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_text(to / "night.csv", _csv(audit.rows))
        write_text(to / "night.html", _html(audit))
        write_text(to / "night.json", json.dumps(values, indent=1) + "\n")
    except OSError as error:
        raise OutputError(f"The account of the night cannot be written to {to}: {error.strerror}.") from error
    return to


def _csv(rows: Iterable[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("job", "state", "reason", "images", "draft", "tries", "found", "changed", "minutes"))
    for row in rows:
        times = (time_of(row.found_s), time_of(row.changed_s))
        writer.writerow(
            (row.job_id, row.state, row.reason, row.images, row.draft, row.tries, *times, row.minutes)
        )
    return text.getvalue()


def _html(audit: Audit) -> str:
    environment = Environment(loader=PackageLoader("mla_med.night"), autoescape=True)
    environment.filters["time"] = time_of
    return environment.get_template("night.html.jinja").render(audit=audit, night=audit.night)


def time_of(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
