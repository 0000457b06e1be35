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
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mla_med.dicom.study import read_study
from mla_med.drafting import draft_study
from mla_med.errors import OutputError
from mla_med.files import write_text
from mla_med.model.checkpoint import Checkpoint, load_checkpoint
from mla_med.phantom.plain.cohort import make_phantom, write_phantom
from mla_med.report.render import body_text

TEST_SEEDS = range(900_000, 900_200)
"""Phantoms that no training of this project may use."""


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
) -> Acceptance:
    """Writes references.jsonl and drafts.jsonl into `out`. A refused phantom has an empty draft."""
    seeds = list(seeds)
    cases = out / "cases"
    try:
        cases.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot write to {out}: {error.strerror}. Choose another folder.") from error
    rows = []
    for row in _results([(seed, cases, checkpoint) for seed in seeds], workers):
        rows.append(row)
        progress(len(rows), len(seeds))
    for name in ("reference", "draft"):
        lines = "".join(json.dumps({"id": row["id"], "report": row[name]}) + "\n" for row in rows)
        write_text(out / f"{name}s.jsonl", lines)
    return Acceptance(
        references=out / "references.jsonl",
        drafts=out / "drafts.jsonl",
        drafted=sum(bool(row["draft"]) for row in rows),
        refused=sum(not row["draft"] for row in rows),
        cited=sum(row["cited"] for row in rows),
        citable=sum(row["citable"] for row in rows),
    )


def _results(jobs: list[tuple], workers: int) -> Iterator[dict[str, Any]]:
    if workers == 1:
        yield from map(_draft_one, jobs)
        return
    # a fresh interpreter for each worker: torch's threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_one_thread) as pool:
        yield from pool.map(_draft_one, jobs)


_LOADED: dict[Path | None, Checkpoint] = {}


def _draft_one(job: tuple[int, Path, Path | None]) -> dict[str, Any]:
    seed, cases, folder = job
    if folder not in _LOADED:
        _LOADED[folder] = load_checkpoint(folder)
    checkpoint = _LOADED[folder]
    done = cases / f"phantom-{seed:06d}-{checkpoint.weights_sha256[:12]}-{_code_digest()}.json"
    if done.is_file():
        return json.loads(done.read_text())
    phantom = make_phantom(seed)
    with tempfile.TemporaryDirectory(prefix="mla_med-") as folder_name:
        study = read_study(write_phantom(phantom, Path(folder_name)))
        draft, volume = draft_study(study, checkpoint)
    cited, citable = _count_citations(phantom, draft, volume)
    row = {
        "id": phantom.id,
        "reference": body_text(phantom.report),
        "draft": body_text(draft.report) if draft.report else "",
        "reasons": [reason.code for reason in draft.gate.reasons],
        "complaints": [complaint.rule for complaint in draft.complaints],
        "cited": cited,
        "citable": citable,
    }
    write_text(done, json.dumps(row))
    return row


@cache
def _code_digest() -> str:
    """Of the sources of this package: another phantom, gate or wording is another result."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.*")):
        if path.suffix in (".py", ".toml"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def _count_citations(phantom, draft, volume) -> tuple[int, int]:
    """Of the true positives: whose first cited slice crosses the planted lesion's box."""
    if draft.report is None or volume is None:
        return 0, 0
    boxes = {lesion.finding.code: lesion.box_mm for lesion in phantom.lesions}
    number = {i.sop_instance_uid: k for k, i in enumerate(volume.series.instances)}
    hits = [
        boxes[f.code][0][2]
        <= (volume.affine @ [0, 0, number[f.evidence.sop_instance_uids[0]], 1])[2]
        <= boxes[f.code][1][2]
        for f in draft.report.findings
        if f.evidence is not None and f.code in boxes
    ]
    return sum(map(bool, hits)), len(hits)


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
