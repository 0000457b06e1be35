"""A PACS, or a folder that studies are dropped into -> complete studies in the inbox, one folder for
each job, named by its id.

A study that is not shown to be complete is held, with a reason, and asked for again. Nothing of what
a header says becomes a file name, and every file gets an empty preamble (CVE-2019-11687).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from mla_med.archive import open_file, size_of
from mla_med.errors import OutputError, PacsError, StudyError
from mla_med.ledger.failpoints import reach
from mla_med.ledger.ledger import OPEN, Ledger
from mla_med.ledger.nouns import Job, JobState
from mla_med.logs import log
from mla_med.pacs.complete import Verdict, judge, look
from mla_med.pacs.peer import Peer, SeriesCount, images
from mla_med.pacs.settings import PacsSettings

Call = Callable[..., Any]
Stamps = dict[Path, tuple[float, float, int]]
"""Of each file when it was last changed, when it came here, and its size."""
MAX_FILE_BYTES = 4 * 2**30


@dataclass(frozen=True, slots=True)
class Pulled:
    job: Job
    folder: Path | None
    """None while it is held."""


def pull_due(
    ledger: Ledger, peer: Peer, settings: PacsSettings, call: Call = lambda f, *args: f(*args)
) -> Iterator[Pulled]:
    """One pass over the PACS's newest studies, and older ones that are held; each that was judged in it.
    `call` runs the reader, here or in a child process with limits. One study that fails stops none."""
    check_room(settings)
    # a study has the date of where it was made: in Greenwich it may be tomorrow
    first = datetime.fromtimestamp(ledger.clock()) - timedelta(days=settings.days)
    found = peer.find_studies(first.date(), settings.modalities)
    for study_uid in dict.fromkeys((*found, *ledger.open_studies())):
        check_room(settings)  # what the one before took may have been the last
        try:
            pulled = pull_study(ledger, peer, settings, study_uid, call)
        except PacsError as error:
            log("pull_failed", level="warning", code=error.code)
            continue
        if pulled is not None:
            yield pulled


def pull_study(
    ledger: Ledger,
    peer: Peer,
    settings: PacsSettings,
    study_uid: str,
    call: Call = lambda f, *args: f(*args),
) -> Pulled | None:
    """None while there is nothing to judge: no images, too early for a second count, or done before."""
    series = list(images(peer.count(study_uid), settings.modalities))
    counted = sum(one.instances for one in series)
    if not counted:
        return None
    job = ledger.see(study_uid, counted)
    if job.state not in OPEN or ledger.clock() - job.counted_at_s < settings.settle_s:
        return None
    with _alone(settings, job) as alone:
        # another process is at it, or has just been
        if not alone or ledger.job(job.id).state not in OPEN:
            return None
        return _fetch(ledger, peer, settings, job, study_uid, series, call)


def _fetch(
    ledger: Ledger,
    peer: Peer,
    settings: PacsSettings,
    job: Job,
    study_uid: str,
    series: list[SeriesCount],
    call: Call,
) -> Pulled:
    counted = sum(one.instances for one in series)
    with _as_inbox_full(), _partial(settings, job) as partial:
        for one in series:
            peer.retrieve(study_uid, one.series_uid, partial.write)
        try:
            received = call(look, partial.folder)
        except StudyError as error:
            if error.code == "READER_STOPPED":  # by whoever ends the night: it is fetched again by the next
                return Pulled(ledger.job(job.id), None)
            ledger.quarantine(job.id, error.code)  # it broke the reader, or its limits
            log("received", level="warning", job=job.id, state=JobState.QUARANTINED, code=error.code)
            return Pulled(ledger.job(job.id), None)
        return _settle(ledger, job, judge(received, study_uid, counted), received.instances, partial)


def take_dropped(
    ledger: Ledger, drop: Path, settings: PacsSettings, call: Call = lambda f, *args: f(*args)
) -> Iterator[Pulled]:
    """Every study that lies in a folder of its own in `drop`, once its files have not changed for a while.

    Nobody counts here but us: the quiet time is all that completeness rests on, and the job says so. What
    was taken is removed from `drop`; what is held, or came while it was taken, stays."""
    check_room(settings)
    for folder in sorted(p for p in drop.iterdir() if p.is_dir() and not p.is_symlink()):
        if folder.name.startswith("."):
            continue  # being written: a whole study is renamed into place
        try:
            with _alone(settings, None) as alone:
                pulled = _take(ledger, folder, settings, call) if alone else None
        except StudyError as error:
            log("drop_failed", level="warning", code=error.code)
            continue
        if pulled is not None:
            yield pulled


def _take(ledger: Ledger, folder: Path, settings: PacsSettings, call: Call) -> Pulled | None:
    before = _stamps(folder)
    # `cp -p` and many a sender keep the time of the last change: that of its coming nobody can set
    newest = max((max(changed, came) for changed, came, _ in before.values()), default=time.time())
    if not before or time.time() - newest < settings.settle_s:
        return None
    with _as_inbox_full(), _partial(settings, None) as partial:
        for path in before:
            try:
                with open_file(path) as file:  # no link, no FIFO, no device
                    if size_of(file) > MAX_FILE_BYTES:
                        raise StudyError("A file in the drop folder is too large.", code="TOO_LARGE")
                    file.seek(0)
                    partial.write(file.read())
            except OSError as error:
                raise StudyError(
                    f"A file in the drop folder cannot be read: {error.strerror}.", code="UNREADABLE"
                ) from None
        received = call(look, partial.folder)
        if _stamps(folder) != before:
            return None  # it is being written still
        if len(received.study_uids) != 1:
            raise StudyError("A dropped folder does not hold one study.", code="SEVERAL_STUDIES")
        study_uid = received.study_uids[0]
        job = ledger.see(study_uid, received.instances)
        if job.state not in OPEN:
            if _digests(partial.folder) <= _digests(folder_of(settings, job.id)):
                _remove(folder, before)  # the same images again
            else:
                log("drop_left", level="warning", job=job.id, state=job.state, code="STUDY_KNOWN")
            return None
        verdict = judge(received, study_uid, received.instances)
        if verdict.state == "READY":
            verdict = Verdict("READY", "QUIET_TIMER")
        pulled = _settle(ledger, job, verdict, received.instances, partial)
    if pulled.folder is not None:
        _remove(folder, before)
    return pulled


def _stamps(folder: Path) -> Stamps:
    stamps = {}
    for path in (Path(at, name) for at, _, names in os.walk(folder) for name in sorted(names)):
        with suppress(FileNotFoundError):  # it was a sender's, who renames or removes it
            status = path.lstat()
            stamps[path] = (status.st_mtime, status.st_ctime, status.st_size)
    return stamps


def _remove(folder: Path, taken: Stamps) -> None:
    """What was taken. What came, or was written anew, since then stays, and the folders that it lies in."""
    try:
        for path, stamp in _stamps(folder).items():
            if taken.get(path) == stamp:
                path.unlink(missing_ok=True)
    except OSError:
        log("drop_left", level="warning", code="NOT_REMOVED")
    for at, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            os.rmdir(at)


def _digests(folder: Path) -> set[bytes]:
    return {sha256(path.read_bytes()).digest() for path in folder.iterdir()} if folder.is_dir() else set()


def check_room(settings: PacsSettings) -> None:
    """PacsError with INTAKE_STOPPED before the disk is full: what is here can still be finished."""
    inbox = Path(settings.inbox)
    with _as_inbox_full():
        inbox.mkdir(parents=True, exist_ok=True, mode=0o700)
    usage = shutil.disk_usage(inbox)
    if usage.used / usage.total > settings.max_used or usage.free < settings.min_free_bytes:
        raise PacsError(
            f"The inbox's disk is {usage.used / usage.total:.0%} full with {usage.free / 1e9:.1f} GB free; "
            "no study is taken in. Make room, or change max_used and min_free_bytes.",
            code="INTAKE_STOPPED",
        )


def folder_of(settings: PacsSettings, job_id: str) -> Path:
    """Where a complete study lies."""
    return Path(settings.inbox) / job_id


@contextmanager
def _alone(settings: PacsSettings, job: Job | None) -> Iterator[bool]:
    """Whether nobody else, in any process of this machine, fetches the same now: two would write into one
    folder. The lock of a process that was killed is gone with it. OutputError where there are no locks."""
    path = _partial(settings, job).folder.with_suffix(".lock")
    with _as_inbox_full():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = path.open("w")
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # or it is that of one who has ended since
            alone = path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino
        except (BlockingIOError, FileNotFoundError):
            alone = False
        except OSError as error:
            raise OutputError(
                f"The file system of {settings.inbox} has no locks: {error.strerror}. Put the inbox on a "
                "disk of this machine, or on NFS with locks.",
                code="INBOX_NO_LOCKS",
            ) from error
        if not alone:
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


class _Partial:
    """A folder that is filled, and then renamed or removed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._count = 0

    def write(self, content: bytes) -> None:
        self._count += 1
        path = self.folder / f"{self._count:06d}.dcm"
        if content[128:132] == b"DICM":
            content = bytes(128) + content[128:]
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # some file systems tell of a full disk only here

    def __enter__(self) -> _Partial:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.mkdir(mode=0o700)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def _as_inbox_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"A study could not be written to the inbox: {error.strerror}. It is taken in when there is "
            "room again; nothing of it was left.",
            code="INBOX_FULL",
        ) from error


def _partial(settings: PacsSettings, job: Job | None) -> _Partial:
    return _Partial(Path(settings.inbox) / f".partial-{job.id if job else 'drop'}")


def _settle(ledger: Ledger, job: Job, verdict: Verdict, instances: int, partial: _Partial) -> Pulled:
    folder: Path | None = None
    if verdict.state == "READY":
        folder = partial.folder.parent / job.id
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed before the next line but one
        partial.folder.rename(folder)
        reach("after_receive")
        ledger.ready(job.id, instances, verdict.reason)
    elif verdict.state == "WAITING":
        ledger.hold(job.id, verdict.reason, instances)
    else:
        ledger.quarantine(job.id, verdict.reason, instances)
    found = ledger.job(job.id)
    held = found.state is not JobState.READY
    log(
        "received",
        level="warning" if held else "info",
        job=job.id,
        state=found.state,
        code=found.reason,
        count=instances,
    )
    return Pulled(found, folder)
