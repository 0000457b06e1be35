"""Where phantoms are -> the small worlds that rows learn and are tested in.

    phantoms   a corpus of chest CT, as `python -m dapt` makes one
    fine       the same, in the voxels of the packaged model
    pooled     the same, averaged over blocks of voxels: small networks learn from it in a minute
    two sites  of dapt.two_sites, drawn coarsely
    fine site  the second of them, on the packaged model's grid

The quick run has none of them: bodies of a few boxes, drawn at once, which show that everything runs.
"""

# N examples, I J K voxel axes, F findings, D width

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.claims.row import Job, NotMeasured
from mla_med.corpus import SPLITS, Example, load_channels, read_about, read_settings
from mla_med.files import write_text
from mla_med.imaging.grid import Preprocessing

SKETCH = (24, 24, 24)
SKETCH_MM = 12.0
SKETCHED = {"a": (48, 24, 12), "b": (24, 12, 0)}
"""Examples of each split of a site of the quick run."""


def phantom_corpus(job: Job) -> Path:
    if job.quick:
        return sketch(job.world / "sketch-a", "a")
    if not (job.corpus / "corpus.json").is_file():
        raise NotMeasured(
            f"No corpus of phantoms at {job.corpus.name}: make one with python -m dapt (make checkpoint), or "
            "name one by --corpus."
        )
    about = read_about(job.corpus)
    if about["examination"] != "chest_ct":
        raise NotMeasured("The corpus of phantoms has to be of chest CT; name another by --corpus.")
    return job.corpus


def fine_corpus(job: Job) -> Path:
    """In the voxels of the packaged model."""
    corpus = phantom_corpus(job)
    if job.quick:
        return corpus
    from mla_med.model.checkpoint import load_checkpoint

    reads = Preprocessing.from_dict(load_checkpoint(None).model.config.preprocessing)
    there = read_settings(corpus)
    if there != reads:
        raise NotMeasured(
            f"The phantoms are in voxels of {there.spacing_mm:g} mm, and the packaged model reads "
            f"{reads.spacing_mm:g} mm. Name a corpus of those by --corpus."
        )
    return corpus


