"""Jobs of the ledger and their folders -> drafts that can be looked at, changed and decided.

What lies where: draft.json in the folder of drafts, the images in the inbox, or in the folder for what was
taken out of it. Knows no pages and no readers' rights.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from mla_med.dicom.context import read_request
from mla_med.documents.json import draft_from_json
from mla_med.errors import ConfigError, LedgerError, MlaMedError, OutputError, ReportError
from mla_med.ledger.ledger import Ledger
from mla_med.ledger.nouns import JobState
from mla_med.logs import log
from mla_med.pacs.peer import Peer, images
from mla_med.pacs.settings import PacsSettings
from mla_med.report.schema import SCHEMAS, schema_of
from mla_med.review import editing
from mla_med.review.editing import Edited
from mla_med.review.nouns import Item, StaleVersion, Version
from mla_med.review.patients import Origin, Patient, first_image, read_origin, read_patient, uid_in
from mla_med.review.settings import ReviewSettings
from mla_med.review.store import Store
from mla_med.types import ClinicalContext, Draft, Presence

JOB_ID = re.compile(r"[0-9a-f]{32}")
DRAFTED = (JobState.DRAFTED, JobState.DELIVERED, JobState.PARKED, JobState.READY)
"""READY with a draft in its folder: held for a person."""
SCAN_S = 5.0
LEFT_S = 86_400.0
"""No images arrive for so long: whoever fetched them was killed."""
_PASSES = ("LEDGER_UNREACHABLE", "LEDGER_FULL", "NO_DRAFT")
"""Why a draft cannot be put on the worklist now, and may be at the next look."""
CRITICAL, SOMETHING, NOTHING, REFUSED = range(4)


class NoDraft(MlaMedError):
    code = "NO_DRAFT"


@dataclass(frozen=True, slots=True)
class Sheet:
    """One draft on the desk: as it was made, and as it stands."""

    item: Item
    draft: Draft
    edited: Edited | None
    """None: the gate refused, and there is nothing to change."""
    head: int
    can_undo: bool
    last: Version | None
    request: ClinicalContext | None = field(default=None, repr=False)
    """What the images say of the request, read now; None: they are not here."""

    @property
    def now(self) -> Draft:
        """The draft with the report as it stands."""
        if self.edited is None or self.edited.report == self.draft.report:
            return self.draft
        found = editing.complaints_of(self.edited, self.draft, self.request)
        prior = editing.still_compared(self.draft, self.edited.report)
        return replace(self.draft, report=self.edited.report, complaints=found, prior=prior)

    @property
    def is_changed(self) -> bool:
        return self.edited is not None and self.edited.report != self.draft.report


class Desk:
    def __init__(
        self,
        settings: ReviewSettings,
        pacs: PacsSettings,
        drafts: Path,
        book: Ledger,
        store: Store,
        connect: Callable[[], Peer] | None = None,
    ):
        """`connect`: to another PACS than the settings say, for tests."""
        self.settings = settings
        self.pacs = pacs
        self.folder = Path(settings.drafts) if settings.drafts else drafts
        self.book = book
        self.store = store
        self._connect = connect or self._peer
        self._read_draft = lru_cache(maxsize=128)(_read_draft)
        self._ignored: set[str] = set()

    # What there is

    def scan(self) -> int:
        """Drafts that are new go onto the worklist; -> how many. What a person discarded, or more images took
        the place of, leaves it."""
        try:
            names = [entry.name for entry in os.scandir(self.folder) if JOB_ID.fullmatch(entry.name)]
        except OSError:
            return 0
        known = self.store.known()
        fresh = [name for name in names if name not in known and name not in self._ignored]
        ours = self.store.revisions() if fresh else frozenset()
        added = 0
        for job_id in fresh:
            if job_id in ours:
                self._ignored.add(job_id)
            else:
                added += self._put(job_id)
        self._sweep()
        return added

    def _put(self, job_id: str) -> bool:
        if not os.path.exists(self.folder / job_id / "draft.json"):
            return False  # it is being written, and this comes last
        try:
            job = self.book.job(job_id)
            if job.state not in DRAFTED:
                return False
            draft = self.draft(job_id)
        except MlaMedError as error:
            # of another ledger, damaged, or of another version
            log("review_skipped", level="warning", job=job_id, code=error.code)
            if error.code not in _PASSES:
                self._ignored.add(job_id)
            return False
        here = self.images_of(job_id)
        origin = read_origin(here, draft.provenance.study_uid) if here else Origin()
        item = _item(job_id, draft, job.created_at_s, origin.scanner, origin.subgroup)
        self.store.put(item, _stated(draft))
        try:
            self.keep_images(job_id)
        except (OutputError, shutil.Error):
            log("images_not_kept", level="warning", job=job_id)
        while job.revises:
            if self.store.take_off(job.revises):
                self._ignored.add(job.revises)
            job = self.book.job(job.revises)
        return True

    def _sweep(self) -> None:
        over = [job for state in (JobState.DISCARDED, JobState.SUPERSEDED)
                for job in self.book.list_jobs(state, 1000)]  # fmt: skip
        for job in over:
            if job.id not in self._ignored:
                self._ignored.add(job.id)
                self.store.take_off(job.id)

    def draft(self, job_id: str) -> Draft:
        """As it was made."""
        if not JOB_ID.fullmatch(job_id):
            raise NoDraft("There is no such draft.")
        path = self.folder / job_id / "draft.json"
        try:
            return self._read_draft(path, path.stat().st_mtime_ns)
        except OSError:
            raise NoDraft("This draft is not in its folder any more; go back to the worklist.") from None

    def sheet(self, job_id: str) -> Sheet:
        item = self.store.item(job_id) if JOB_ID.fullmatch(job_id) else None
        if item is None:
            raise NoDraft("There is no such draft.")
        draft = self.draft(job_id)
        last = self.store.version(job_id, item.head) if item.head else None
        if draft.report is None:
            return Sheet(item, draft, None, 0, False, None)
        edited = editing.edited_from(last.content) if last else editing.edited_of(draft)
        return Sheet(item, draft, edited, item.head, last is not None, last, self.request(job_id, draft))

    def edited_at(self, job_id: str, number: int) -> Edited:
        """The report as it stood at a version."""
        if number == 0:
            return editing.edited_of(self.draft(job_id))
        version = self.store.version(job_id, number)
        if version is None:
            raise NoDraft("There is no such version.")
        return editing.edited_from(version.content)

    # Whose it is, and its images

    def images_of(self, job_id: str) -> Path | None:
        """None: they are not here any more."""
        places = [Path(self.pacs.inbox) / job_id]
        if self.settings.images:
            places.append(Path(self.settings.images) / job_id)
        return next((place for place in places if place.is_dir()), None)

    def folders_of(self, job_id: str) -> tuple[Path, ...]:
        """Where its images may lie, and those of the prior: in its own folder, or in that of the prior's own
        job. Empty: nothing of it is here."""
        places = [self.images_of(job_id)]
        if prior := self.draft(job_id).prior:
            earlier = self.book.newest_job(prior.study_uid)
            places.append(self.images_of(earlier.id) if earlier else None)
        return tuple(place for place in places if place is not None)

    def request(self, job_id: str, draft: Draft) -> ClinicalContext | None:
        """Without the patient's name and numbers, as when it was drafted; kept nowhere."""
        here = self.images_of(job_id)
        image = first_image(here, draft.provenance.study_uid) if here else None
        return read_request(image).context if image else None

    def patient(self, job_id: str) -> Patient | None:
        """Read now, from the images; where these are gone, from the document of the draft."""
        try:
            study_uid = self.book.study_uid(job_id)
        except LedgerError:
            return None
        here = self.images_of(job_id)
        found = read_patient(here, study_uid) if here else None
        return found or read_patient(self.folder / job_id, study_uid)

    def fetch_images(self, job_id: str) -> bool:
        """From the PACS once more, into the folder for them. PacsError where it does not give them."""
        if not self.settings.images:
            raise ConfigError(
                "The images are not here any more. Set images in [review] to a folder for them, or "
                "keep_images in [night].",
                code="IMAGES_GONE",
            )
        prior = self.draft(job_id).prior
        studies = [self.book.study_uid(job_id), *([prior.study_uid] if prior else [])]
        names, peer = _names_of(self.draft(job_id)), self._connect()
        with self._arriving(job_id) as partial:
            number = 0

            def write(content: bytes) -> None:
                nonlocal number
                number += 1
                path = partial / names.get(uid_in(content), Path(f"more/{number:06d}.dcm"))
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)

            for study_uid in studies:
                for one in images(peer.count(study_uid), self.pacs.modalities):
                    peer.retrieve(study_uid, one.series_uid, write)
            return bool(number)

    def keep_images(self, job_id: str) -> None:
        """Those in the inbox go when the draft is delivered, and she has not looked yet: links to the same
        files stay until it is decided."""
        inbox = Path(self.pacs.inbox) / job_id
        if self.settings.images and inbox.is_dir():
            with self._arriving(job_id) as partial:
                shutil.copytree(inbox, partial, copy_function=_link, dirs_exist_ok=True)

    def clear_images(self) -> None:
        """Of what is decided; what is opened again is fetched again."""
        if not self.settings.images:
            return
        for partial in Path(self.settings.images).glob(f".{32 * '[0-9a-f]'}-*"):
            with suppress(FileNotFoundError):  # all has just arrived
                if time.time() - partial.stat().st_mtime > LEFT_S:
                    shutil.rmtree(partial, ignore_errors=True)
        for folder in Path(self.settings.images).glob(32 * "[0-9a-f]"):
            item = self.store.item(folder.name)
            waits = any(not d.sent_at_s for d in self.store.decisions_of(folder.name))
            # a night leaves images here too, and its draft may not be on the worklist yet
            arrives = folder.name not in self._ignored and (self.folder / folder.name).is_dir()
            if (not arrives) if item is None else (item.decided_at_s and not waits):
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _arriving(self, job_id: str) -> Iterator[Path]:
        """A folder that gets its name when all is in it."""
        kept = Path(self.settings.images)
        partial = kept / f".{job_id}-{time.monotonic_ns()}"
        try:
            partial.mkdir(parents=True, mode=0o700)
            yield partial
            if any(partial.iterdir()) and not (kept / job_id).exists():
                partial.rename(kept / job_id)
        except OSError as error:
            raise OutputError(f"Images could not be kept in {kept}: {error.strerror}.") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _peer(self) -> Peer:
        from mla_med.pacs.run import make_peer
        from mla_med.pacs.settings import read_credentials

        return make_peer(self.pacs, read_credentials(self.pacs))

    # Changes

    def change(self, job_id: str, base: int, who: str, what: str, do: Callable[[Edited], Edited]) -> Sheet:
        """StaleVersion where somebody was faster; ReportError where it cannot be said."""
        sheet = self.sheet(job_id)
        if sheet.edited is None:
            raise ReportError("The gate refused this study: there is nothing to change.", code="REFUSED")
        if sheet.head != base:
            raise StaleVersion(sheet.head, base)
        after = do(sheet.edited)
        if sheet.draft.prior is None and any(f.change is not None for f in after.report.findings):
            raise ReportError("There is no prior that a change could be stated against.", code="NO_PRIOR")
        if after.report != sheet.edited.report:
            self.store.change(job_id, base, who, what, after.to_bytes())
        return self.sheet(job_id)

    def undo(self, job_id: str, base: int, who: str) -> Sheet:
        """The newest change is as if it had not been; the version before stays where it was."""
        sheet = self.sheet(job_id)
        if sheet.head != base:
            raise StaleVersion(sheet.head, base)
        if sheet.last is None:
            return sheet
        target = sheet.last.parent
        earlier = self.store.version(job_id, target) if target else None
        content = self.edited_at(job_id, target).to_bytes()
        self.store.change(job_id, base, who, f"undo {base}", content, parent=earlier.parent if earlier else 0)
        return self.sheet(job_id)

    def conflict(self, job_id: str, base: int) -> tuple[Version | None, list[tuple[str, str, str]]]:
        """Who was faster, and what he changed since `base`."""
        sheet = self.sheet(job_id)
        if sheet.edited is None:
            return None, []
        before = self.edited_at(job_id, max(0, min(base, sheet.head))).report
        return sheet.last, editing.difference(before, sheet.edited.report)


