"""Noise: what a finding's accuracy loses when an image is noisy, beside a 3-D ResNet of equal training.

Both learn presence of the commoner findings from the same batches of pooled phantoms, for the same number of
steps. Noise of standard deviation 0.1 is added to the windowed image, whose values go from 0 to 1; nobody saw
such noise while learning. Thresholds are those of the clean training images.
"""

# B batch, F findings, N examples

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.claims.row import Job, Measured, Row, Target
from evaluation.claims.training import (
    balanced_accuracy,
    channels_of,
    cuts_of,
    drawn,
    logits_of,
    small_model,
    teach,
)
from evaluation.claims.world import common_codes, images_of, pooled_corpus, presence_of
from mla_med.corpus import read_examples, read_settings

SIGMA = 0.1
SHARE = Target("share of the ResNet's drop", 0.41, "", at_least=False)
LEAST_DROP = 1.0
"""Points that the control has to lose: a share of nothing says nothing."""


class Ours(nn.Module):
    def __init__(self, shape: tuple[int, ...], codes: tuple[str, ...], seed: int):
        super().__init__()
        self.model = small_model(shape, "full", codes, seed, modality_dropout=(0.0, 0.0))

    def forward(self, image_BCIJK: Tensor) -> Tensor:
        return self.model.find(self.model.encode(image_BCIJK)).presence_logits_BF


def resnet(findings: int, seed: int) -> nn.Module:
    """As large as ours, or a little larger."""
    from monai.networks.nets import ResNet

    torch.manual_seed(seed)
    return ResNet(
        "basic",
        [1, 1, 1, 1],
        [8, 16, 24, 32],
        spatial_dims=3,
        n_input_channels=3,
        num_classes=findings,
        conv1_t_size=3,
        conv1_t_stride=1,
        shortcut_type="B",
    )


def measure(job: Job) -> Measured:
    corpus = pooled_corpus(job)
    windows = read_settings(corpus).windows_hu
    known = read_examples(corpus, "train")[: job.sizes["phantoms"]]
    new = (*read_examples(corpus, "validation"), *read_examples(corpus, "test"))[: job.sizes["tested"]]
    codes = common_codes(known)
    images, new_images = images_of(known), images_of(new)
    truth, new_truth = presence_of(known, codes), presence_of(new, codes)
    targets = torch.from_numpy(truth).float()
    arms: dict[str, dict[str, float]] = {}
    for name in ("3-D ResNet", "ours"):
        net = resnet(len(codes), job.seed) if name != "ours" else Ours(images.shape[1:], codes, job.seed)

        def loss_of(rng: np.random.Generator, net: nn.Module = net) -> Tensor:
            rows = drawn(rng, len(images), job.sizes["batch"])
            return F.binary_cross_entropy_with_logits(net(channels_of(images, rows, windows)), targets[rows])

        def predict(hu: np.ndarray, sigma: float, net: nn.Module = net) -> np.ndarray:
            def of_rows(rows: np.ndarray) -> Tensor:
                x = channels_of(hu, rows, windows)
                noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(int(rows[0])))
                return net(x + sigma * noise)

            return logits_of(of_rows, len(hu))

        step_s = teach(net, loss_of, job.sizes["steps"], 3e-3, job.seed)
        cuts = cuts_of(predict(images, 0.0), truth)
        clean, noisy = (
            balanced_accuracy(predict(new_images, sigma) > cuts, new_truth) for sigma in (0.0, SIGMA)
        )
        arms[name] = {
            "balanced accuracy, clean": clean,
            "balanced accuracy, noisy": noisy,
            "drop": clean - noisy,
            "parameters": float(sum(p.numel() for p in net.parameters() if p.requires_grad)),
            "seconds of a step": step_s,
        }
        job.say(f"{name}: {clean:.1f} % clean, {noisy:.1f} % with noise")
    control = arms["3-D ResNet"]["drop"]
    share = max(0.0, arms["ours"]["drop"]) / control if control >= LEAST_DROP else float("nan")
    return Measured({SHARE.name: share}, arms, {"findings": list(codes), "tested": len(new)})


def _sizes(quick: bool) -> Mapping[str, Any]:
    if quick:
        return {"phantoms": 32, "tested": 24, "batch": 8, "steps": 4}
    return {"phantoms": 1600, "tested": 400, "batch": 16, "steps": 500}


ROW = Row(
    "noise",
    "noise of sigma 0.1: accuracy -3.2 against -7.8 of a ResNet",
    "balanced accuracy of findings in pooled phantoms (12 mm), clean and with noise of 0.1 in the window",
    "a 3-D ResNet (MONAI) with the same images, batches, optimizer and steps",
    (SHARE,),
    _sizes,
    measure,
)
