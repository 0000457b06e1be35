"""What a step of training costs: our loop beside a bare one, and token selection on beside off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evaluation.claims.row import Job, Measured, Row, Target

OVERHEAD = Target("overhead of the loop", 5, "%", at_least=False)


def measure(job: Job) -> Measured:
    from dapt.loop_bench import bench

    numbers = bench(job.sizes["steps"], job.sizes["size"])
    off, on = selection_steps(job.sizes["steps"], job.sizes["size"])
    overhead = 100 * numbers["overhead_of_pairs"]
    job.say(f"loop {overhead:+.1f} %; selection off {off:.3f} s, on {on:.3f} s")
    return Measured(
        {OVERHEAD.name: overhead},
        {
            "our loop": {"seconds of a step": numbers["loop_s"]},
            "a bare loop": {"seconds of a step": numbers["bare_s"]},
            "token selection on (keep 0.5)": {"seconds of a step": on},
            "token selection off (keep 1.0)": {"seconds of a step": off},
        },
        {"selection makes a step faster by": off / on},
    )


def selection_steps(steps: int, size: str) -> tuple[float, float]:
    """Seconds of a step of s3 without and with token selection, in turn; medians."""
    import time
    from copy import deepcopy

    import torch

    from dapt.batches import make_bench_batch
    from dapt.objectives.fuse import Fuse
    from mla_med.model.config import default, tiny
    from mla_med.model.mla import MLAModel

    torch.manual_seed(0)
    make = {"default": default, "tiny": tiny}[size]
    arms = {}
    for keep in (1.0, 0.5):
        config = make(vocab_size=512, fusion_type="full", keep_ratio=keep, token_budget=1 << 30)
        model = MLAModel(config).train()
        arms[keep] = model, Fuse(config, match=0.0), torch.optim.AdamW(model.parameters(), lr=1e-4)
    batches = [make_bench_batch(deepcopy(arms[0.5][0].config), n) for n in range(2)]
    took: dict[float, list[float]] = {keep: [] for keep in arms}
    for step in range(steps + 1):
        for keep in (1.0, 0.5) if step % 2 else (0.5, 1.0):
            model, objective, optimizer = arms[keep]
            began = time.perf_counter()
            losses = objective(model, batches[step % 2])
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step:
                took[keep].append(time.perf_counter() - began)
    return float(np.median(took[1.0])), float(np.median(took[0.5]))


def _sizes(quick: bool) -> Mapping[str, Any]:
    return {"steps": 2, "size": "tiny"} if quick else {"steps": 12, "size": "default"}


ROW = Row(
    "step_time",
    "ours: the loop costs no more than 5 % of a step",
    "seconds of a step of s3 with the default model on images of 48 voxels an edge, in turn",
    "the same model, losses, optimizer and clipping in a bare loop of PyTorch",
    (OVERHEAD,),
    _sizes,
    measure,
)
