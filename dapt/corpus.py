"""A cohort of phantoms -> a corpus on disk: one image a file on the model's grid, one JSON line an example.
What is in the folder, and how it is read: mla_med/corpus.py.

    python -m dapt.corpus SOURCE --out DIR --kind csv

is the command for what is no phantom (docs/corpus.md): importers/ reads it, build.py writes it.

Every example has its request and its report in each language of LANGUAGES: one model learns both. Reports
speak of this examination alone: a model is taught comparisons by nobody, they are measured. Resumable: an
image that is there is not made again. Splits are by patient, and those of the cohort.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mla_med.corpus import LANGUAGES, SPLITS, STYLE, finding_from, place, read_about, read_settings, to_bytes
from mla_med.errors import ConfigError, MlaMedError, OutputError, StudyError
from mla_med.files import write_text
from mla_med.imaging.transforms import BRAIN_MR, CHEST_CT, Preprocessing
from mla_med.memory import keep_freed
from mla_med.report.context import context_text
from mla_med.report.interpret import interpret
from mla_med.report.render import body_text, render_report
from mla_med.report.style import load_style
from mla_med.types import ClinicalContext, Finding, Modality, Presence

if TYPE_CHECKING:
    from dapt.build import BuildConfig
    from dapt.importers.kinds import Choices

PREPROCESSING = {"chest_ct": CHEST_CT, "brain_mr": BRAIN_MR}


def prepare_corpus(
    cohort: Path,
    out: Path,
    preprocessing: Preprocessing | None = None,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Path:
    """Places what is missing of a cohort's arrays on the model's grid (that of the examination, in voxels as
    large as the cohort's), and returns the corpus' folder. Arrays that are not there are drawn."""
    described, lines = _read_cohort(cohort)
    examination = described["examination"]
    if examination not in PREPROCESSING:
        raise ConfigError(f"No model reads {examination}; there are: {', '.join(PREPROCESSING)}.")
    settings = preprocessing or settings_of(examination, described.get("spacing_mm", 0.0))
    (out / "images").mkdir(parents=True, exist_ok=True)
    _check_same(out, settings)
    jobs = [(cohort, out, line, settings, described) for line in lines]
    rows: dict[str, list[str]] = {split: [] for split in SPLITS}
    # torch's threads do not survive a fork: workers are forked from a process that has imported and has none
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dapt.corpus"])  # it takes seconds: once for all workers
    with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
        for n, (split, row) in enumerate(pool.map(_make_example, jobs, chunksize=8), 1):
            rows[split].append(row)
            progress(n, len(jobs))
    for split in SPLITS:
        write_text(out / f"{split}.jsonl", "".join(rows[split]))
    about = {
        "examination": examination,
        "languages": LANGUAGES,
        **{split: len(rows[split]) for split in SPLITS},
        "cohort": {
            key: described[key] for key in ("phantom", "n", "seed", "site", "odds") if key in described
        },
        "preprocessing": settings.to_dict(),
    }
    write_text(out / "corpus.json", json.dumps(about, indent=1) + "\n")
    return out


def settings_of(examination: str, spacing_mm: float = 0.0) -> Preprocessing:
    """Of its model; 0: in the usual voxels."""
    usual = PREPROCESSING[examination]
    return usual.at(spacing_mm) if spacing_mm else usual


# A patient of the cohort -> an example


def _read_cohort(cohort: Path) -> tuple[dict[str, Any], list[str]]:
    paths = cohort / "cohort.json", cohort / "manifest.jsonl"
    if not all(path.is_file() for path in paths):
        raise StudyError(
            f"No whole cohort at {cohort}. Make one: mla-med phantom cohort --out FOLDER",
            code="COHORT_MISSING",
        )
    described = json.loads(paths[0].read_text(encoding="utf-8"))
    if described["form"] == "dicom":
        raise ConfigError(f"{cohort} holds DICOM; a corpus is made of arrays or truth: --form arrays.")
    return described, paths[1].read_text(encoding="utf-8").splitlines()


def _check_same(out: Path, settings: Preprocessing) -> None:
    there = out / "corpus.json"
    if there.is_file() and read_settings(out) != settings:
        raise ConfigError(
            f"{out} holds images on another grid. Choose another folder, or delete it.", code="CORPUS_DIFFERS"
        )


def _make_example(job: tuple[Path, Path, str, Preprocessing, dict[str, Any]]) -> tuple[str, str]:
    """Places one image on the model's grid (unless its files are there); -> split, and its JSON line."""
    cohort, out, line, settings, described = job
    record = json.loads(line)
    image, row = out / "images" / f"{record['id']}.npy", out / "images" / f"{record['id']}.json"
    if image.is_file() and row.is_file():
        return record["split"], row.read_text(encoding="utf-8")
    if "array" in record:
        array = np.load(cohort / "patients" / record["array"])
        affine, scan = np.array(record["affine"]), record["scan"]
    else:
        array, affine, scan = _drawn(described, record["id"], settings.spacing_mm)
    placed, affine, present = place(array, affine, scan, settings)
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


def _drawn(
    described: dict[str, Any], example: str, spacing_mm: float
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """What a cohort in the form of arrays would hold of a patient."""
    from mla_med.phantom.cohort import CohortConfig
    from mla_med.phantom.examine import examine
    from mla_med.phantom.scanning import to_array

    known = {field.name: described[field.name] for field in fields(CohortConfig) if field.name in described}
    config = CohortConfig(**known)
    seed = int(example.removeprefix("phantom-"))
    examined = examine(seed, config.examination, config.own_site, config.prior_share)
    return to_array(examined, spacing_mm=spacing_mm)


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
        "parts_mm": [lesion.get("parts_mm", []) for lesion in planted],
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


def _start_worker() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    keep_freed()
    import torch

    torch.set_num_threads(1)


# What is no phantom


def gather_corpus(
    source: Path,
    kind: str,
    out: Path,
    config: BuildConfig | None = None,
    choices: Choices | None = None,
    progress: Callable[[int, int], None] = lambda done, refused: None,
) -> Path:
    """A source of a kind of `importers.kinds.KINDS` -> its corpus; running it again goes on where it stopped.
    `progress` gets the number of pairs that are done, and of refusals."""
    # what scores texts is not needed where phantoms are placed
    from dapt.build import BuildConfig, build_corpus, load_hide
    from dapt.importers.kinds import KINDS, Choices

    if kind not in KINDS:
        raise ConfigError(f"No kind '{kind}'; there are: {', '.join(KINDS)}.", code="KIND_UNKNOWN")
    if not source.exists():
        raise StudyError(f"Nothing at {source}. Give the folder or table to read.", code="PATH_MISSING")
    config = config or BuildConfig(examination=KINDS[kind].examination)
    choices = replace(choices or Choices(), examination=config.examination)
    imported = KINDS[kind].read(source, load_hide(out), choices)
    return build_corpus(imported, kind, source, out, config, progress)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m dapt.corpus") -> int:
    options = _parser(prog).parse_args(arguments)
    from dapt.build import BuildConfig
    from dapt.corpus_page import to_table
    from dapt.importers.kinds import KINDS, Choices

    asked = options.examination or KINDS[options.kind].examination
    choices = Choices(
        reports=options.reports,
        values=options.values,
        text=options.text,
        allow_preliminary=options.allow_preliminary,
    )
    examination = "" if asked == "pictures" else asked
    try:
        config = BuildConfig(
            examination=examination,
            mask=options.mask,
            split=options.split,
            images=not options.no_images,
            workers=options.workers,
            limit=options.limit,
            preprocessing=_grid_of(examination, options.spacing),
        )
        gather_corpus(options.source, options.kind, options.out, config, choices, _told())
        about = read_about(options.out)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{OutputError.code}: {error.strerror}; free some space and run it again.", file=sys.stderr)
        return 1
    print(to_table(about))
    print(f"{options.out / 'corpus.html'} shows it; confidential/ leads back to the files: keep it here.")
    return 0


def _grid_of(examination: str, spacing_mm: float) -> Preprocessing | None:
    """None: the usual one."""
    from mla_med.phantom.cohort import check_spacing

    if not spacing_mm:
        return None
    if not examination:
        raise ConfigError("Pixels of pictures have no size in mm. Leave --spacing out.")
    check_spacing(spacing_mm)
    return settings_of(examination, spacing_mm)


def _parser(prog: str) -> argparse.ArgumentParser:
    from dapt.importers.kinds import KINDS
    from dapt.importers.public import MEDPIX_TEXTS

    kinds = "\n".join(f"  {name:<10} {kind.words}" for name, kind in KINDS.items())
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Studies and reports -> a corpus to train on. Killed, it goes on where it was.",
        epilog=f"kinds:\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="a folder, or the table")
    parser.add_argument(
        "--out", type=Path, required=True, help="the corpus: a new folder, or one to go on with"
    )
    parser.add_argument("--kind", choices=tuple(KINDS), required=True, help="what the source is; see below")
    parser.add_argument(
        "--examination",
        choices=(*PREPROCESSING, "pictures"),
        help="whose grid and findings; pictures: PNG and JPEG of any; as the kind has it",
    )
    parser.add_argument(
        "--spacing",
        type=float,
        default=0.0,
        help="mm of the voxels, as the model reads them that shall learn; 0: the usual ones",
    )
    parser.add_argument(
        "--mask", action="store_true", help="replace what may name somebody by [date], [name]"
    )
    parser.add_argument("--split", choices=("official", "hash"), default="official", help="hash: by patient")
    parser.add_argument("--no-images", action="store_true", help="texts alone; no image is opened")
    parser.add_argument("--reports", type=Path, help="dicom+hl7: the folder of the messages, if another")
    parser.add_argument(
        "--values",
        choices=("detect", "hu", "stored"),
        default="detect",
        help="ct-rate: what the volumes hold; by default they are looked at",
    )
    parser.add_argument("--text", choices=MEDPIX_TEXTS, default="caption", help="medpix: what the report is")
    parser.add_argument(
        "--allow-preliminary",
        action="store_true",
        help="take reports that nobody has signed, drafts of models too",
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="processes that read images; 0: none of their own"
    )
    parser.add_argument("--limit", type=int, help="so many pairs, the first")
    return parser


def _told(every_s: float = 2.0) -> Callable[[int, int], None]:
    """Progress without a name in it."""
    last, before = time.monotonic(), 0

    def say(done: int, refused: int) -> None:
        nonlocal last, before
        now = time.monotonic()
        if now - last > every_s:
            rate = (done - before) / (now - last)
            print(f"{done:,} done, {refused:,} refused, {rate:.1f} a second", file=sys.stderr, flush=True)
            last, before = now, done

    return say


if __name__ == "__main__":
    raise SystemExit(main())
