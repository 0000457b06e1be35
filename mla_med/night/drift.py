"""QA phantoms through the live path -> is it still the system that it was? For a weekly check.

Phantoms of known truth are stored in the PACS as a scanner would, pulled, drafted by the site's model,
delivered and read back. What came of them is compared with a baseline that the first check wrote: a
phantom's pixels are the same each week, so any change is one of the system: weights, libraries, settings,
PACS. The patient is named MLA_MED^QA and is nobody; each check leaves its studies in the PACS under UIDs of
their own, and they are too old for a night to take them for today's.
"""

from __future__ import annotations

import io
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory

from pydicom import dcmread

from mla_med.dicom.apart import ReaderProcess
from mla_med.documents.json import draft_from_json
from mla_med.errors import PacsError
from mla_med.files import write_text
from mla_med.ledger.nouns import JobState, Kind
from mla_med.logs import log
from mla_med.night.alarm import tell_people, telling_failure
from mla_med.night.loop import Call, Site, open_site
from mla_med.night.work import Draw, Drawer, Worker
from mla_med.pacs.deliver import deliver_due
from mla_med.pacs.letter import Letter, read_letter
from mla_med.pacs.pull import pull_study
from mla_med.types import Draft, Presence

SEEDS = range(4_000_950_001, 4_000_950_004)
"""Of cohort 4000, that no training uses."""
PLANTED = ("lung_mass", "pleural_effusion")
MATRIX = 160
"""Rows and columns: no finer than what the model is shown."""
PATIENT = "MLA_MED^QA"
F1_FALL, BRIER_RISE = 0.05, 0.02
"""Worse by more than this raises the alarm: the same weights and pixels give the same numbers, but for the
last digits of another processor."""
PICTURES = 3
_PNG = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")


@dataclass(frozen=True, slots=True)
class Reading:
    """What the system made of the phantoms."""

    weights_sha256: str
    drafted: int
    refused: int
    f1: float
    """Of present against planted, over every finding of the model (micro)."""
    brier: float
    """Mean squared error of the calibrated confidence of presence: Brier, Mon. Weather Rev. 78 (1950)."""
    delivered: int
    seconds: float
    """Median of a study in the worker; noted, and no cause for alarm."""


@dataclass(frozen=True, slots=True)
class Drift:
    now: Reading
    baseline: Reading
    alarms: tuple[str, ...]
    """MODEL_CHANGED, REFUSED, NOT_DELIVERED, F1_FELL, BRIER_ROSE; empty: all is as it was."""
    pictures: tuple[str, ...] = ()
    """Key slices of the drafts, as data URIs. Phantoms: they may be shown."""


def drift(
    settings_file: Path,
    seeds: Sequence[int] = SEEDS,
    pause: Callable[[float], None] = time.sleep,
    draw: Draw | None = None,
) -> Drift:
    """Writes a line into drift.jsonl among the records, and the baseline where there is none. To accept a new
    model, remove drift-baseline.json. `draw`: other than with the site's model."""
    with (
        telling_failure(settings_file, "drift check"),
        open_site(settings_file) as site,
        ReaderProcess() as reader,
    ):
        records = Path(site.night.records)
        records.mkdir(parents=True, exist_ok=True, mode=0o700)
        now, pictures = _read(site, seeds, pause, reader.call, draw or Drawer(site.night))
        path = records / "drift-baseline.json"
        if not path.exists():
            write_text(path, json.dumps(asdict(now), indent=1) + "\n")
        baseline = Reading(**json.loads(path.read_text(encoding="utf-8")))
        found = Drift(now, baseline, compare(now, baseline), pictures)
        with (records / "drift.jsonl").open("a", encoding="utf-8") as file:
            row = {"at": round(site.book.clock()), **asdict(now), "alarms": found.alarms}
            file.write(json.dumps(row) + "\n")
        for code in found.alarms:
            log("drift", level="error", code=code)
        if found.alarms:
            words = f"mla_med, {site.pacs.name}: QA phantoms are read otherwise: {', '.join(found.alarms)}."
            tell_people(site.night, {"text": words, "now": asdict(now), "was": asdict(baseline)})
        return found


def compare(now: Reading, baseline: Reading) -> tuple[str, ...]:
    alarms = {
        "MODEL_CHANGED": now.weights_sha256 != baseline.weights_sha256,
        "REFUSED": now.refused > baseline.refused,
        "NOT_DELIVERED": now.delivered < now.drafted + now.refused,
        "F1_FELL": now.f1 < baseline.f1 - F1_FALL,
        "BRIER_ROSE": now.brier > baseline.brier + BRIER_RISE,
    }
    return tuple(code for code, is_so in alarms.items() if is_so)


