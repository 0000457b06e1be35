"""Phantoms -> a corpus on disk: one image a file on the model's grid, one JSON line an example.

    corpus/
      corpus.json            what it holds: split sizes, seed, preprocessing
      train.jsonl validation.jsonl test.jsonl
      images/phantom-100000.npy   HU int16 (I, J, K) on the model's grid

Resumable: an image that is there is not made again. Splits are by patient.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mla_med.errors import ConfigError, StudyError
from mla_med.files import write_text
from mla_med.imaging.transforms import Preprocessing
from mla_med.phantom.plain.lesions import PREVALENCE
from mla_med.report.context import context_text
from mla_med.report.schema import CHEST_CT
from mla_med.types import Finding, Presence, Side

SPLITS = ("train", "validation", "test")
SCHEMA = {code: CHEST_CT[code] for code in PREVALENCE}
"""What a model learns from this corpus to look for."""


@dataclass(frozen=True, slots=True)
class CorpusConfig:
    train: int = 3000
    """Patients to train on."""
    validation: int = 200
    """Patients to watch the training and to calibrate on."""
    test: int = 200
    """Patients that training never sees."""
    seed: int = 1
    """First patient of the train split is seed * 100000; other splits follow apart."""
    workers: int = 2
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __post_init__(self):
        if self.seed < 1 or self.seed > 8 or max(self.train, self.validation, self.test) > 20_000:
            raise ConfigError(
                f"A corpus of seed {self.seed} with {self.train} patients would share some with another "
                "split or with the acceptance test. Seeds are 1 to 8, and a split has at most 20000 patients."
            )

    def seeds(self, split: str) -> range:
        """The patients of a split."""
        start = self.seed * 100_000 + 20_000 * SPLITS.index(split)
        return range(start, start + getattr(self, split))


@dataclass(frozen=True, slots=True)
class Example:
    """One line of a split."""

    id: str
    image: Path
    affine: np.ndarray
    """(4, 4), voxel index of the image -> patient RAS mm."""
    context: str
    findings: tuple[Finding, ...]
    boxes_mm: dict[str, tuple]
    report: str
    """Findings and impression as text."""


def prepare_corpus(
    config: CorpusConfig, out: Path, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Makes what is missing of the corpus, in parallel, and returns its folder."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    jobs = [(split, seed) for split in SPLITS for seed in config.seeds(split)]
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    # a fresh interpreter for each worker: torch's threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.workers, context, initializer=_one_thread) as pool:
        made = pool.map(_make_example, [(out, seed, config.preprocessing) for _, seed in jobs], chunksize=8)
        for n, ((split, _), line) in enumerate(zip(jobs, made, strict=True), 1):
            lines[split].append(line)
            if progress:
                progress(n, len(jobs))
    for split in SPLITS:
        write_text(out / f"{split}.jsonl", "".join(lines[split]))
    described = {**asdict(config), "preprocessing": config.preprocessing.to_dict()}
    described.pop("workers")
    write_text(out / "corpus.json", json.dumps(described, indent=1))
    return out


def read_examples(corpus: Path, split: str) -> tuple[Example, ...]:
    """The examples of a split, in order. StudyError where the corpus is not there."""
    path = corpus / f"{split}.jsonl"
    if not path.is_file():
        raise StudyError(
            f"No corpus at {corpus}: {path.name} is missing. Make one first.", code="CORPUS_MISSING"
        )
    return tuple(_from_line(corpus, line) for line in path.read_text().splitlines())


def _make_example(job: tuple[Path, int, Preprocessing]) -> str:
    """Renders one phantom onto the model's grid (unless its files are there); -> its JSON line."""
    out, seed, settings = job
    image, line = out / "images" / f"phantom-{seed:06d}.npy", out / "images" / f"phantom-{seed:06d}.json"
    if image.is_file() and line.is_file():
        return line.read_text()
    import torch
    from monai.data import MetaTensor

    from mla_med.imaging.transforms import place_transform
    from mla_med.phantom.plain.cohort import make_phantom, scan_phantom

    phantom = make_phantom(seed)
    # the scanner at the model's own spacing: what slab averaging would leave of a finer scan
    matrix = int(max(settings.shape) * 1.06)
    hu, grid, _ = scan_phantom(phantom, (settings.spacing_mm,) * 3, matrix, noise=0.4)
    data = {
        "image": MetaTensor(torch.from_numpy(hu.astype(np.float32))[None], affine=torch.tensor(grid.affine))
    }
    placed = place_transform(settings)(data)["image"]
    record = {
        "id": phantom.id,
        "affine": np.asarray(placed.affine, float).round(4).tolist(),
        "context": context_text(phantom.context),
        "findings": [_finding_to_dict(lesion.finding) for lesion in phantom.lesions],
        "boxes_mm": {lesion.finding.code: lesion.box_mm for lesion in phantom.lesions},
        "report": _body_text(phantom),
    }
    _save_npy(image, placed.as_tensor()[0].round().to(torch.int16).numpy())
    text = json.dumps(record) + "\n"
    write_text(line, text)
    return text


def _body_text(phantom) -> str:
    from mla_med.report.render import body_text

    return body_text(phantom.report)


def _finding_to_dict(finding: Finding) -> dict[str, Any]:
    return {"code": finding.code, "site": finding.site, "side": finding.side, "size_mm": finding.size_mm}


def _from_line(corpus: Path, line: str) -> Example:
    row = json.loads(line)
    findings = tuple(
        Finding(f["code"], Presence.PRESENT, f["site"], Side(f["side"]) if f["side"] else None, f["size_mm"])
        for f in row["findings"]
    )
    return Example(
        row["id"],
        corpus / "images" / f"{row['id']}.npy",
        np.asarray(row["affine"], np.float32),
        row["context"],
        findings,
        row["boxes_mm"],
        row["report"],
    )


def _save_npy(path: Path, array: np.ndarray) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.save(file, array)
    part.replace(path)


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
