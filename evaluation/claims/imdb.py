"""IMDB: a transformer that keeps a share of its tokens, beside the same transformer that keeps all.

Both read the first tokens of a review, through the same blocks (`MaskedTransformerBlock`, the one of the
model); ours scores the tokens after the first block (`DynamicWeightGenerator`) and goes on with the best of
them and one token of the rest. Same weights at the start, same batches, same number of steps.
"""

# B batch, N tokens, D width

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.claims.row import Job, Measured, NotMeasured, Row, Target
from evaluation.claims.training import Loss, drawn, logits_of, teach, time_in_turn
from mla_med.model.attention import (
    DynamicWeightGenerator,
    MaskedTransformerBlock,
    choose_kept,
    keep_gathered,
    keep_ratio_loss,
    masked_mean,
)

FASTER = Target("a training step is faster", 2.3, "x")
LOSES = Target("accuracy lost", 0.8, "points", at_least=False)
FILES = {"train": "imdb_4k/train.jsonl.gz", "test": "imdb_4k/test.jsonl.gz"}


class Reader(nn.Module):
    def __init__(self, vocabulary: int, length: int, width: int, depth: int, keep: float):
        super().__init__()
        self.keep = keep
        self.embed = nn.Embedding(vocabulary, width, padding_idx=0)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(MaskedTransformerBlock(width, 4) for _ in range(depth))
        self.scorer = DynamicWeightGenerator(width)
        self.answer = nn.Linear(width, 1)
        self.ratio_loss: Tensor = torch.zeros(())

    def forward(self, ids_BN: Tensor) -> Tensor:
        mask_BN = ids_BN > 0
        x_BND = self.embed(ids_BN) + self.place[: ids_BN.shape[1]]
        weights_BN = mask_BN.to(x_BND.dtype)
        x_BND = self.blocks[0](x_BND, weights_BN)
        if self.keep < 1:
            scores_BN = self.scorer(x_BND, mask_BN)
            keep_BN = choose_kept(scores_BN, mask_BN, self.keep, ids_BN.shape[1], noisy=self.training)
            self.ratio_loss = keep_ratio_loss(scores_BN, mask_BN, keep_BN)
            kept = keep_gathered(x_BND, scores_BN, mask_BN, keep_BN)
            x_BND, weights_BN = kept.tokens_BSD, kept.weights_BS
        for block in list(self.blocks)[1:]:
            x_BND = block(x_BND, weights_BN)
        return self.answer(masked_mean(x_BND, weights_BN)).squeeze(-1)


def measure(job: Job) -> Measured:
    from dapt.tokenizer import train_tokenizer

    sizes = job.sizes
    (texts, labels), (new_texts, new_labels) = (
        read_reviews(job.data, name, sizes["reviews"]) for name in FILES
    )
    tokenizer = train_tokenizer(texts, sizes["vocabulary"])
    ids, new_ids = (_to_ids(some, tokenizer, sizes["length"]) for some in (texts, new_texts))
    truth = torch.tensor(labels, dtype=torch.float32)
    arms: dict[str, dict[str, float]] = {}
    timed: list[tuple[Reader, Loss]] = []
    for name, keep in (("every token", 1.0), ("selection", sizes["keep"])):
        torch.manual_seed(job.seed)
        model = Reader(len(tokenizer), sizes["length"], sizes["width"], sizes["depth"], keep)

        def loss_of(rng: np.random.Generator, model: Reader = model) -> Tensor:
            rows = drawn(rng, len(ids), sizes["batch"])
            loss = F.binary_cross_entropy_with_logits(model(ids[rows]), truth[rows])
            return loss + 0.1 * model.ratio_loss

        teach(model, loss_of, sizes["steps"], 2e-3, job.seed)
        timed.append((model, loss_of))

        def predict(rows: np.ndarray, model: Reader = model) -> Tensor:
            return model(new_ids[rows])

        said = logits_of(predict, len(new_ids)) > 0
        accuracy = 100 * float((said == np.array(new_labels, bool)).mean())
        arms[name] = {"accuracy": accuracy}
        job.say(f"{name}: accuracy {accuracy:.1f} %")
    seconds, faster = time_in_turn(timed, sizes["rounds"], job.seed)
    for arm, step_s in zip(arms.values(), seconds, strict=True):
        arm["seconds of a step"] = step_s
    ours, control = arms["selection"], arms["every token"]
    return Measured(
        {
            FASTER.name: faster,
            LOSES.name: control["accuracy"] - ours["accuracy"],
        },
        arms,
        {"reviews learnt from": len(ids), "reviews measured": len(new_ids)},
    )


def read_reviews(data: Path, split: str, most: int) -> tuple[list[str], list[int]]:
    path = data / FILES[split]
    if not path.is_file():
        raise NotMeasured(
            f"No reviews of IMDB: {FILES[split]} is not there. Give the folder of data by --data."
        )
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = [rows[n] for n in np.random.default_rng(0).permutation(len(rows))[:most]]
    return [row["text"] for row in rows], [int(row["label"]) for row in rows]


def _to_ids(texts: list[str], tokenizer: Any, length: int) -> Tensor:
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    for n, text in enumerate(texts):
        own = tokenizer(text)["input_ids"][:length]
        ids[n, : len(own)] = torch.tensor(own)
    return ids


def _sizes(quick: bool) -> Mapping[str, Any]:
    if quick:
        return {
            **{"reviews": 64, "length": 64, "vocabulary": 512, "width": 16, "depth": 3},
            **{"keep": 0.3, "batch": 8, "steps": 4, "rounds": 2},
        }
    return {
        **{"reviews": 2000, "length": 256, "vocabulary": 4096, "width": 64, "depth": 6},
        **{"keep": 0.25, "batch": 16, "steps": 600, "rounds": 30},
    }


ROW = Row(
    "imdb",
    "IMDB: training 2.3 x faster than a standard transformer, accuracy -0.8",
    "real film reviews, one transformer with and without token selection after its first block",
    "the same transformer that keeps every token: same start, batches and steps",
    (FASTER, LOSES),
    _sizes,
    measure,
)
