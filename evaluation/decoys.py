"""Phantoms -> can a 3-D network tell their lesions from their decoys? Neither always nor never, if the
bench is of use.

    python -m evaluation.decoys --patients 300

Every focal lesion and every decoy of a patient is drawn with what lies around it, scanned, and cut out as
a cube of 48 mm; a decoy whose middle lies in a lesion is left out. A 3-D ResNet (MONAI) is trained on three
quarters of the patients and scored on the rest, three seeds; beside it stands a logistic regression on the
mean and the spread of HU in the middle, which any bench must keep from winning. AUC with a 95 % interval,
bootstrapped by patient.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

SPACING_MM = 1.5
CUBE = 32
FOCAL = frozenset(
    (
        *("lung_nodule", "lung_mass", "consolidation", "ground_glass_opacity", "atelectasis"),
        *("fibrotic_sequela", "bronchiectasis", "lymphadenopathy", "fracture"),
    )
)
"""Lesions that fit the cube, or fill its middle."""


@dataclass(frozen=True, slots=True)
class Cube:
    patient: int
    kind: str
    is_lesion: bool
    hu: np.ndarray
    """float32 (32, 32, 32)."""


def cut_cubes(seed: int) -> list[Cube]:
    """The lesions and decoys of one patient, each with its surroundings, as scanned."""
    from mla_med.phantom.examine import examine
    from mla_med.phantom.sites import site_of

    examined = examine(seed, "chest_ct", site_of("a"))
    rng = np.random.default_rng([seed, 301])
    places: list[tuple[str, bool, Any]] = [
        (x.finding.code, True, x.box_mm) for x in examined.lesions if x.finding.code in FOCAL
    ]
    real = [box for _, _, box in places]
    places += [(x.kind, False, x.box_mm) for x in examined.decoys if not lies_in(x.box_mm, real)]
    return [Cube(seed, kind, real, _scan(examined, box, rng)) for kind, real, box in places]


def lies_in(box_mm: Any, others_mm: list[Any]) -> bool:
    """Whether the middle of a box lies in one of the others: a vessel that crosses a consolidation is in the
    middle of a lesion, whatever it is called."""
    middle = np.mean(box_mm, axis=0)
    return any(bool(np.all((middle > low) & (middle < high))) for low, high in map(np.asarray, others_mm))


def _scan(examined: Any, box_mm: Any, rng: np.random.Generator) -> np.ndarray:
    from dataclasses import replace

    from mla_med.phantom.chest import anatomy as chest
    from mla_med.phantom.scanner import ct
    from mla_med.phantom.shapes import Grid

    centre = np.mean(box_mm, axis=0) + rng.uniform(-4, 4, 3)  # nobody marks the middle
    x, y, z = (float(v) for v in centre - SPACING_MM * (CUBE - 1) / 2)
    grid = Grid((CUBE,) * 3, (SPACING_MM,) * 3, (x, y, z))
    hu = chest.draw_chest(examined.anatomy, examined.lesions, grid, examined.decoys)
    scan = replace(
        ct.random_scan(rng, examined.site.ct), tilt_deg=0.0, spacing_mm=grid.spacing_mm, matrix=CUBE
    )
    return ct.reconstruct(hu, grid, scan, rng).astype(np.float32)


def compare(cubes: list[Cube], seeds: tuple[int, ...], epochs: int) -> dict[str, list[tuple[Any, Any, Any]]]:
    """-> for each classifier and seed: scores, truth and patient of the test cubes."""
    patients = sorted({cube.patient for cube in cubes})
    found: dict[str, list[tuple[Any, Any, Any]]] = {"3-D ResNet": [], "HU of the middle": []}
    for seed in seeds:
        shuffled = np.random.default_rng(seed).permutation(patients)
        held_out = set(shuffled[: len(patients) // 4].tolist())
        train = [cube for cube in cubes if cube.patient not in held_out]
        test = [cube for cube in cubes if cube.patient in held_out]
        truth = np.array([cube.is_lesion for cube in test])
        owner = np.array([cube.patient for cube in test])
        found["3-D ResNet"].append((_resnet(train, test, seed, epochs), truth, owner))
        found["HU of the middle"].append((_simple(train, test), truth, owner))
    return found


def _resnet(train: list[Cube], test: list[Cube], seed: int, epochs: int) -> np.ndarray:
    import torch
    from monai.networks.nets import ResNet

    torch.manual_seed(seed)
    model = ResNet(
        "basic", [1, 1, 1, 1], [16, 32, 64, 128], spatial_dims=3, n_input_channels=1, num_classes=1,
        conv1_t_size=5, conv1_t_stride=2, no_max_pool=True, shortcut_type="B",
    )  # fmt: skip
    x, y = _tensor(train), torch.tensor([float(cube.is_lesion) for cube in train])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = epochs * -(-len(train) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    balance = (1 - y).sum() / y.sum()
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        model.train()
        order = rng.permutation(len(train))
        for start in range(0, len(order), 32):
            batch = torch.as_tensor(order[start : start + 32])
            axes = [axis for axis in (2, 3, 4) if rng.random() < 0.5]
            logits = model(torch.flip(x[batch], axes))[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y[batch], pos_weight=balance)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part)[:, 0] for part in _tensor(test).split(64)]).numpy()


def _tensor(cubes: list[Cube]) -> Any:
    import torch

    return torch.from_numpy(np.stack([np.clip((cube.hu + 500) / 600, -1.5, 2) for cube in cubes])[:, None])


def _simple(train: list[Cube], test: list[Cube]) -> np.ndarray:
    """Logistic regression on three numbers, by Newton's method."""

    def features(cubes: list[Cube]) -> np.ndarray:
        middle = [cube.hu[10:22, 10:22, 10:22] for cube in cubes]
        return np.array([[m.mean(), m.std(), m.max()] for m in middle])

    x = features(train)
    mean, spread = x.mean(0), x.std(0)

    def design(cubes: list[Cube]) -> np.ndarray:
        return np.hstack([np.ones((len(cubes), 1)), (features(cubes) - mean) / spread])

    a, y = design(train), np.array([cube.is_lesion for cube in train], float)
    w = np.zeros(a.shape[1])
    for _ in range(25):
        p = 1 / (1 + np.exp(-a @ w))
        hessian = a.T @ (a * (p * (1 - p))[:, None]) + 1e-3 * np.eye(len(w))
        w += np.linalg.solve(hessian, a.T @ (y - p) - 1e-3 * w)
    return design(test) @ w


