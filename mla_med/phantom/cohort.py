"""Seeds -> a cohort on disk: many patients who do not exist, each with images, truth and report.

    cohort/
      cohort.json      what it holds: examination, site, number, seed, form, size of each split
      manifest.jsonl   one line a patient: split, request, findings with their boxes, decoys, report, prior
      patients/phantom-0007000001.json and .npy (arrays), or a folder of DICOM series of that name, or no more
                       (truth)

Everything follows from the seed, to the byte, whatever the number of workers. A patient whose .json is
there is not made again, so a killed run goes on where it stopped, and a larger one goes on from a smaller
one. Splits are by patient. An array takes 3 MB for a chest CT and 8 MB for a brain MR, eight times that in
voxels of half the size; a full study of 300 slices takes 160 MB.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mla_med.errors import ConfigError, OutputError
from mla_med.files import write_text
from mla_med.phantom.examine import Examined, examine
from mla_med.phantom.patient import PREVALENCE
from mla_med.phantom.scanning import to_array, write_dicom
from mla_med.phantom.sites import Site, site_of
from mla_med.report.interpret import interpret
from mla_med.report.render import body_text, render_report
from mla_med.report.style import load_style
from mla_med.types import Box, Finding, Presence, Report

SPLITS = ("train", "validation", "test")
OF_TEN = (8, 1, 1)
"""How many of each ten patients belong to each split."""
FORMS = ("arrays", "dicom", "truth")
PHANTOM_VERSION = 1
"""Goes up with every change of what is made from a seed: a folder holds one version."""
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def check_spacing(spacing_mm: float) -> None:
    if not 0.5 <= spacing_mm <= 12:
        raise ConfigError(f"Arrays have voxels of 0.5 to 12 mm, not of {spacing_mm:g}.")


@dataclass(frozen=True, slots=True)
class CohortConfig:
    n: int = 1000
    """Patients."""
    seed: int = 7
    """Patient k of the cohort has the seed `seed` * 1,000,000 + k: cohorts of two seeds share none."""
    examination: str = "chest_ct"
    site: str = "a"
    form: str = "arrays"
    """arrays: int16 on the training grid. dicom: full series as a scanner sends them. truth: no images; a
    corpus draws its own."""
    prior_share: float = 0.25
    """Of how many patients an earlier study is made too."""
    style: str = ""
    """Instead of the site's own style."""
    language: str = ""
    matrix: int = 512
    """Rows and columns of a CT in DICOM."""
    spacing_mm: float = 0.0
    """Voxels of arrays, and of what a corpus draws; 0: the usual ones, 3 mm of a chest and 2 mm of a head."""
    odds: float = 1.0
    """Of every finding, times the usual ones: patients who have much, to learn from, not to calibrate on."""
    workers: int = 2

    def __post_init__(self):
        if not 1 <= self.n <= 900_000 or not 0 <= self.seed <= 4000:
            raise ConfigError(
                f"A cohort has 1 to 900000 patients and a seed of 0 to 4000, not {self.n} and {self.seed}."
            )
        if self.examination not in PREVALENCE:
            raise ConfigError(f"No phantom of '{self.examination}'; there are: {', '.join(PREVALENCE)}.")
        if self.form not in FORMS:
            raise ConfigError(f"No form '{self.form}'; there are: {', '.join(FORMS)}.")
        if self.spacing_mm:
            check_spacing(self.spacing_mm)
        if not 0.01 <= self.odds <= 100:
            raise ConfigError(
                f"The odds of findings can be 0.01 to 100 times the usual ones, not {self.odds:g}."
            )
        if self.workers < 1:
            raise ConfigError(f"{self.workers} workers make nothing; give 1 or more.")
        site = self.own_site
        load_style(site.style, site.language).wording(self.examination)

    @property
    def seeds(self) -> range:
        return range(self.seed * 1_000_000, self.seed * 1_000_000 + self.n)

    @property
    def own_site(self) -> Site:
        site = site_of(self.site)
        site = replace(site, style=self.style or site.style, language=self.language or site.language)
        if self.odds == 1:
            return site
        every = PREVALENCE[self.examination]
        return replace(site, odds={code: site.odds.get(code, 1.0) * self.odds for code in every})


def make_cohort(
    config: CohortConfig, out: Path, progress: Callable[[int, int], None] = lambda done, n: None
) -> Path:
    """Makes what is missing of the cohort, in parallel, and returns its folder."""
    patients = out / "patients"
    try:
        patients.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot make {patients}: {error.strerror}. Choose another folder.") from error
    _check_same(config, out)
    jobs = [(config, seed, patients) for seed in config.seeds]
    lines = []
    for n, line in enumerate(_made(jobs, config.workers), 1):
        lines.append(line)
        progress(n, len(jobs))
    write_text(out / "manifest.jsonl", "".join(lines))
    return out