class Keeper:
    """What goes on beside the pages: new drafts come onto the worklist, decisions go out."""

    def __init__(self, desk: Desk, send_unsent: Callable[[], object]):
        self._desk = desk
        self._send_unsent = send_unsent
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="review", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(SCAN_S):
            for step in (self._desk.scan, self._send_unsent, self._desk.clear_images):
                try:
                    step()
                except MlaMedError as error:
                    log("review_hindered", level="warning", code=error.code)
                except Exception as error:  # whatever it is: nobody else does any of this
                    log("review_hindered", level="error", code=type(error).__name__)


def _names_of(draft: Draft) -> dict[str, Path]:
    """UID -> where an image has to lie to be found by the draft: it comes in another order than before, and a
    draft knows its images by the names of their files."""
    series = [v.series for v in draft.verdicts] + list(draft.prior.series if draft.prior else ())
    return {i.sop_instance_uid: Path(f"{k}", i.path.name) for k, s in enumerate(series) for i in s.instances}


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copyfile(source, target)


def _read_draft(path: Path, stamp: int) -> Draft:
    try:
        draft = draft_from_json(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise NoDraft("This draft.json is damaged; draft the study again.", code="DRAFT_DAMAGED") from error
    if draft.report is not None:
        schema = schema_of(draft.report.examination)
        if any(finding.code not in schema for finding in draft.report.findings):
            raise NoDraft("This draft is of another version; draft the study again.", code="DRAFT_OTHER")
    return draft


def _item(job_id: str, draft: Draft, arrived_at_s: float, scanner: str, subgroup: str) -> Item:
    return Item(
        job_id,
        "NEW",
        _rank(draft),
        draft.report.examination if draft.report else _examination(draft),
        draft.report.language if draft.report else "",
        scanner,
        subgroup,
        draft.provenance.weights_sha256,
        "" if draft.report else next((r.code for r in draft.gate.reasons), "REFUSED"),
        arrived_at_s,
        _seconds(draft.provenance.created_utc),
    )


def _examination(draft: Draft) -> str:
    """Of a refusal, by the name of the model that refused."""
    name = draft.provenance.model_name.casefold().replace(" ", "_")
    return next((key for key in SCHEMAS if key in name), "")


def _rank(draft: Draft) -> int:
    if draft.report is None:
        return REFUSED
    schema = schema_of(draft.report.examination)
    present = [f.code for f in draft.report.findings if f.presence is Presence.PRESENT]
    if any(schema[code].critical for code in present):
        return CRITICAL
    return SOMETHING if present else NOTHING


def _stated(draft: Draft) -> dict[str, str]:
    findings = draft.report.findings if draft.report else ()
    order = (Presence.ABSENT, Presence.CANNOT_SAY, Presence.PRESENT)
    return {f.code: f.presence.value for f in sorted(findings, key=lambda f: order.index(f.presence))}


def _seconds(made_utc: str) -> float:
    try:
        made = datetime.fromisoformat(made_utc)
    except ValueError:
        return 0.0
    return made.replace(tzinfo=made.tzinfo or UTC).timestamp()