def pooled_corpus(job: Job, spacing_mm: float = 12.0) -> Path:
    """Voxels averaged to so many mm; made once. Those that are as large are taken as they are."""
    source = phantom_corpus(job)
    by = round(spacing_mm / read_settings(source).spacing_mm)
    if job.quick or by <= 1:
        return source
    out = job.world / f"pooled-{spacing_mm:g}mm"
    if (out / "corpus.json").is_file():
        return out
    job.say(f"averaging {source.name} over {by} voxels an edge")
    (out / "images").mkdir(parents=True, exist_ok=True)
    about = read_about(source)
    for split in SPLITS:
        lines = []
        for line in (source / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            hu = np.load(source / "images" / f"{row['id']}.npy").astype(np.float32)
            np.save(out / "images" / f"{row['id']}.npy", averaged(hu, by).round().astype(np.int16))
            affine = np.array(row["affine"], float)
            affine[:3, 3] += affine[:3, :3] @ np.full(3, (by - 1) / 2)
            affine[:3, :3] *= by
            row["affine"] = affine.round(4).tolist()
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        write_text(out / f"{split}.jsonl", "".join(lines))
    grid = about["preprocessing"]
    grid["shape"], grid["spacing_mm"] = [edge // by for edge in grid["shape"]], grid["spacing_mm"] * by
    write_text(out / "corpus.json", json.dumps(about, indent=1) + "\n")
    return out


def averaged(hu_IJK: np.ndarray, by: int) -> np.ndarray:
    i, j, k = (edge // by for edge in hu_IJK.shape)
    return hu_IJK[: i * by, : j * by, : k * by].reshape(i, by, j, by, k, by).mean((1, 3, 5))


def two_sites(job: Job) -> tuple[Path, Path]:
    """Source and site."""
    if job.quick:
        return sketch(job.world / "sketch-a", "a"), sketch(job.world / "sketch-b", "b")
    from dapt.two_sites import make_site

    made = []
    for site in ("a", "b"):
        count = job.sizes[f"phantoms_{site}"]
        out = job.world / f"site-{site}-{count}"
        if not (out / "corpus.json").is_file():
            job.say(f"{count} phantoms of site {site}")
        made.append(make_site(out, site, count, workers=1))
    return made[0], made[1]


def fine_site(job: Job) -> Path:
    """The second site, on the packaged model's grid."""
    if job.quick:
        return sketch(job.world / "sketch-b", "b")
    from dapt.two_sites import make_site
    from mla_med.model.checkpoint import load_checkpoint

    count = job.sizes["phantoms_b"]
    settings = Preprocessing.from_dict(load_checkpoint(None).model.config.preprocessing)
    out = job.world / f"{settings.spacing_mm:g}mm-b-{count}"
    if not (out / "corpus.json").is_file():
        job.say(f"{count} phantoms of site b on the grid of the packaged model")
    return make_site(out, "b", count, workers=1, settings=settings)


@torch.no_grad()
def seen_by_packaged(job: Job, examples: Sequence[Example]) -> np.ndarray:
    """What the packaged model makes of each finding in each image, without a request (N, F, D). Made once."""
    from mla_med.model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(None)
    model, settings = checkpoint.model, Preprocessing.from_dict(checkpoint.model.config.preprocessing)
    known = sha256(json.dumps([checkpoint.weights_sha256, [e.id for e in examples]]).encode()).hexdigest()
    kept = job.world / f"seen-{known[:12]}.npy"
    if kept.is_file():
        return np.load(kept)
    rows = []
    for number, example in enumerate(examples):
        if number % 200 == 0:
            job.say(f"the packaged model looks at phantom {number + 1} of {len(examples)}")
        image, present, affine = load_channels(example, settings)
        found = model.find(model.encode(image[None], None, present[None], affine[None]))
        rows.append(found.embeddings_BFD[0].numpy())
    seen_NFD = np.stack(rows)
    part = kept.with_name(f".{kept.stem}.part.npy")
    np.save(part, seen_NFD)
    part.replace(kept)
    return seen_NFD


def images_of(examples: Sequence[Example]) -> np.ndarray:
    """HU (N, I, J, K) in half precision."""
    return np.stack([np.load(e.image).astype(np.float16) for e in examples if e.image is not None])


def presence_of(examples: Sequence[Example], codes: Sequence[str]) -> np.ndarray:
    return np.array([[any(f.code == code for f in e.findings) for code in codes] for e in examples])


def common_codes(examples: Sequence[Example], at_least: float = 0.05) -> tuple[str, ...]:
    """Codes that a share of the examples has, and a share has not, the commonest first."""
    codes = sorted({f.code for e in examples for f in e.findings})
    share = presence_of(examples, codes).mean(0)
    kept = [(s, c) for s, c in zip(share, codes, strict=True) if at_least <= s <= 1 - at_least]
    return tuple(code for _, code in sorted(kept, key=lambda pair: (-pair[0], pair[1])))


# Of the quick run


def sketch(folder: Path, site: str) -> Path:
    """A corpus of boxes: a body with lungs, and in every other a bright cube that the report names."""
    if (folder / "corpus.json").is_file():
        return folder
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng, number = np.random.default_rng(len(site) + ord(site)), 0
    for split, count in zip(SPLITS, SKETCHED[site], strict=True):
        rows = [_sketched(folder, f"{site}{number + n}", rng, site) for n in range(count)]
        number += count
        write_text(folder / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    about = {
        "examination": "chest_ct",
        "cohort": {"phantom": 0, "site": site},
        "preprocessing": Preprocessing(shape=SKETCH, spacing_mm=SKETCH_MM).to_dict(),
        **dict(zip(SPLITS, SKETCHED[site], strict=True)),
    }
    write_text(folder / "corpus.json", json.dumps(about) + "\n")
    return folder


def _sketched(folder: Path, key: str, rng: np.random.Generator, site: str) -> dict[str, Any]:
    hu = np.full(SKETCH, -1000.0)
    hu[3:21, 3:21, 2:22] = 30
    hu[5:11, 5:18, 4:20] = hu[13:19, 5:18, 4:20] = -800
    findings, boxes, said = [], [], []
    for code, edge in (("lung_nodule", 2), ("pleural_effusion", 4)):
        if rng.random() < 0.5:
            side = "right" if rng.random() < 0.5 else "left"
            corner = np.array([13 if side == "right" else 5, *rng.integers(6, 13, 2)])
            low, high = (corner * SKETCH_MM).tolist(), ((corner + edge) * SKETCH_MM).tolist()
            hu[tuple(slice(c, c + edge) for c in corner)] = 60
            findings.append({"code": code, "side": side, "size_mm": 6.0 if edge == 2 else 40.0})
            boxes.append([low, high])
            said.append(f"{code.replace('_', ' ')} on the {side}".capitalize() + ".")
    np.save(folder / "images" / f"{key}.npy", (hu + rng.normal(0, 20, hu.shape)).astype(np.int16))
    words = " ".join(said) or "No abnormality is seen."
    report = words if site == "a" else f"Chest: {words.lower()} Bones are intact."
    return {
        "id": key,
        "affine": np.diag([SKETCH_MM] * 3 + [1.0]).tolist(),
        "present": [True] * 3,
        "contexts": {"en": "64 years, F, cough"},
        "findings": findings,
        "boxes_mm": boxes,
        "reports": {"en": report},
    }
