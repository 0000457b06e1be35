"""Token selection of the packaged model: how much faster the encoder is with half of the tokens kept, what F1
that costs, and how many of the kept tokens are of no use. By evaluation.selection."""

# N cells of the stride-8 grid, R patients

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from evaluation.claims.row import Job, Measured, NotMeasured, Row, Target
from evaluation.claims.world import fine_corpus
from evaluation.selection import counts_at, faster, input_of, keeping, probabilities, time_shares
from mla_med.corpus import Example, load_image, read_examples
from mla_med.imaging.transforms import Preprocessing, inside_body
from mla_med.model.checkpoint import Checkpoint, load_checkpoint

DENSE, KEEP = 1.0, 0.5
FASTER = Target("the encoder is faster", 2, "x")
LOST = Target("finding F1 lost", 0.5, "points", at_least=False)
USELESS = Target("kept tokens outside body and lesions", 15, "%", at_least=False)


def measure(job: Job) -> Measured:
    checkpoint = load_checkpoint(None)
    model = checkpoint.model
    settings = Preprocessing.from_dict(model.config.preprocessing)
    examples = read_examples(fine_corpus(job), "test")
    # every seed has phantoms of its own
    some = examples[job.seed :: 3][: job.sizes["phantoms"]]
    if not some:
        raise NotMeasured("The corpus of phantoms has no test split.")
    inputs = [input_of(e, settings) for e in some[:4]]
    timed = time_shares(model, inputs, (DENSE, KEEP), job.sizes["rounds"])
    found, tokens, of_tokens = probabilities(model, some, (DENSE, KEEP))
    codes = model.config.finding_keys
    cuts = np.array([checkpoint.calibration.thresholds[code] for code in codes])
    once = np.ones((1, len(some)))
    f1 = {
        keep: 100 * float(counts_at(found[keep], cuts, some, codes).macro_f1(once)[0])
        for keep in (DENSE, KEEP)
    }
    useless = {keep: useless_share(checkpoint, some, settings, keep) for keep in (DENSE, KEEP)}
    arms = {
        f"keep {keep}": {
            "macro F1": f1[keep],
            "encode, ms": 1000 * float(np.median(timed[keep].encode_s)),
            "fusion, ms": 1000 * float(np.median(timed[keep].fusion_s)),
            "tokens": float(tokens[keep]),
            "useless tokens, %": useless[keep],
        }
        for keep in (DENSE, KEEP)
    }
    encode = faster(timed[KEEP].encode_s, timed[DENSE].encode_s)
    job.say(f"encode {encode:.2f} x faster, F1 {f1[DENSE] - f1[KEEP]:+.2f} points lost")
    return Measured(
        {FASTER.name: encode, LOST.name: f1[DENSE] - f1[KEEP], USELESS.name: useless[KEEP]},
        arms,
        {
            "the fusion alone is faster": faster(timed[KEEP].fusion_s, timed[DENSE].fusion_s),
            "of tokens": of_tokens,
            "phantoms": len(some),
            "checkpoint": checkpoint.weights_sha256[:12],
        },
    )


@torch.no_grad()
def useless_share(
    checkpoint: Checkpoint, examples: Sequence[Example], settings: Preprocessing, keep: float
) -> float:
    """Of the kept tokens, how many lie in cells without body, in per cent. A lesion is in the body."""
    model = checkpoint.model
    outside = kept = 0
    for example in examples:
        hu = load_image(example, settings)
        with keeping(model, keep):
            image, text, present, affine = input_of(example, settings)
            selection = model.encode(image, text, present, affine).selection
        assert selection is not None
        body_N = torch.nn.functional.max_pool3d(
            torch.from_numpy(inside_body(hu)).float()[None, None], 2 * model.config.cell, ceil_mode=True
        ).flatten()
        keep_N = selection.keep_BN[0]
        assert len(body_N) == len(keep_N)
        outside += int((keep_N & (body_N == 0)).sum())
        kept += int(keep_N.sum())
    return 100 * outside / max(1, kept)


def _sizes(quick: bool) -> Mapping[str, Any]:
    return {"phantoms": 2, "rounds": 1} if quick else {"phantoms": 60, "rounds": 9}


ROW = Row(
    "selection",
    "dynamic weights cut compute by 30 %, the useless share from 45 % to 15 %",
    "the packaged chest CT model on phantoms that it never saw, half of the stride-8 tokens kept",
    "the same weights with every token kept, in turn on the same images",
    (FASTER, LOST, USELESS),
    _sizes,
    measure,
)
