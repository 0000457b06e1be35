"""Channels removed from the packaged chest CT model, with recovery, beside the model as it is: the encoder's
latency and the findings' F1. By `mla-med prune` and evaluation.pruning; a seed takes an hour and a half."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.claims.row import Job, Measured, NotMeasured, Row, Target
from evaluation.claims.world import fine_corpus
from evaluation.pruning import Size, compare, prune
from mla_med.errors import ConfigError
from mla_med.model import CHECKPOINTS

LOWER = Target("CPU latency of the encoder lower", 42, "%")
KEPT = Target("F1 kept", 97, "%")


def measure(job: Job) -> Measured:
    whole = CHECKPOINTS["chest_ct"]
    corpus = fine_corpus(job)
    try:
        folder = prune(whole, corpus, job.folder / "pruned", job.seed, job.quick)
    except ConfigError as error:
        raise NotMeasured(str(error)) from None
    (row,), facts = compare(whole, [folder], Size(job.sizes["phantoms"], job.sizes["rounds"]))
    lower, kept = 100 * (1 - row.encoder.median), 100 * row.f1 / max(facts["f1"], 1e-9)
    job.say(f"latency {lower:.0f} % lower, {kept:.0f} % of F1 kept")
    return Measured(
        {LOWER.name: lower, KEPT.name: kept},
        {
            "whole": {"macro F1": 100 * facts["f1"], "BLEU-4": facts["bleu4"], "encoder, x": 1.0},
            "channels removed": {
                "macro F1": 100 * row.f1,
                "BLEU-4": row.bleu4,
                "encoder, x": row.encoder.median,
                "draft, model's part, x": row.draft.median,
            },
            "as many channels at zero": {"encoder, x": facts["masked_encoder"].median},
        },
        {
            "parameters": row.parameters,
            "of": facts["parameters"],
            "phantoms": facts["patients"],
            "checkpoint": facts["sha256"][:12],
        },
    )


def _sizes(quick: bool) -> Mapping[str, Any]:
    return {"phantoms": 2, "rounds": 1} if quick else {"phantoms": 100, "rounds": 15}


ROW = Row(
    "pruning",
    "dynamic channel pruning: latency -42 %, 91 % of accuracy kept",
    "CPU latency of the packaged model's encoder with channels removed, and the F1 of phantoms that is left",
    "the packaged model as it is, in turn; and with as many channels at zero",
    (LOWER, KEPT),
    _sizes,
    measure,
)