def split_of(seed: int) -> str:
    """8 of each ten seeds in a row train, 1 validates, 1 tests, in an order that has nothing to do with the
    seed. A patient stays in its split in every cohort, however large."""
    ten = range(seed // 10 * 10, seed // 10 * 10 + 10)
    ordered = sorted(ten, key=lambda one: hashlib.sha256(f"split-{one}".encode()).digest())
    names = [name for name, number in zip(SPLITS, OF_TEN, strict=True) for _ in range(number)]
    return names[ordered.index(seed)]


def record_of(examined: Examined, images: dict[str, Any]) -> dict[str, Any]:
    """All that is true of a patient, as JSON values; one line of the manifest."""
    report = report_of(examined)
    style = load_style(examined.site.style, examined.site.language)
    context, earlier = examined.context, examined.earlier
    return {
        "id": examined.id,
        "split": split_of(examined.patient.seed),
        "examination": examined.examination,
        "site": examined.site.key,
        **images,
        "age_years": context.age_years,
        "sex": context.sex,
        "indication": context.indication,
        "history": sorted(examined.patient.history),
        "planted": [
            _to_dict(lesion.finding)
            | {"box_mm": _rounded(lesion.box_mm), "parts_mm": [_rounded(part) for part in lesion.parts_mm]}
            for lesion in examined.lesions
        ],
        "decoys": [{"kind": decoy.kind, "box_mm": _rounded(decoy.box_mm)} for decoy in examined.decoys],
        "findings": [_to_dict(finding) for finding in examined.findings],
        "contrast": examined.contrast,
        "interpretations": list(report.interpretations),
        "language": report.language,
        "style": examined.site.style,
        "report": body_text(report, style),
        "prior": None
        if earlier is None
        else {
            "months": earlier.months,
            "findings": [_to_dict(finding) for finding in earlier.findings],
            "report": earlier.report,
        },
    }


def report_of(examined: Examined) -> Report:
    """What the site's radiologist writes of this patient."""
    present = [f for f in examined.findings if f.presence is Presence.PRESENT]
    return render_report(
        examined.findings,
        load_style(examined.site.style, examined.site.language),
        examined.examination,
        technique=examined.technique,
        rng=random.Random(f"report-{examined.patient.seed}"),
        interpretations=interpret(present, examined.context, examined.examination),
    )


def _check_same(config: CohortConfig, out: Path) -> None:
    """A folder holds one cohort; going on with other settings would mix two. More patients are more of it."""
    path, described = out / "cohort.json", _described(config)
    if path.is_file():
        there = {"spacing_mm": 0.0, "odds": 1.0} | json.loads(path.read_text(encoding="utf-8"))
        apart = {"n": 0, "splits": 0}
        if there | apart != described | apart or there["n"] > config.n:
            raise ConfigError(
                f"{out} holds a cohort of other settings. Choose another folder, or delete it.",
                code="COHORT_DIFFERS",
            )
    write_text(path, json.dumps(described, indent=1) + "\n")


def _described(config: CohortConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"phantom": PHANTOM_VERSION} | asdict(config)
    values.pop("workers")  # it changes nothing that is made
    splits = [split_of(seed) for seed in config.seeds]
    return values | {"splits": {name: splits.count(name) for name in SPLITS}}


def _made(jobs: list[tuple[CohortConfig, int, Path]], workers: int) -> Iterator[str]:
    """Even one worker is a process of its own: the number of threads changes the last bit of a sum, and is
    settled before numpy is imported."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
            yield from pool.map(make_patient, jobs, chunksize=1)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def make_patient(job: tuple[CohortConfig, int, Path]) -> str:
    """Images and truth of one patient, unless they are there; -> the line of the manifest."""
    config, seed, patients = job
    examined_id = f"phantom-{seed:010d}"
    record = patients / f"{examined_id}.json"
    images_of = {
        "arrays": patients / f"{examined_id}.npy",
        "dicom": patients / examined_id,
        "truth": record,
    }[config.form]
    if record.is_file() and images_of.exists():
        return record.read_text(encoding="utf-8")
    examined = examine(seed, config.examination, config.own_site, config.prior_share)
    assert examined.id == examined_id
    images: dict[str, Any] = {}
    if config.form == "arrays":
        images = _write_array(examined, images_of, config.spacing_mm)
    elif config.form == "dicom":
        shutil.rmtree(
            patients / examined_id, ignore_errors=True
        )  # of a run that was killed before its record
        written = write_dicom(examined, patients / examined_id, matrix=config.matrix)
        images = {"dicom": examined_id} | written
    line = json.dumps(record_of(examined, images), ensure_ascii=False) + "\n"
    write_text(record, line)
    return line


def _write_array(examined: Examined, path: Path, spacing_mm: float) -> dict[str, Any]:
    array, affine, facts = to_array(examined, spacing_mm=spacing_mm)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            np.save(file, array)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(
            f"Cannot write {path}: {error.strerror}. Free some space and run it again."
        ) from error
    return {"array": path.name, "affine": affine.round(4).tolist(), "scan": facts}


def _to_dict(finding: Finding) -> dict[str, Any]:
    values = {
        "code": finding.code,
        "presence": finding.presence,
        "side": finding.side,
        "site": finding.site,
        "size_mm": finding.size_mm,
        "count": finding.count,
        "change": finding.change,
    }
    return {name: value for name, value in values.items() if value is not None}


def _rounded(box_mm: Box) -> list[list[float]]:
    return [[round(float(v), 1) for v in corner] for corner in box_mm]


def _end_with_parent() -> None:
    """A worker whose parent is killed ends too, instead of waiting for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