def _read(
    site: Site, seeds: Sequence[int], pause: Callable[[float], None], call: Call, draw: Draw
) -> tuple[Reading, tuple[str, ...]]:
    truths = {}
    for seed in seeds:
        study_uid, truth, letters = _phantom(seed)
        for first in range(0, len(letters), site.pacs.batch):
            outcomes = site.peer.store(letters[first : first + site.pacs.batch])
            if bad := [outcome for outcome in outcomes if outcome.kind is not Kind.DELIVERED]:
                raise PacsError("The PACS does not take the QA phantom.", code=bad[0].reason)
        truths[study_uid] = truth
    for study_uid in truths:
        pull_study(site.book, site.peer, site.pacs, study_uid, call)
    pause(site.pacs.settle_s)
    worker = Worker(site.pacs, site.night, site.book, site.claims, draw)
    told, seconds, jobs, pictures = [], [], [], []
    for study_uid, truth in truths.items():
        pull_study(site.book, site.peer, site.pacs, study_uid, call)
        job = site.book.newest_job(study_uid)  # the first pull had it all, where nothing is waited for
        if job is None or job.state is not JobState.READY:
            raise PacsError(
                "The QA phantom does not come back whole from the PACS.",
                code="NOT_FOUND" if job is None else job.reason or str(job.state),
            )
        drafted = worker.draft(job.id, hold=False)
        if drafted.state not in ("drafted", "refused"):
            raise PacsError("The QA phantom could not be drafted.", code=" ".join(drafted.codes))
        folder = Path(site.night.out) / job.id
        told.append((truth, draft_from_json(json.loads((folder / "draft.json").read_text("utf-8")))))
        if (page := folder / "draft.html").exists():
            pictures += _PNG.findall(page.read_text("utf-8"))[:1]
        jobs.append(job.id)
        seconds.append(drafted.seconds)
    deliver_due(site.book, site.peer, site.pacs.name, batch=site.pacs.batch, workers=1)
    reports = [(truth, draft) for truth, draft in told if draft.report is not None]
    reading = Reading(
        weights_sha256=told[0][1].provenance.weights_sha256,
        drafted=len(reports),
        refused=len(told) - len(reports),
        f1=round(_f1(told), 4),
        brier=round(fmean(_squares(reports)) if reports else 1.0, 4),
        delivered=sum(site.book.job(job_id).state is JobState.DELIVERED for job_id in jobs),
        seconds=round(median(seconds), 1),
    )
    return reading, tuple(pictures[:PICTURES])


def _phantom(seed: int) -> tuple[str, frozenset[str], list[Letter]]:
    """-> its study's UID, the codes that are present, and its images: with UIDs of this check."""
    from mla_med.phantom.examine import examine
    from mla_med.phantom.scanning import write_dicom
    from mla_med.phantom.sites import site_of

    examined = examine(seed, "chest_ct", site_of("a"), codes=PLANTED)
    truth = frozenset(f.code for f in examined.findings if f.presence is Presence.PRESENT)
    fresh: dict[str, str] = {}
    letters = []
    with TemporaryDirectory(prefix="mla_med-") as folder:
        write_dicom(examined, Path(folder) / "qa", matrix=MATRIX)
        for path in sorted((Path(folder) / "qa" / "study").rglob("*.dcm")):
            image = dcmread(path)
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
                if keyword in image:
                    uid = fresh.setdefault(str(image[keyword].value), f"2.25.{uuid.uuid4().int}")
                    setattr(image, keyword, uid)
            image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
            image.PatientName, image.PatientID = PATIENT, "MLA_MED_QA"
            content = io.BytesIO()
            image.save_as(content, enforce_file_format=True)
            letters.append(read_letter(content.getvalue()))
    return letters[0].study_uid, truth, letters


def _f1(told: Sequence[tuple[frozenset[str], Draft]]) -> float:
    """A refusal states nothing, and misses everything."""
    hit = stated = planted = 0
    for truth, draft in told:
        findings = draft.report.findings if draft.report else ()
        found = {f.code for f in findings if f.presence is Presence.PRESENT}
        hit, stated, planted = hit + len(found & truth), stated + len(found), planted + len(truth)
    return 2 * hit / max(1, stated + planted)


def _squares(told: Sequence[tuple[frozenset[str], Draft]]) -> Iterator[float]:
    for truth, draft in told:
        for finding in draft.report.findings if draft.report else ():
            if finding.confidence is not None and finding.presence is not Presence.CANNOT_SAY:
                is_right = (finding.presence is Presence.PRESENT) == (finding.code in truth)
                yield (finding.confidence - is_right) ** 2