def auc(score: np.ndarray, truth: np.ndarray) -> float:
    """The chance that a lesion scores above a decoy (Mann and Whitney), ties counted half."""
    from scipy.stats import rankdata

    ranks, positive = rankdata(score), int(truth.sum())
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * (len(truth) - positive)))


def auc_interval(runs: list[tuple[Any, Any, Any]], resamples: int = 500) -> tuple[float, float, float]:
    """Mean over the seeds with a 95 % percentile interval, resampled by patient."""
    rng = np.random.default_rng(20261124)
    means = []
    for _ in range(resamples):
        drawn = []
        for score, truth, owner in runs:
            chosen = rng.choice(np.unique(owner), len(np.unique(owner)))
            rows = np.concatenate([np.flatnonzero(owner == patient) for patient in chosen])
            if 0 < truth[rows].sum() < len(rows):
                drawn.append(auc(score[rows], truth[rows]))
        means.append(float(np.mean(drawn)))
    low, high = np.percentile(means, (2.5, 97.5))
    return float(np.mean([auc(s, t) for s, t, _ in runs])), float(low), float(high)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.decoys", description=__doc__)
    parser.add_argument("--patients", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    seeds = range(800_000_000, 800_000_000 + options.patients)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context, initializer=_one_thread) as pool:
        cubes = [cube for some in pool.map(cut_cubes, seeds, chunksize=4) for cube in some]
    kinds = Counter((cube.is_lesion, cube.kind) for cube in cubes)
    real = sum(count for (is_lesion, _), count in kinds.items() if is_lesion)
    print(f"{real} lesions and {len(cubes) - real} decoys of {options.patients} patients")
    for (is_lesion, kind), count in sorted(kinds.items(), key=lambda item: (not item[0][0], -item[1])):
        print(f"  {'lesion' if is_lesion else 'decoy'} {kind}: {count}")
    for name, runs in compare(cubes, (1, 2, 3), options.epochs).items():
        value, low, high = auc_interval(runs)
        each = ", ".join(f"{auc(score, truth):.3f}" for score, truth, _ in runs)
        print(f"{name}: AUC {value:.3f} (95 % CI {low:.3f} to {high:.3f}), seeds {each}")
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes")
    return 0


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"


if __name__ == "__main__":
    sys.exit(main())
