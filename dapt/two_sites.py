"""Seeds -> small corpora of two sites of phantoms, each with its own scanner, prevalence, language and style.

In the words of their site, which `dapt.corpus` leaves out (its reports are of one style in two languages).
What `adapt --quick` learns from is drawn coarsely (40 x 40 pixels a slice), in half the time of the training
grid, and is not for numbers: nodules of a few millimetres are gone.
"""

from __future__ import annotations

import json
import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mla_med.corpus import SPLITS, finding_from, place
from mla_med.files import write_text
from mla_med.imaging.grid import Preprocessing
from mla_med.phantom.cohort import PHANTOM_VERSION, record_of
from mla_med.phantom.examine import examine
from mla_med.phantom.patient import context_of, make_patient
from mla_med.phantom.scanning import scan_ct, to_array
from mla_med.phantom.sites import site_of
from mla_med.report.context import context_text
from mla_med.report.interpret import interpret
from mla_med.report.render import body_text, render_report
from mla_med.report.style import load_style
from mla_med.types import Presence

COARSE = Preprocessing(shape=(32, 24, 32), spacing_mm=12.0)
FIRST_SEED = {"a": 4_100_000_000, "b": 4_200_000_000}
"""Beyond those of any cohort."""
MATRIX = 40
EVERY_THIRD = "train", "train", "validation"


def make_site(out: Path, site: str, n: int, workers: int = 2, settings: Preprocessing = COARSE) -> Path:
    """A corpus of `n` chest CT of a site on the grid of `settings`, a third of them for validation; made
    once. Images that are there are not made again."""
    if (out / "corpus.json").is_file():
        return out
    (out / "images").mkdir(parents=True, exist_ok=True)
    jobs = [(FIRST_SEED[site] + k, site, out, EVERY_THIRD[k % 3], settings) for k in range(n)]
    rows: dict[str, list[str]] = {split: [] for split in SPLITS}
    # a fresh interpreter for each worker: torch's threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for split, row in pool.map(_make_example, jobs, chunksize=4):
            rows[split].append(row)
    for split in SPLITS:
        write_text(out / f"{split}.jsonl", "".join(rows[split]))
    about = {
        "examination": "chest_ct",
        "languages": [site_of(site).language],
        **{split: len(rows[split]) for split in SPLITS},
        "cohort": {"phantom": PHANTOM_VERSION, "n": n, "seed": FIRST_SEED[site], "site": site},
        "preprocessing": settings.to_dict(),
    }
    write_text(out / "corpus.json", json.dumps(about, indent=1) + "\n")
    return out


def _make_example(job: tuple[int, str, Path, str, Preprocessing]) -> tuple[str, str]:
    seed, key, out, split, settings = job
    stem = out / "images" / f"phantom-{seed:010d}"
    image, row = stem.with_suffix(".npy"), stem.with_suffix(".json")
    if not (image.is_file() and row.is_file()):
        examined = examine(seed, "chest_ct", site_of(key))
        if settings == COARSE:
            scanned = scan_ct(examined, matrix=MATRIX)
            placed, affine, present = place(scanned.hu, scanned.affine, {}, settings)
        else:
            placed, affine, present = place(*to_array(examined, spacing_mm=settings.spacing_mm), settings)
        with image.open("wb") as file:
            np.save(file, placed.astype(np.int16))
        known = {"id": examined.id, "affine": affine.round(4).tolist(), "present": present}
        said = said_of(record_of(examined, {}))
        write_text(row, json.dumps({**known, **said}, ensure_ascii=False) + "\n")
    return split, row.read_text(encoding="utf-8")


def said_of(record: dict[str, Any]) -> dict[str, Any]:
    """A record of a cohort -> request, findings and report, in language and style of its site, without
    comparisons: nobody teaches them."""
    language, style = record["language"], load_style(record["style"], record["language"])
    stated = [finding_from(said) for said in record["findings"] if said["presence"] == Presence.PRESENT]
    patient = make_patient(int(record["id"].removeprefix("phantom-")))
    context = context_of(patient, record["examination"], language)
    report = render_report(
        stated,
        style,
        record["examination"],
        rng=random.Random(f"two-sites-{record['id']}"),
        interpretations=interpret(stated, context, record["examination"]),
    )
    planted = sorted(record["planted"], key=_volume, reverse=True)
    names = ("code", "site", "side", "size_mm", "count")
    return {
        "contexts": {language: context_text(context)},
        "findings": [{n: p[n] for n in names if p.get(n) is not None} for p in planted],
        "boxes_mm": [lesion["box_mm"] for lesion in planted],
        "parts_mm": [lesion.get("parts_mm", []) for lesion in planted],
        "reports": {language: body_text(report, style)},
    }


def _volume(lesion: dict[str, Any]) -> tuple[float, float]:
    low, high = np.array(lesion["box_mm"], float)
    return lesion.get("size_mm") or 0.0, float(np.prod(high - low))
