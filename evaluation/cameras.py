"""Two registered cameras, visible and infrared -> is there a crack in this part? The example that is not
radiology: the fusion class of the draft model, `DynamicModalAttention`, on two modalities of another kind.

    python -m evaluation.cameras [--pairs DIR]

Synthetic parts with a known truth: a machined surface under two registered cameras at 0.1 mm a pixel, and in
half of them a crack 0.2 mm wide. The visible camera sees its dark line, between scratches that look the same;
the infrared one sees the heat that the crack holds back, a soft band as wide, between warm spots. Of a third
of the cracks one camera shows nothing at all (dirt on it, or no contact of its faces), so neither can find
them all alone. Three networks of the same size and the same steps are trained for each seed: both cameras,
visible alone, infrared alone. `--pairs` looks at real registered pairs: DIR/visible and DIR/infrared with
equal file names.

What is measured: whether fusing helps where each modality sees a part, whether the weights follow a camera
that is covered, and that an absent camera's weight is exactly 0. Not measured: a real production line.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from mla_med.errors import MlaMedError, StudyError
from mla_med.model.fusion import DynamicModalAttention

# B batch, M modalities (visible, infrared), I J pixel axes, D width

CAMERAS = ("visible", "infrared")
PIXEL_MM = 0.1
CRACK_MM = 0.2
SIZE = 48
"""Pixels along each side of a picture: 4.8 mm of the part."""
HIDDEN = 0.17
"""Chance that a crack is invisible to the one camera, and as much to the other."""
COVERED = 0.1
"""Chance that a camera is covered, so that its picture is empty though it is there."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Pictures of parts and whether each is cracked."""

    pictures_BMIJ: Tensor
    """0 to 1."""
    cracked_B: Tensor
    covered_BM: Tensor
    """Whether the camera was covered."""


def make_parts(count: int, seed: int) -> Parts:
    """Half of them cracked. The same seed gives the same parts."""
    rng = np.random.default_rng([seed, 20261124])
    pictures = np.zeros((count, 2, SIZE, SIZE), np.float32)
    cracked, covered = np.arange(count) % 2 == 1, np.zeros((count, 2), bool)
    for n in range(count):
        pictures[n, 0], pictures[n, 1] = _surface(rng)
        if rng.random() < 0.6:  # a scratch: a dark line to the eye, nothing to heat
            pictures[n, 0] -= rng.uniform(0.15, 0.35) * _line(rng, CRACK_MM, straight=True)
        if rng.random() < 0.6:  # a warm band, of another kind of contact, without a line
            pictures[n, 1] += rng.uniform(0.15, 0.35) * _heat(_line(rng, CRACK_MM, straight=True))
        if cracked[n]:
            draw, crack = rng.random(), _line(rng, CRACK_MM, straight=False)
            pictures[n, 0] -= rng.uniform(0.15, 0.35) * crack * (draw >= HIDDEN)
            pictures[n, 1] += rng.uniform(0.15, 0.35) * _heat(crack) * (draw < 1 - HIDDEN)
        if rng.random() < 2 * COVERED:
            covered[n, rng.integers(2)] = True
        pictures[n] += rng.normal(0, (0.04, 0.04), (SIZE, SIZE, 2)).transpose(2, 0, 1)
        pictures[n, covered[n]] = rng.normal(0.05, 0.02, (int(covered[n].sum()), SIZE, SIZE))
    return Parts(
        torch.from_numpy(np.clip(pictures, 0, 1).astype(np.float32)),
        torch.from_numpy(cracked),
        torch.from_numpy(covered),
    )


