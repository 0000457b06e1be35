"""A reviewer's decision -> a revision in the outbox: preliminary and unverified as the draft, the reviewer
named, the draft linked as its predecessor. Accepting is no signature, and no code path makes it one.

The decision is on the disk before its revision is committed, and the revision follows from it byte for byte:
whoever is killed in between commits the same documents at the next start.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from mla_med.documents.envelope import Reference, Revision
from mla_med.documents.write import DICOM, Document, parse_formats, write_documents
from mla_med.errors import LedgerError, MlaMedError, OutputError, ReportError
from mla_med.files import sync_folder
from mla_med.ledger.nouns import Job, JobState
from mla_med.logs import log
from mla_med.night.claims import Claims
from mla_med.pacs.deliver import commit_documents
from mla_med.pacs.letter import read_content, read_letter
from mla_med.review.desk import Desk
from mla_med.review.editing import became
from mla_med.review.nouns import Decision, OutcomeRow, StaleVersion
from mla_med.review.patients import first_image
from mla_med.types import Draft, Gate, Reason

REASONS = ("INVENTED", "MISSED", "WRONG_PLACE", "POOR_IMAGES", "WRONG_STUDY", "OTHER")
"""Why a draft is of no use."""
_WORDS = {
    "INVENTED": "It states findings that are not there.",
    "MISSED": "It misses findings that are there.",
    "WRONG_PLACE": "It states findings at wrong places or of wrong sizes.",
    "POOR_IMAGES": "The images do not allow a report.",
    "WRONG_STUDY": "It is of the wrong study or of the wrong patient.",
    "OTHER": "It is of no use.",
}
MAX_WORDS = 500
_SENDING = threading.Lock()
"""One revision at a time is written and committed: what a killed server left may be decided now."""


def decide(
    desk: Desk, job_id: str, base: int, who: str, display: str, verb: str, reason: str = "", words: str = ""
) -> Decision:
    """`verb`: accept or reject. Whether it was accepted as it was is seen, not asked. What cannot be written
    is not decided; what is decided and cannot go out now goes out later."""
    sheet = desk.sheet(job_id)
    if sheet.head != base:
        raise StaleVersion(sheet.head, base)
    if verb not in ("accept", "reject"):
        raise ReportError("A draft is accepted or rejected.", code="DECISION_UNKNOWN")
    if verb == "reject" and reason not in REASONS:
        raise ReportError("Say why it is rejected.", code="REASON_MISSING")
    if len(words) > MAX_WORDS:
        raise ReportError(f"A remark of {len(words)} characters; {MAX_WORDS} at most.")
    decision = "REJECTED" if verb == "reject" else "CHANGED" if sheet.is_changed else "ACCEPTED"
    _check_newest(desk, job_id)
    at_s = float(int(desk.store.clock()))  # documents know whole seconds
    content = {"reviewer": display, "words": words.strip(), "at": at_s}
    documents: tuple[Document, ...] = ()
    if goes_out(sheet.draft, decision):
        documents = _documents(
            desk, sheet.draft, sheet.now, job_id, decision, reason if verb == "reject" else "", content
        )
    rows: Sequence[OutcomeRow] = ()
    if sheet.draft.report is not None and sheet.edited is not None and decision != "REJECTED":
        rows = [
            OutcomeRow(b.code, b.outcome, str(b.drafted or ""), str(b.decided or ""), b.confidence)
            for b in became(sheet.draft.report, sheet.edited.report)
        ]
    decision_id = desk.store.decide(
        job_id,
        base,
        who,
        decision,
        reason if verb == "reject" else "",
        json.dumps(content, ensure_ascii=False).encode(),
        rows,
    )
    _try_to_send(desk, desk.store.decision(decision_id), documents)
    return desk.store.decision(decision_id)


def goes_out(draft: Draft, decision: str) -> bool:
    """A refusal that stands says nothing that the PACS does not have."""
    return draft.report is not None or decision == "REJECTED"


def send_unsent(desk: Desk) -> int:
    """Decisions whose revision could not be committed, or whose server was killed before; -> how many are
    committed now."""
    return sum(_try_to_send(desk, decision) for decision in desk.store.unsent())


def _try_to_send(desk: Desk, decision: Decision, documents: tuple[Document, ...] = ()) -> bool:
    """False: it is tried again, as the decision is on the disk."""
    try:
        send(desk, decision, documents)
    except MlaMedError as error:
        log("review_unsent", level="warning", job=decision.job_id, code=error.code)
        return False
    except Exception as error:  # whatever it is: it must not keep the other decisions
        log("review_unsent", level="error", job=decision.job_id, code=type(error).__name__)
        return False
    return True


def send(desk: Desk, decision: Decision, documents: tuple[Document, ...] = ()) -> None:
    """Commits its revision to the outbox, once however often it is called. `documents`: those that follow
    from it, where they are made already."""
    draft = desk.draft(decision.job_id)
    if not goes_out(draft, decision.decision):
        with _SENDING:
            _release_held(desk, decision.job_id, withheld=False)
        desk.store.sent(decision.id)
        return
    documents = documents or _documents(
        desk,
        draft,
        desk.sheet(decision.job_id).now,  # decided: it changes no more
        decision.job_id,
        decision.decision,
        decision.reason,
        json.loads(decision.content),
        decision.id,
    )
    with _SENDING:
        _release_held(desk, decision.job_id, withheld=True)
        job = commit_documents(
            desk.book,
            [document.content for document in documents if document.media_type == DICOM],
            desk.pacs.name,
            validate=desk.pacs.check_with_dciodvfy,
        )
    desk.store.revised(decision.id, job.id)
    _lay_down(desk.folder / job.id, documents)
    desk.store.sent(decision.id)


def _check_newest(desk: Desk, job_id: str) -> None:
    """More images came meanwhile, and a draft of all of them is made or on its way: that one is reviewed."""
    study_uid = desk.book.study_uid(job_id)
    newest = desk.book.newest_job(study_uid)
    ours = {job_id, *(d.revision_job for d in desk.store.decisions_of(job_id))}
    if newest is not None and newest.id not in ours:
        raise LedgerError(
            "More images of this study came after this draft; review the draft of all of them.",
            code="NEWER_DRAFT",
        )


def _documents(
    desk: Desk,
    draft: Draft,
    now: Draft,
    job_id: str,
    decision: str,
    reason: str,
    content: dict,
    decision_id: str = "",
) -> tuple[Document, ...]:
    """`decision_id`: where it is on the disk already."""
    others = [d for d in desk.store.decisions_of(job_id) if d.id != decision_id]
    earlier = [d.revision_job for d in others if d.revision_job]
    references = _references(desk, job_id, earlier)
    if not references:
        raise OutputError(
            "The documents of this draft are gone, and a revision has to name them; draft the study again.",
            code="NO_PREDECESSOR",
        )
    made_utc = datetime.fromtimestamp(content["at"], UTC).isoformat(timespec="seconds")
    number = desk.book.generation(job_id) + 1 + len(earlier)  # 2 for the first revision of a study
    revision = Revision(content["reviewer"], made_utc, references, number)
    if decision == "REJECTED":
        now = _withdrawn(draft, reason, content["words"])
    images = desk.images_of(job_id)
    study_uid = draft.provenance.study_uid
    source = first_image(images, study_uid, draft.provenance.series_uids) if images else None
    source = source or first_image(desk.folder / job_id, study_uid)
    formats = [*parse_formats(desk.settings.formats), "json"]
    language = draft.report.language if draft.report else "en"  # of what says that it is withdrawn
    with _SENDING:
        return write_documents(now, formats=formats, source=source, revision=revision, language=language)


def _withdrawn(draft: Draft, reason: str, words: str) -> Draft:
    """What takes the place of a rejected draft: no findings, and why."""
    reasons = [Reason(f"REJECTED_{reason}", _WORDS[reason])]
    if words:
        reasons.append(Reason("REMARK", words))
    gate = Gate(False, tuple(reasons), draft.gate.scores)
    return replace(draft, report=None, gate=gate, complaints=(), prior=None)


def _references(desk: Desk, job_id: str, earlier: Sequence[str]) -> tuple[Reference, ...]:
    """The documents of the newest thing that was said of this study here: the draft's, or of the decision
    before this one."""
    contents = _contents(desk, earlier[-1]) if earlier else []
    contents = contents or _contents(desk, job_id)
    letters = [read_letter(content) for content in contents]
    return tuple(Reference(one.sop_class_uid, one.uid, one.series_uid) for one in letters)


def _contents(desk: Desk, job_id: str) -> list[bytes]:
    files = sorted((desk.folder / job_id).glob("*.dcm"))
    if files:
        return [read_content(path) for path in files]
    return [desk.book.content(document.id) for document in desk.book.documents(job_id)]


def _release_held(desk: Desk, job_id: str, *, withheld: bool) -> Job:
    """A draft that waited for a person is committed as it lies. `withheld`: it is not sent, as its revision
    is; the ledger has to know what was revised."""
    job = desk.book.job(job_id)
    if job.state is not JobState.READY:
        return job
    contents = [read_content(path) for path in sorted((desk.folder / job_id).glob("*.dcm"))]
    job = commit_documents(
        desk.book,
        contents,
        desk.pacs.name,
        job_id=job_id,
        validate=desk.pacs.check_with_dciodvfy,
        withheld=withheld,
    )
    claims = Claims.open(desk.pacs.ledger_url, desk.book.clock)
    try:
        claims.free(job_id)
    finally:
        claims.close()
    return job


def _lay_down(folder: Path, documents: Sequence[Document]) -> None:
    """For whoever sends on what is no DICOM; whole or not at all, draft.json last."""
    if (folder / "draft.json").exists():
        return
    part = folder.with_name(f".making-{folder.name}")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True, mode=0o700)
        for document in documents:
            with (part / document.file_name).open("wb") as file:
                file.write(document.content)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(part)
        part.replace(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise OutputError(f"A revision could not be written beside the drafts: {error.strerror}.") from error
