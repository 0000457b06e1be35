"""A step of the training loop beside the same step of the same model in a bare loop of PyTorch.

python -m dapt.loop_bench
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from statistics import median

import torch

from dapt.batches import Batch, make_bench_batch
from dapt.loop import Loop, LoopConfig, Taught
from dapt.objectives.fuse import Fuse
from dapt.schedule import groups_of
from mla_med.model.config import default, tiny
from mla_med.model.mla import MLAModel


def bench(steps: int = 20, size: str = "default") -> dict[str, float]:
    """Seconds of a step of s3 on the same batches: of this loop, and of the same model, losses, optimizer and
    clipping in a bare loop of PyTorch; each in turn, medians. The bare one has no mean of the weights."""
    torch.manual_seed(0)
    config = {"default": default, "tiny": tiny}[size](vocab_size=512)
    model = MLAModel(config)
    batches = [make_bench_batch(config, n) for n in range(4)]
    settings = LoopConfig(steps=steps + 2, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(deepcopy(model), Fuse(config, match=0.0), settings, Path(folder))
        loop.taught.train()
        bare = Taught(deepcopy(model), Fuse(config, match=0.0)).train()
        weights = loop.weights
        groups = groups_of(bare, "model.image_encoder.", settings.image_lr, settings.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=settings.lr)
        took: dict[str, list[float]] = {"loop": [], "bare": []}

        def bare_step(batch: Batch) -> None:
            losses = bare.objective(bare.model, batch)
            torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()
            torch.nn.utils.clip_grad_norm_(bare.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        for n in range(steps + 2):
            batch = batches[n % len(batches)]
            for name in ("loop", "bare") if n % 2 else ("bare", "loop"):
                began = time.perf_counter()
                if name == "loop":
                    loop.step(n, [batch])
                else:
                    bare_step(batch)
                if n >= 2:  # the first ones allocate
                    took[name].append(time.perf_counter() - began)
    ours, theirs = median(took["loop"]), median(took["bare"])
    ratios = sorted(a / b for a, b in zip(took["loop"], took["bare"], strict=True))
    return {
        "steps": float(steps),
        "loop_s": ours,
        "bare_s": theirs,
        "overhead": ours / theirs - 1,
        "overhead_of_pairs": median(ratios) - 1,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dapt.loop_bench", description=bench.__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", choices=("default", "tiny"), default="default")
    given = parser.parse_args()
    numbers = bench(given.steps, given.size)
    print(json.dumps({name: round(value, 4) for name, value in numbers.items()}))
    print(f"overhead {100 * numbers['overhead_of_pairs']:+.1f} % (median of pairs; wanted: at most 5 %)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
