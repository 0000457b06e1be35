"""HFFN: small lesions, found by three levels that refine each other, or by the coarsest level alone.

Cut from phantoms in voxels of 3 mm: cubes of 96 mm around a lung nodule, and as many from the
lungs of patients who have none. `hffn` against `concat`, which sees the coarsest level: same encoder, head,
batches and steps. Trained on nodules of every size, scored on those under 8 mm: F1 at the cut that says as
many as there are among the training cubes.
"""

# N cubes

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.claims.row import Job, Measured, NotMeasured, Row, Target, gain
from evaluation.claims.training import channels_of, cuts_of, drawn, logits_of, macro_f1, small_model, teach
from evaluation.claims.world import pooled_corpus
from mla_med.corpus import Example, read_about, read_examples, read_settings

GAIN = Target("F1 of lesions under 8 mm, relative", 8.3, "%")
SMALL_MM = 8.0
CODE = "lung_nodule"
LUNG_HU = (-950.0, -700.0)
SPACING_MM = 3.0


def measure(job: Job) -> Measured:
    corpus, edge = pooled_corpus(job, SPACING_MM), job.sizes["edge"]
    windows = read_settings(corpus).windows_hu
    known = read_examples(corpus, "train")[: job.sizes["phantoms"]]
    new = (*read_examples(corpus, "validation"), *read_examples(corpus, "test"))
    path = job.work / f"cubes-{edge}-{len(known)}.npz"
    if path.is_file():
        stored = np.load(path)
        cubes, sizes, new_cubes, new_sizes = (stored[k] for k in ("cubes", "sizes", "new_cubes", "new_sizes"))
    else:
        job.say("cutting cubes")
        cubes, sizes = cut(known, edge)
        new_cubes, new_sizes = cut(new, edge)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}")
        np.savez(part, cubes=cubes, sizes=sizes, new_cubes=new_cubes, new_sizes=new_sizes)
        part.replace(path)
    small = new_sizes < SMALL_MM
    new_cubes, new_sizes = new_cubes[small], new_sizes[small]
    if not (new_sizes > 0).any():
        raise NotMeasured(f"No nodule under {SMALL_MM:.0f} mm in the held-out phantoms of {corpus.name}.")
    truth, new_truth = sizes[:, None] > 0, new_sizes[:, None] > 0
    targets = torch.from_numpy(truth).float()
    arms: dict[str, dict[str, float]] = {}
    for name in ("concat", "hffn"):
        model = small_model((edge,) * 3, name, (CODE,), job.seed, modality_dropout=(0.0, 0.0))

        def look(hu: np.ndarray, rows: np.ndarray, model: Any = model) -> Tensor:
            return model.find(model.encode(channels_of(hu, rows, windows))).presence_logits_BF

        def loss_of(rng: np.random.Generator, look: Any = look) -> Tensor:
            rows = drawn(rng, len(cubes), job.sizes["batch"])
            return F.binary_cross_entropy_with_logits(look(cubes, rows), targets[rows])

        step_s = teach(model, loss_of, job.sizes["steps"], 3e-3, job.seed)
        cut_F = cuts_of(logits_of(partial(look, cubes), len(cubes)), truth)
        said = logits_of(partial(look, new_cubes), len(new_cubes)) > cut_F
        f1 = macro_f1(said, new_truth)
        arms[name] = {
            "F1": f1,
            "found": 100 * float(said[new_truth].mean()),
            "parameters": float(sum(p.numel() for p in model.parameters())),
            "seconds of a step": step_s,
        }
        job.say(f"{name}: F1 {f1:.1f} % of nodules under {SMALL_MM:.0f} mm")
    return Measured(
        {GAIN.name: gain(arms["hffn"]["F1"], arms["concat"]["F1"])},
        arms,
        {
            "cubes learnt from": len(cubes),
            "small nodules": int(new_truth.sum()),
            "cubes without": int((~new_truth).sum()),
            "phantom": read_about(corpus)["cohort"].get("phantom"),
        },
    )


def cut(examples: Sequence[Example], edge: int) -> tuple[np.ndarray, np.ndarray]:
    """Cubes (N, edge, edge, edge) of HU, and the size in mm of the nodule in each; 0: there is none."""
    cubes, sizes = [], []
    for number, example in enumerate(examples):
        rng = np.random.default_rng([number, 8])
        assert example.image is not None
        hu = np.load(example.image, mmap_mode="r")
        nodules = [
            (f.size_mm, np.mean(box, axis=0))
            for f, box in zip(
                [f for f in example.findings if f.code == CODE], example.boxes_mm.get(CODE, ()), strict=False
            )
            if f.size_mm is not None
        ]
        places = [(size, _voxel(middle, example.affine)) for size, middle in nodules]
        if not nodules:
            air = np.argwhere((hu > LUNG_HU[0]) & (hu < LUNG_HU[1]))
            if len(air):
                places.append((0.0, air[rng.integers(len(air))]))
        for size, middle in places:
            # nobody marks the middle
            low = np.round(middle + rng.uniform(-edge / 8, edge / 8, 3)).astype(int) - edge // 2
            low = np.clip(low, 0, np.maximum(np.array(hu.shape) - edge, 0))
            cube = np.full((edge,) * 3, -1000, np.int16)
            part = hu[tuple(slice(a, a + edge) for a in low)]
            cube[tuple(slice(n) for n in part.shape)] = part
            cubes.append(cube)
            sizes.append(size)
    return np.stack(cubes), np.array(sizes, float)


def _voxel(place_mm: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return (np.linalg.inv(affine.astype(float)) @ np.append(place_mm, 1.0))[:3]


def _sizes(quick: bool) -> Mapping[str, Any]:
    if quick:
        return {"phantoms": 48, "edge": 16, "batch": 8, "steps": 4}
    return {"phantoms": 1600, "edge": 32, "batch": 24, "steps": 500}


ROW = Row(
    "hffn",
    "hierarchical feature fusion: +8.3 %",
    "F1 of lung nodules under 8 mm in cubes of phantoms (3 mm)",
    "`concat`, which sees the coarsest level: the same encoder, head, batches and steps",
    (GAIN,),
    _sizes,
    measure,
)
