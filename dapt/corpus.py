"""A cohort of phantoms -> a corpus on disk: one image a file on the model's grid, one JSON line an example.
What is in the folder, and how it is read: mla_med/corpus.py.

Every example has its request and its report in each language of LANGUAGES: one model learns both. Reports
speak of this examination alone: a model is taught comparisons by nobody, they are measured. Resumable: an
image that is there is not made again. Splits are by patient, and those of the cohort.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mla_med.corpus import LANGUAGES, SPLITS, STYLE, finding_from, place, read_settings, to_bytes
from mla_med.errors import ConfigError, StudyError
from mla_med.files import write_text
from mla_med.imaging.transforms import BRAIN_MR, CHEST_CT, Preprocessing
from mla_med.report.context import context_text
from mla_med.report.interpret import interpret
from mla_med.report.render import body_text, render_report
from mla_med.report.style import load_style
from mla_med.types import ClinicalContext, Finding, Modality, Presence

PREPROCESSING = {"chest_ct": CHEST_CT, "brain_mr": BRAIN_MR}


def prepare_corpus(
    cohort: Path,
    out: Path,
    preprocessing: Preprocessing | None = None,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Path:
    """Places what is missing of a cohort's arrays on the model's grid, and returns the corpus' folder."""
    described, lines = _read_cohort(cohort)
    examination = described["examination"]
    if examination not in PREPROCESSING:
        raise ConfigError(f"No model reads {examination}; there are: {', '.join(PREPROCESSING)}.")
    settings = preprocessing or PREPROCESSING[examination]
    (out / "images").mkdir(parents=True, exist_ok=True)
    _check_same(out, settings)
    jobs = [(cohort, out, line, settings) for line in lines]
    rows: dict[str, list[str]] = {split: [] for split in SPLITS}
    # a fresh interpreter for each worker: torch's threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_one_thread) as pool:
        for n, (split, row) in enumerate(pool.map(_make_example, jobs, chunksize=8), 1):
            rows[split].append(row)
            progress(n, len(jobs))
    for split in SPLITS:
        write_text(out / f"{split}.jsonl", "".join(rows[split]))
    about = {
        "examination": examination,
        "languages": LANGUAGES,
        **{split: len(rows[split]) for split in SPLITS},
        "cohort": {key: described[key] for key in ("phantom", "n", "seed", "site")},
        "preprocessing": settings.to_dict(),
    }
    write_text(out / "corpus.json", json.dumps(about, indent=1) + "\n")
    return out


# A patient of the cohort -> an example


def _read_cohort(cohort: Path) -> tuple[dict[str, Any], list[str]]:
    paths = cohort / "cohort.json", cohort / "manifest.jsonl"
    if not all(path.is_file() for path in paths):
        raise StudyError(
            f"No whole cohort at {cohort}. Make one: mla-med phantom cohort --out FOLDER",
            code="COHORT_MISSING",
        )
    described = json.loads(paths[0].read_text(encoding="utf-8"))
    if described["form"] != "arrays":
        raise ConfigError(f"{cohort} holds DICOM; a corpus is made of arrays: --form arrays.")
    return described, paths[1].read_text(encoding="utf-8").splitlines()


def _check_same(out: Path, settings: Preprocessing) -> None:
    there = out / "corpus.json"
    if there.is_file() and read_settings(out) != settings:
        raise ConfigError(
            f"{out} holds images on another grid. Choose another folder, or delete it.", code="CORPUS_DIFFERS"
        )


def _make_example(job: tuple[Path, Path, str, Preprocessing]) -> tuple[str, str]:
    """Places one image on the model's grid (unless its files are there); -> split, and its JSON line."""
    cohort, out, line, settings = job
    record = json.loads(line)
    image, row = out / "images" / f"{record['id']}.npy", out / "images" / f"{record['id']}.json"
    if image.is_file() and row.is_file():
        return record["split"], row.read_text(encoding="utf-8")
    array = np.load(cohort / "patients" / record["array"])
    placed, affine, present = place(array, np.array(record["affine"]), record["scan"], settings)
    example = {
        "id": record["id"],
        "affine": affine.round(4).tolist(),
        "present": present,
        **describe(record),
    }
    ct = settings.modality == Modality.CT
    _save_npy(image, placed.astype(np.int16) if ct else to_bytes(placed))
    text = json.dumps(example, ensure_ascii=False) + "\n"
    write_text(row, text)
    return record["split"], text


def describe(record: dict[str, Any]) -> dict[str, Any]:
    """A line of a cohort's manifest -> what an example says of the patient: requests, findings, reports."""
    from mla_med.phantom.patient import context_of, make_patient

    examination, seed = record["examination"], int(record["id"].removeprefix("phantom-"))
    patient = make_patient(seed)
    planted = sorted(record["planted"], key=_volume, reverse=True)
    stated = [finding_from(said) for said in record["findings"] if said["presence"] == Presence.PRESENT]
    contexts, reports = {}, {}
    for language in LANGUAGES:
        context = context_of(patient, examination, language)
        contexts[language] = context_text(context)
        reports[language] = _report(stated, context, examination, language, seed)
    return {
        "contexts": contexts,
        "findings": [_finding_to_dict(finding_from(lesion)) for lesion in planted],
        "boxes_mm": [lesion["box_mm"] for lesion in planted],
        "reports": reports,
    }


def _report(
    findings: list[Finding], context: ClinicalContext, examination: str, language: str, seed: int
) -> str:
    style = load_style(STYLE, language)
    report = render_report(
        findings,
        style,
        examination,
        rng=random.Random(f"corpus-{language}-{seed}"),
        interpretations=interpret(findings, context, examination),
    )
    return body_text(report, style)


def _volume(lesion: dict[str, Any]) -> tuple[float, float]:
    low, high = np.array(lesion["box_mm"], float)
    return lesion.get("size_mm") or 0.0, float(np.prod(high - low))


def _finding_to_dict(finding: Finding) -> dict[str, Any]:
    values = {
        "code": finding.code,
        "site": finding.site,
        "side": finding.side,
        "size_mm": finding.size_mm,
        "count": finding.count,
    }
    return {name: value for name, value in values.items() if value is not None}


def _save_npy(path: Path, array: np.ndarray) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.save(file, array)
    part.replace(path)


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
