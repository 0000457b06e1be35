"""The bridge: a question about the image is answered, with the cross-modal attention bridge and without.

The request asks whether a finding is there ("cardiomegaly?"), the image is a pooled phantom, and the one
answer is yes or no: neither image nor question alone knows it. Half of the answers are yes, for every
question, so a model that does not listen is right half of the time. `bridge` against `concat`: the same
encoders, head, batches and steps, and in one of them the bridge between.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.claims.row import Job, Measured, Row, Target, gain
from evaluation.claims.training import channels_of, logits_of, small_model, teach
from evaluation.claims.world import common_codes, images_of, pooled_corpus, presence_of
from mla_med.corpus import read_examples, read_settings

GAIN = Target("accuracy of answers, relative", 12, "%")


def measure(job: Job) -> Measured:
    corpus = pooled_corpus(job)
    windows = read_settings(corpus).windows_hu
    known = read_examples(corpus, "train")[: job.sizes["phantoms"]]
    new = (*read_examples(corpus, "validation"), *read_examples(corpus, "test"))[: job.sizes["tested"]]
    codes = common_codes(known)[: job.sizes["questions"]]
    images, new_images = images_of(known), images_of(new)
    truth, new_truth = presence_of(known, codes), presence_of(new, codes)
    asked = _asked(new_truth, np.random.default_rng(job.seed), job.sizes["asked"])
    answers = new_truth[asked[:, 0], asked[:, 1]]
    arms: dict[str, dict[str, float]] = {}
    for name in ("concat", "bridge"):
        model = small_model(images.shape[1:], name, ("answer",), job.seed, modality_dropout=(0.0, 0.0))

        def answer(hu: np.ndarray, pairs: np.ndarray, model: Any = model) -> Tensor:
            words = [f"{codes[q].replace('_', ' ')}?" for q in pairs[:, 1]]
            fused = model.encode(channels_of(hu, pairs[:, 0], windows), words)
            return model.find(fused).presence_logits_BF[:, 0]

        def loss_of(rng: np.random.Generator, answer: Any = answer) -> Tensor:
            pairs = _asked(truth, rng, job.sizes["batch"])
            right = torch.from_numpy(truth[pairs[:, 0], pairs[:, 1]]).float()
            return F.binary_cross_entropy_with_logits(answer(images, pairs), right)

        step_s = teach(model, loss_of, job.sizes["steps"], 3e-3, job.seed)
        answered = partial(_of_rows, answer, new_images, asked)
        accuracy = 100 * float(((logits_of(answered, len(asked)) > 0) == answers).mean())
        arms[name] = {
            "accuracy": accuracy,
            "parameters": float(sum(p.numel() for p in model.parameters())),
            "seconds of a step": step_s,
        }
        job.say(f"{name}: {accuracy:.1f} % of answers are right")
    value = gain(arms["bridge"]["accuracy"], arms["concat"]["accuracy"])
    return Measured({GAIN.name: value}, arms, {"questions": list(codes), "asked": len(asked)})


def _of_rows(answer: Any, hu: np.ndarray, asked: np.ndarray, rows: np.ndarray) -> Tensor:
    return answer(hu, asked[rows])


def _asked(truth_NF: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 2): an image and a question about it; of each question as many yes as no."""
    pairs = []
    for n in range(count):
        question = int(rng.integers(truth_NF.shape[1]))
        fitting = np.flatnonzero(truth_NF[:, question] == bool(n % 2))
        pairs.append(
            (int(rng.choice(fitting)) if len(fitting) else int(rng.integers(len(truth_NF))), question)
        )
    return np.array(pairs)


def _sizes(quick: bool) -> Mapping[str, Any]:
    if quick:
        return {"phantoms": 32, "tested": 24, "questions": 2, "asked": 32, "batch": 8, "steps": 4}
    return {"phantoms": 1600, "tested": 400, "questions": 8, "asked": 2000, "batch": 24, "steps": 600}


ROW = Row(
    "bridge",
    "cross-modal attention bridge: VQA +12 %",
    "yes or no to a question in the request, about pooled phantoms (12 mm)",
    "`concat`: the same encoders, head, batches and steps without the bridge",
    (GAIN,),
    _sizes,
    measure,
)
