"""A corpus on disk -> examples, and the images of an example, or of a phantom, on the model's grid.

    corpus/
      corpus.json            what it holds: examination, number of each split, preprocessing, cohort
      train.jsonl validation.jsonl test.jsonl
      images/phantom-0001000000.npy   CT: int16 HU (I, J, K); MR: uint8 (C, I, J, K), see `to_bytes`

A corpus of phantoms names its images by the id of the example. One that was gathered (`dapt/build.py`) names
them in the field `image`, null where there is none, and states a request, a report and findings only where
they were given. Who trains and who measures read the same. Knows no network, and not how a corpus is made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from mla_med.errors import ConfigError, StudyError
from mla_med.imaging.sequences import place_images
from mla_med.imaging.transforms import Preprocessing, place_transform, window_channels
from mla_med.phantom.scanner.mr import SEQUENCES
from mla_med.types import Box, Finding, Modality, Presence, Side

SPLITS = ("train", "validation", "test")
LANGUAGES = ("en", "zh")
"""Every example has its request and its report in each."""
STYLE = "prose"
"""In which the reports of a corpus are written, in every language."""
PLANTED = "planted"
LABELS = (PLANTED, "given", "extracted", "none")
"""Findings are of a phantom, came with the data, were read from the report by rules, or are not known."""
BYTE = 7.5 / 255
"""A step of the stored values of an MR: standardised values are clipped to -2.5 to 5 (sequences.CLIP)."""
ZERO = 85
"""The byte of 0.0."""


@dataclass(frozen=True, slots=True)
class Example:
    """One line of a split."""

    id: str
    image: Path | None
    """None: there is text alone."""
    affine: np.ndarray
    """(4, 4), voxel index of the image -> patient RAS mm."""
    present: tuple[bool, ...]
    """Whether each channel was taken: windows of a CT always are. Empty without an image."""
    contexts: dict[str, str]
    """By language; a phantom has every one, a patient that of the request, if there is one."""
    findings: tuple[Finding, ...]
    """What is present; of one code, the largest first."""
    boxes_mm: dict[str, tuple[Box, ...]]
    """By code, in the order of `findings`; of a patient nobody drew any."""
    parts_mm: dict[str, tuple[Box, ...]]
    """By code, `boxes_mm` with what lies in several places as its parts: where a model is taught to look."""
    reports: dict[str, str]
    """Findings and impression as text, by language, as `contexts`."""
    patient: str = ""
    """The hash of who it is; empty: every example is of another patient."""
    study: str = ""
    labels: str = PLANTED
    """Where `findings` come from: one of LABELS."""
    known: tuple[str, ...] | None = None
    """Codes of which it is known whether they are present; of the others nobody can say. None: of all."""
    texts: dict[str, str] = field(default_factory=dict)
    """What else was written of it, by name: caption, diagnosis."""


def read_about(corpus: Path) -> dict[str, Any]:
    """What corpus.json says."""
    path = corpus / "corpus.json"
    if not path.is_file():
        raise StudyError(
            f"No corpus at {corpus}: {path.name} is missing. Make one first.", code="CORPUS_MISSING"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def read_settings(corpus: Path) -> Preprocessing:
    stated = read_about(corpus)["preprocessing"]
    if stated is None:
        raise StudyError(f"The corpus at {corpus} holds text alone, no images.", code="NO_IMAGES")
    return Preprocessing.from_dict(stated)


def read_examples(corpus: Path, split: str) -> tuple[Example, ...]:
    """The examples of a split, in order; "all": of every split. StudyError where the corpus is not there."""
    read_about(corpus)
    if split not in (*SPLITS, "all"):
        raise ConfigError(f"No split '{split}'; there are: {', '.join(SPLITS)} and all.", code="NO_SPLIT")
    names = SPLITS if split == "all" else (split,)
    return tuple(
        _from_line(corpus, line)
        for name in names
        for line in (corpus / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    )


def image_of(example: Example) -> Path:
    if example.image is None:
        raise StudyError(f"Example {example.id} has no image; train on its text alone.", code="NO_IMAGE")
    return example.image


def load_image(example: Example, settings: Preprocessing) -> np.ndarray:
    """float32: HU (I, J, K) of a CT, standardised values (C, I, J, K) of an MR."""
    stored = np.load(image_of(example))
    return stored.astype(np.float32) if settings.modality == Modality.CT else from_bytes(stored)


def load_channels(example: Example, settings: Preprocessing) -> tuple[Tensor, Tensor, Tensor]:
    """-> what a network takes of one example: image (C, I, J, K), which channels were taken (C,), and the
    affine (4, 4)."""
    image = torch.from_numpy(load_image(example, settings))
    if settings.windows_hu:
        image = window_channels(image, settings.windows_hu)
    return image, torch.tensor(example.present), torch.from_numpy(example.affine)


def place(
    array: np.ndarray, affine: np.ndarray, scan: dict[str, Any], settings: Preprocessing
) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """An array of a phantom on the model's grid -> float32 HU (I, J, K) of a CT, or standardised values
    (C, I, J, K) of an MR; its affine (4, 4); and which channels were taken."""
    if settings.modality == Modality.CT:
        image = MetaTensor(torch.from_numpy(array.astype(np.float32))[None], affine=torch.tensor(affine))
        placed = place_transform(settings)({"image": image})["image"]
        values = placed.as_tensor()[0].round().numpy()
        return values, np.asarray(placed.affine, float), [True] * settings.channels
    images = {name: (one, affine) for name, one in zip(SEQUENCES, array, strict=True) if name in scan}
    channels, present, grid = place_images(images, settings)
    return channels.numpy(), grid.numpy().astype(float), present.tolist()


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Standardised values -> uint8; an eighth of the room, and a fortieth of a standard deviation lost."""
    return np.clip(np.rint(values / BYTE) + ZERO, 0, 255).astype(np.uint8)


def from_bytes(stored: np.ndarray) -> np.ndarray:
    return (stored.astype(np.float32) - ZERO) * np.float32(BYTE)


def finding_from(values: dict[str, Any]) -> Finding:
    """A finding of a manifest, without what became of it since an earlier study."""
    side = Side(values["side"]) if values.get("side") else None
    return Finding(
        values["code"],
        Presence.PRESENT,
        values.get("site"),
        side,
        values.get("size_mm"),
        values.get("count"),
    )


def _box(corners: list[list[float]]) -> Box:
    (x, y, z), (far_x, far_y, far_z) = corners
    return (x, y, z), (far_x, far_y, far_z)


def _from_line(corpus: Path, line: str) -> Example:
    row = json.loads(line)
    findings = tuple(finding_from(values) for values in row["findings"])
    boxes: dict[str, tuple[Box, ...]] = {}
    parts: dict[str, tuple[Box, ...]] = {}
    if "boxes_mm" in row:
        several = row.get("parts_mm", [[]] * len(findings))
        for finding, box, its in zip(findings, row["boxes_mm"], several, strict=True):
            boxes[finding.code] = (*boxes.get(finding.code, ()), _box(box))
            parts[finding.code] = (*parts.get(finding.code, ()), *map(_box, its or [box]))
    image = row.get("image", f"images/{row['id']}.npy")
    return Example(
        row["id"],
        None if image is None else corpus / image,
        np.asarray(row.get("affine", np.eye(4)), np.float32),
        tuple(row.get("present", ())),
        row["contexts"],
        findings,
        boxes,
        parts,
        row["reports"],
        row.get("patient", ""),
        row.get("study", ""),
        row.get("labels", PLANTED),
        tuple(row["known"]) if "known" in row else None,
        row.get("texts", {}),
    )
