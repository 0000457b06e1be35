"""Phantoms through the whole house -> references and drafts: the acceptance test of an installation.

Each phantom is written as DICOM, read back, drafted and parsed, as a study from a PACS would be.
Resumable: a phantom that this checkpoint has drafted is not drafted again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mla_med.dicom.study import read_study
from mla_med.drafting import Options, draft_study
from mla_med.errors import OutputError
from mla_med.files import write_text
from mla_med.model import CHECKPOINTS
from mla_med.model.checkpoint import Checkpoint, load_checkpoint
from mla_med.phantom.cohort import report_of
from mla_med.phantom.examine import Examined, examine
from mla_med.phantom.scanning import write_dicom
from mla_med.phantom.sites import site_of
from mla_med.report.render import body_text
from mla_med.report.style import load_style
from mla_med.types import Box, Draft, Presence, SeriesVerdict

TEST_SEEDS = range(4_000_000_000, 4_000_001_000)
"""Patients of cohort 4000, the last there can be: no training of this project may use them."""
MATRIX = 160
"""Rows and columns of a CT: no finer than what the model is shown, and written in a tenth of the time."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Where the texts are, and how many studies were drafted and refused."""

    references: Path
    drafts: Path
    drafted: int
    refused: int
    cited: int
    """True positives whose first cited slice crosses the lesion, ..."""
    citable: int
    """... of so many true positives with evidence."""


def draft_phantoms(
    seeds: Iterable[int],
    out: Path,
    checkpoint: Path | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
    examination: str = "chest_ct",
    language: str = "en",
) -> Acceptance:
    """Writes references.jsonl and drafts.jsonl into `out`: of patients of site a without an earlier study,
    in prose. A refused phantom has an empty draft."""
    seeds = list(seeds)
    cases = out / "cases"
    try:
        cases.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot write to {out}: {error.strerror}. Choose another folder.") from error
    rows = []
    folder = checkpoint or CHECKPOINTS[examination]
    for row in _results([(seed, cases, folder, examination, language) for seed in seeds], workers):
        rows.append(row)
        progress(len(rows), len(seeds))
    for name in ("reference", "draft"):
        lines = "".join(_line(row["id"], row[name]) for row in rows)
        write_text(out / f"{name}s.jsonl", lines)
    return Acceptance(
        references=out / "references.jsonl",
        drafts=out / "drafts.jsonl",
        drafted=sum(bool(row["draft"]) for row in rows),
        refused=sum(not row["draft"] for row in rows),
        cited=sum(row["cited"] for row in rows),
        citable=sum(row["citable"] for row in rows),
    )


Job = tuple[int, Path, Path, str, str]
"""Seed, folder of the cases, checkpoint, examination, language."""


def _results(jobs: list[Job], workers: int) -> Iterator[dict[str, Any]]:
    if workers == 1:
        yield from map(_draft_one, jobs)
        return
    # a fresh interpreter for each worker: torch's threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_one_thread) as pool:
        yield from pool.map(_draft_one, jobs)


_loaded = cache(load_checkpoint)


def _draft_one(job: Job) -> dict[str, Any]:
    seed, cases, folder, examination, language = job
    checkpoint = _loaded(folder)
    examined = examine(seed, examination, replace(site_of("a"), language=language))
    done = cases / _case_name(examined, checkpoint)
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    style = load_style(examined.site.style, language)
    with tempfile.TemporaryDirectory(prefix="mla_med-") as name:
        write_dicom(examined, Path(name) / examined.id, matrix=MATRIX)
        study = read_study(Path(name) / examined.id / "study")
        draft, _ = draft_study(study, checkpoint, options=Options(style=style))
    cited, citable = count_citations(examined, draft)
    row = {
        "id": examined.id,
        "reference": body_text(report_of(examined), style),
        "draft": body_text(draft.report, style) if draft.report else "",
        "reasons": [reason.code for reason in draft.gate.reasons],
        "complaints": [complaint.rule for complaint in draft.complaints],
        "cited": cited,
        "citable": citable,
    }
    write_text(done, json.dumps(row, ensure_ascii=False))
    return row


def _line(name: str, report: str) -> str:
    return json.dumps({"id": name, "report": report}, ensure_ascii=False) + "\n"


def _case_name(examined: Examined, checkpoint: Checkpoint) -> str:
    kind = f"{examined.examination}-{examined.site.language}"
    return f"{examined.id}-{kind}-{checkpoint.weights_sha256[:12]}-{_code_digest()}.json"


@cache
def _code_digest() -> str:
    """Of the sources of this package: another phantom, gate or wording is another result."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.*")):
        if path.suffix in (".py", ".toml"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def count_citations(examined: Examined, draft: Draft) -> tuple[int, int]:
    """Of the true positives with evidence: whose first cited slice crosses the box of a lesion of that code;
    and how many there are. Slices may lie in any plane and come from any series that was read."""
    if draft.report is None:
        return 0, 0
    boxes: dict[str, list[Box]] = {}
    for lesion in examined.lesions:
        boxes.setdefault(lesion.finding.code, []).append(lesion.box_mm)
    hits = [
        any(
            _crosses(finding.evidence.sop_instance_uids[0], box, draft.verdicts)
            for box in boxes[finding.code]
        )
        for finding in draft.report.findings
        if finding.presence is Presence.PRESENT and finding.evidence is not None and finding.code in boxes
    ]
    return sum(hits), len(hits)


def _crosses(sop_instance_uid: str, box_mm: Box, verdicts: Iterable[SeriesVerdict]) -> bool:
    """Whether the slice of that instance crosses the box: its corners do not all lie on one side of it."""
    for verdict in verdicts:
        if not verdict.chosen or verdict.certificate is None:
            continue
        uids = [instance.sop_instance_uid for instance in verdict.series.instances]
        if sop_instance_uid in uids:
            affine = np.array(verdict.certificate.affine)
            normal = np.cross(affine[:3, 0], affine[:3, 1])
            first = (affine @ [0, 0, uids.index(sop_instance_uid), 1])[:3]
            corners = np.array(list(product(*zip(*box_mm, strict=True))))
            beyond = (corners - first) @ normal
            return bool(beyond.min() <= 0 <= beyond.max())
    return False


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
