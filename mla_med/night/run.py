"""A settings file -> a whole night: workers started, the loop run, the account written, people told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from mla_med.dicom.apart import ReaderProcess
from mla_med.errors import MlaMedError
from mla_med.ledger.nouns import Job, JobState
from mla_med.logs import log
from mla_med.night.alarm import alarm_of, tell_people, telling_failure
from mla_med.night.audit import Audit, audit_night, write_audit
from mla_med.night.cluster import Cluster
from mla_med.night.loop import Site, Submit, Tell, by_threads, open_site, run_night
from mla_med.night.metrics import NightMetrics
from mla_med.night.pool import Pool
from mla_med.night.settings import NightSettings
from mla_med.night.work import Drafted, release

UNDER_WAY = "under-way"
"""Among the records while a night lasts: when it began."""


@dataclass(frozen=True, slots=True)
class Account:
    audit: Audit
    folder: Path
    """Of the audit report."""


def whole_night(
    settings_file: Path,
    *,
    hold: bool | None = None,
    stop: threading.Event | None = None,
    tell: Tell = lambda what, job_id, state: None,
    done: Callable[[Drafted], None] = lambda drafted: None,
    metrics: NightMetrics | None = None,
) -> Account:
    """With this machine's workers, or those of the cluster. `hold`: other than the settings say."""
    with telling_failure(settings_file, "night"), open_site(settings_file) as site:
        if hold is not None:
            site = replace(site, night=replace(site.night, hold=hold))
        with (
            workers_of(settings_file, site.night) as workers,
            by_threads(workers.draft, workers.slots) as submit,
        ):
            return night_with(site, submit, workers.slots, stop=stop, tell=tell, done=done, metrics=metrics)


def workers_of(settings_file: Path, night: NightSettings) -> Pool | Cluster:
    if night.dask:
        return Cluster(night.dask, settings_file, night.hold)
    return Pool(settings_file, night.workers, night.ahead, night.hold, batch=night.batch)


def night_with(
    site: Site,
    submit: Submit,
    slots: int,
    *,
    stop: threading.Event | None = None,
    tell: Tell = lambda what, job_id, state: None,
    done: Callable[[Drafted], None] = lambda drafted: None,
    metrics: NightMetrics | None = None,
    pause: Callable[[float], None] | None = None,
) -> Account:
    """With whatever workers `submit` hands a job id to."""
    metrics = metrics or NightMetrics(site.book, site.pacs.name, Path(site.night.records))

    def count(drafted: Drafted) -> None:
        metrics.observe_draft(drafted)
        done(drafted)

    under_way = Path(site.night.records) / UNDER_WAY
    with suppress(OSError):  # the disk may be what is full: this night at least is done
        under_way.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        under_way.write_text(f"{site.book.clock():.0f}\n")
    with metrics.running(), ReaderProcess() as reader:
        night = run_night(
            site,
            submit,
            slots,
            call=reader.call,
            stop=stop,
            tell=tell,
            done=count,
            observe=metrics.observe,
            pause=pause,
        )
    if not night.stopped:
        with suppress(OSError):
            under_way.unlink()
    metrics.end(night)
    audit = audit_night(site, night)
    if message := alarm_of(audit):
        try:
            tell_people(site.night, message)  # first: the disk may be what is full
        except MlaMedError as error:  # a password that cannot be read: the account is written all the same
            log("alarm_failed", level="error", code=error.code)
    return Account(audit, write_audit(audit, Path(site.night.records)))


def was_cut_off(night: NightSettings, now_s: float) -> bool:
    """Whether a night that began within its window was stopped or killed: the studies of it still wait."""
    try:
        began_s = float((Path(night.records) / UNDER_WAY).read_text())
    except (OSError, ValueError):
        return False
    return 0 <= now_s - began_s < 3600 * night.window_h


def release_all(site: Site, among: Collection[str] | None = None) -> list[Job]:
    """Every held draft goes out, but of what grew meanwhile or was discarded. `among`: of these alone. One
    that must not go out stops no other."""
    held = [one.job_id for one in site.claims.standing("HELD") if among is None or one.job_id in among]
    ready = [job_id for job_id in held if site.book.job(job_id).state is JobState.READY]
    released = []
    for job_id in ready:
        try:
            released.append(release(site.book, site.claims, site.pacs, site.night, job_id))
        except MlaMedError as error:
            log("release_failed", level="warning", job=job_id, code=error.code)
    return released