def _surface(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Brushed metal, and how warm it is: smooth."""
    brushed = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)), (0.6, 6))
    warm = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)), 8)
    return 0.55 + 0.05 * brushed / brushed.std(), 0.4 + 0.04 * warm / warm.std()


def _heat(line: np.ndarray) -> np.ndarray:
    """Heat spreads: a band of half a millimetre."""
    spread = ndimage.gaussian_filter(line, 0.25 / PIXEL_MM)
    return spread / spread.max()


def _line(rng: np.random.Generator, width_mm: float, straight: bool) -> np.ndarray:
    """A line across part of the picture, 0 to 1: a scratch is straight, a crack wanders."""
    steps, angle = int(rng.integers(60, 100)), rng.uniform(0, 2 * np.pi)
    turns = np.zeros(steps) if straight else np.cumsum(rng.normal(0, 0.3, steps))
    course = np.cumsum(np.stack([np.cos(angle + turns), np.sin(angle + turns)]), axis=1) / 2
    course += rng.uniform(0.3 * SIZE, 0.7 * SIZE, 2)[:, None] - course.mean(axis=1, keepdims=True)
    pixels, course = np.arange(SIZE, dtype=np.float32), course.astype(np.float32)
    along, across = ((pixels - c[:, None]) ** 2 for c in course)
    distance = np.sqrt((along[:, :, None] + across[:, None, :]).min(0))
    return np.clip(0.5 + width_mm / PIXEL_MM / 2 - distance, 0, 1)


class CameraNet(nn.Module):
    """A small convolutional encoder for each camera, their weights by DynamicModalAttention, an answer."""

    def __init__(self, width: int = 32, dropout: tuple[float, float] = (0.2, 0.2)):
        super().__init__()
        self.encoders = nn.ModuleList(_encoder(width) for _ in CAMERAS)
        self.attention = DynamicModalAttention((width,) * 2, width, dropout)
        self.answer = nn.Linear(width, 1)

    def forward(self, pictures_BMIJ: Tensor, present_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Logit of a crack (B,), and the weight of each camera (B, M)."""
        seen_BM11 = present_BM[:, :, None, None]
        # what an absent camera holds must not enter the statistics of the batch
        pictures_BMIJ = torch.where(seen_BM11, pictures_BMIJ, torch.zeros_like(pictures_BMIJ))
        pooled = [encoder(pictures_BMIJ[:, m : m + 1]) for m, encoder in enumerate(self.encoders)]
        fused_BD, weights_BMD = self.attention(pooled, present_BM)
        return self.answer(fused_BD).squeeze(-1), weights_BMD.mean(-1)


class _Pooled(nn.Module):
    """Mean and maximum over the picture: a crack is a small part of it."""

    def forward(self, x_BDIJ: Tensor) -> Tensor:
        return torch.cat([x_BDIJ.mean((2, 3)), x_BDIJ.amax((2, 3))], 1)


def _encoder(width: int) -> nn.Module:
    def layer(before: int, after: int, kernel: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, kernel, 2, kernel // 2), nn.BatchNorm2d(after), nn.ReLU()]

    return nn.Sequential(*layer(1, 8, 5), *layer(8, 16, 3), *layer(16, width // 2, 3), _Pooled())


def train(parts: Parts, present: tuple[bool, bool], steps: int, seed: int, batch: int = 64) -> CameraNet:
    """With both cameras each is hidden now and then, so that one can do without the other."""
    torch.manual_seed(seed)
    model = CameraNet(dropout=(0.2, 0.2) if all(present) else (0.0, 0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    present_BM = torch.tensor([present]).expand(batch, -1)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(parts.cracked_B), (batch,), generator=draw)
        pictures = parts.pictures_BMIJ[chosen]
        turns = int(torch.randint(4, (1,), generator=draw))
        pictures = torch.rot90(pictures, turns, (2, 3))
        logits_B, _ = model(pictures, present_BM)
        loss = nn.functional.binary_cross_entropy_with_logits(logits_B, parts.cracked_B[chosen].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def look(model: CameraNet, parts: Parts, present: tuple[bool, bool]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each answer is right (B,), and the weights (B, M)."""
    present_BM = torch.tensor([present]).expand(len(parts.cracked_B), -1)
    logits_B, weights_BM = model(parts.pictures_BMIJ, present_BM)
    return ((logits_B > 0) == parts.cracked_B).numpy(), weights_BM.numpy()


@dataclass(frozen=True, slots=True)
class Run:
    """What one seed gave: which answers are right, by what was trained and what was at hand."""

    right: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    """Mean weight of each camera, by situation."""


BOTH, VISIBLE, INFRARED = (True, True), (True, False), (False, True)


def run_seed(seed: int, train_parts: int, test_parts: int, steps: int) -> Run:
    known, new = make_parts(train_parts, 2 * seed), make_parts(test_parts, 2 * seed + 1)
    models = {
        name: train(known, present, steps, seed)
        for name, present in (("both", BOTH), ("visible alone", VISIBLE), ("infrared alone", INFRARED))
    }
    right, weights = {}, {}
    right["both"], all_weights = look(models["both"], new, BOTH)
    right["visible alone"], _ = look(models["visible alone"], new, VISIBLE)
    right["infrared alone"], _ = look(models["infrared alone"], new, INFRARED)
    right["both, infrared missing"], weights["infrared missing"] = look(models["both"], new, VISIBLE)
    right["both, visible missing"], weights["visible missing"] = look(models["both"], new, INFRARED)
    covered = new.covered_BM.numpy()
    weights["both clear"] = all_weights[~covered.any(1)]
    weights["visible covered"] = all_weights[covered[:, 0]]
    weights["infrared covered"] = all_weights[covered[:, 1]]
    return Run(right, {name: rows.mean(0) for name, rows in weights.items()})


def interval(right_SB: Sequence[np.ndarray], draws: int = 2000) -> tuple[float, float, float]:
    """Accuracy over seeds with a 95 % bootstrap interval over parts; each seed has its own."""
    all_right = np.concatenate(right_SB)
    # drawing right and wrong answers with replacement is drawing from a binomial distribution
    means = np.random.default_rng(0).binomial(all_right.size, all_right.mean(), draws) / all_right.size
    low, high = np.percentile(means, [2.5, 97.5])
    return float(all_right.mean()), float(low), float(high)


def gap(one_SB: Sequence[np.ndarray], other_SB: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Difference of accuracy, paired by part, with its 95 % bootstrap interval."""
    difference = np.concatenate(one_SB).astype(float) - np.concatenate(other_SB)
    rng = np.random.default_rng(0)
    means = [difference[rng.integers(difference.size, size=difference.size)].mean() for _ in range(1000)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


# Real pairs


def read_pairs(folder: Path, most: int | None = None) -> Tensor:
    """DIR/visible and DIR/infrared, equal names -> pictures (B, M, I, J) in 0 to 1, each pair's middle."""
    from PIL import Image

    names = sorted(p.name for p in (folder / "visible").glob("*") if (folder / "infrared" / p.name).is_file())
    if not names:
        raise StudyError(
            f"{folder} holds no pairs. Give a folder with visible/ and infrared/, equal file names in both.",
            code="NO_PAIRS",
        )
    pairs = []
    for name in names[:most]:
        cameras = []
        for camera in CAMERAS:
            picture = Image.open(folder / camera / name).convert("L")
            side = min(picture.size)
            left, top = (picture.size[0] - side) // 2, (picture.size[1] - side) // 2
            cut = picture.crop((left, top, left + side, top + side)).resize((SIZE, SIZE))
            cameras.append(np.asarray(cut, np.float32) / 255)
        pairs.append(np.stack(cameras))
    return torch.from_numpy(np.stack(pairs))


@torch.no_grad()
def look_at_pairs(model: CameraNet, pictures_BMIJ: Tensor) -> dict[str, np.ndarray]:
    """Weights of the cameras (B, M) with both at hand, and with each of them missing and full of NaN."""
    found = {}
    for name, present in (("both", BOTH), ("infrared missing", VISIBLE), ("visible missing", INFRARED)):
        pictures = pictures_BMIJ.clone()
        pictures[:, ~torch.tensor(present)] = float("nan")
        _, weights_BM = model(pictures, torch.tensor([present]).expand(len(pictures), -1))
        found[name] = weights_BM.numpy()
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.cameras", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=1500, help="parts to train on")
    parser.add_argument("--test", type=int, default=600, help="parts to test on, new for each seed")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--pairs", type=Path, help="a folder with visible/ and infrared/")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    began = time.process_time()
    try:
        pictures = None if given.pairs is None else read_pairs(given.pairs)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    runs = [run_seed(seed, given.train, given.test, given.steps) for seed in range(given.seeds)]
    print(f"{given.seeds} seeds, {given.test} new parts each, half of them with a crack of {CRACK_MM} mm")
    print(f"at {PIXEL_MM} mm a pixel; {given.steps} steps on {given.train} parts\n")
    print("| trained on, looking through | accuracy | 95 % CI | by seed |\n|---|---|---|---|")
    for name in runs[0].right:
        mean, low, high = interval([run.right[name] for run in runs])
        by_seed = ", ".join(f"{run.right[name].mean():.3f}" for run in runs)
        print(f"| {name} | {mean:.3f} | {low:.3f} to {high:.3f} | {by_seed} |")
    print("\n| both against | gain | 95 % CI |\n|---|---|---|")
    for name in ("visible alone", "infrared alone"):
        mean, low, high = gap([run.right["both"] for run in runs], [run.right[name] for run in runs])
        print(f"| {name} | {mean:+.3f} | {low:+.3f} to {high:+.3f} |")
    print("\n| situation | weight of visible | of infrared |\n|---|---|---|")
    for name in ("both clear", "visible covered", "infrared covered", "visible missing", "infrared missing"):
        visible, infrared = np.mean([run.weights[name] for run in runs], 0)
        print(f"| {name} | {visible:.3f} | {infrared:.3f} |")
    if pictures is not None:
        model = train(make_parts(given.train, 0), BOTH, given.steps, 0)
        print(f"\n{len(pictures)} real pairs of {given.pairs.name}:")
        for name, weights_BM in look_at_pairs(model, pictures).items():
            sums = np.abs(weights_BM.sum(1) - 1).max()
            low, high = weights_BM[:, 0].min(), weights_BM[:, 0].max()
            print(f"  {name}: weight of visible {low:.3f} to {high:.3f}, sums within {sums:.1e} of 1")
    print(f"\n{time.process_time() - began:.0f} s of one core, {3 * given.seeds} networks trained")
    return 0


if __name__ == "__main__":
    sys.exit(main())
