"""Two forms of one checkpoint (exported, in 8 bits, pruned) and phantoms that nobody trains on -> does the
second find and say as much as the first?

    python -m evaluation.exported CHECKPOINT --exported DIR [--backend onnx] [--n 48]

Findings: F1 of present codes over all patients and codes. Texts: BLEU-4 (COCO) against what the site's
radiologist wrote. Linter: complaints about a draft against its own findings. The last column says in how many
patients both write the same text, token for token.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from evaluation.text import text_scores
from mla_med.corpus import place
from mla_med.drafting import write
from mla_med.errors import MlaMedError
from mla_med.files import write_json
from mla_med.imaging.grid import Preprocessing
from mla_med.looking import Prepared, find, see
from mla_med.model.checkpoint import Checkpoint
from mla_med.model.exported import Verdict
from mla_med.phantom.cohort import report_of
from mla_med.phantom.examine import examine
from mla_med.phantom.scanning import to_array
from mla_med.phantom.sites import site_of
from mla_med.report.check import check_report
from mla_med.report.context import context_text
from mla_med.report.render import report_text
from mla_med.report.style import load_style
from mla_med.types import ClinicalContext, Finding, Presence, Report

FIRST_SEED = 3_998_500_000
"""Of a cohort that nobody trains on."""
KEPT = 0.99
"""So much of F1 and of BLEU-4 has to be left of what the first form reaches."""
SITE = "a"


@dataclass(frozen=True, slots=True)
class Patient:
    prepared: Prepared
    context: ClinicalContext
    present: frozenset[str]
    reference: str


@dataclass(frozen=True, slots=True)
class Said:
    """What one form says of the patients."""

    f1: float
    bleu4: float
    complaints: int
    texts: tuple[str, ...]


def patients_of(examination: str, settings: Preprocessing, n: int) -> Iterator[Patient]:
    for seed in range(FIRST_SEED, FIRST_SEED + n):
        yield _patient(seed, examination, json.dumps(settings.to_dict()))


@lru_cache(maxsize=256)
def _patient(seed: int, examination: str, settings: str) -> Patient:
    """Kept: forms are compared on the same patients."""
    wanted = Preprocessing.from_dict(json.loads(settings))
    examined = examine(seed, examination, site_of(SITE))
    array, affine, scan = to_array(examined, spacing_mm=wanted.spacing_mm)
    values, affine, present = place(array, affine, scan, wanted)
    if wanted.windows_hu:
        windows = [((values - low) / (high - low)).clip(0, 1) for low, high in wanted.windows_hu]
        values = np.stack(windows).astype(np.float32)
    report = report_of(examined)
    codes = frozenset(f.code for f in examined.findings if f.presence is Presence.PRESENT)
    style = load_style(examined.site.style, examined.site.language)
    prepared = Prepared(values, np.array(present), affine.astype(np.float32))
    return Patient(prepared, examined.context, codes, report_text(report, style))


def said_by(checkpoint: Checkpoint, patients: Sequence[Patient]) -> Said:
    hits = said = there = complaints = 0
    texts = []
    for patient in patients:
        findings, report = draft_of(checkpoint, patient)
        stated = {f.code for f in findings if f.presence is Presence.PRESENT}
        known = patient.present & set(checkpoint.model.config.finding_keys)
        hits, said, there = hits + len(stated & known), said + len(stated), there + len(known)
        complaints += len(check_report(report, patient.context, codes=[f.code for f in findings]))
        texts.append(report_text(report, load_style()))
    scores = text_scores([p.reference for p in patients], texts, only=("BLEU-4",))
    return Said(2 * hits / max(1, said + there), float(scores["BLEU-4"].value), complaints, tuple(texts))


def draft_of(checkpoint: Checkpoint, patient: Patient) -> tuple[tuple[Finding, ...], Report]:
    model, examination = checkpoint.model, checkpoint.scope.examination
    seen = see(patient.prepared, context_text(patient.context), model, examination)
    findings = find(seen, model, checkpoint.calibration)
    return findings, write(findings, seen, model, "", context=patient.context)


def judge_on_phantoms(first: Checkpoint, second: Checkpoint, n: int) -> Verdict:
    """May the second form stand for the first?"""
    settings = Preprocessing.from_dict(first.model.config.preprocessing)
    patients = tuple(patients_of(first.scope.examination, settings, n))
    one, other = said_by(first, patients), said_by(second, patients)
    same = sum(a == b for a, b in zip(one.texts, other.texts, strict=True))
    rows = (
        ("finding F1", one.f1, other.f1, other.f1 >= KEPT * one.f1),
        ("BLEU-4", one.bleu4, other.bleu4, other.bleu4 >= KEPT * one.bleu4),
        ("linter complaints", one.complaints, other.complaints, other.complaints <= one.complaints),
    )
    return Verdict(rows, same, len(patients))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.exported", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--exported", type=Path, required=True)
    parser.add_argument("--backend", default="onnx", help="onnx or openvino")
    parser.add_argument("--n", type=int, default=48, help="patients")
    parser.add_argument("--out", type=Path, help="a JSON file")
    given = parser.parse_args(arguments)
    from mla_med.model.checkpoint import load_checkpoint
    from mla_med.model.exported import load_exported

    try:
        first, second = load_checkpoint(given.checkpoint), load_exported(given.exported, given.backend)
        verdict = judge_on_phantoms(first, second, given.n)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    print(verdict.to_text())
    if given.out is not None:
        write_json(given.out, asdict(verdict))
    return 0 if verdict.passed else 3


if __name__ == "__main__":
    sys.exit(main())
