"""Retrieval: the report of an image among 1,000, by contrast and a second look, or by two towers alone.

Both arms read what the packaged model made of each finding in the image, a token for each: from voxels a
small network learns too little in the steps of a row to find anything. Asked about are images that the
packaged model did not learn from; the reports beside theirs are those of any.

Two towers: image and report are embedded apart (`Align`, InfoNCE) and compared. Ours: the same model learns
as many steps in all, the last third of them to judge pairs (`Fuse`, matching with hard negatives), and
looks again at the nearest reports with the block that sees both. A report in the same words is right too.
"""

# P pairs, F findings, G reports to choose from, K nearest of them, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.claims.row import Job, Measured, NotMeasured, Row, Target
from evaluation.claims.training import Loss, drawn, small_model, teach
from evaluation.claims.world import common_codes, fine_corpus, seen_by_packaged
from mla_med.corpus import Example, read_examples
from mla_med.model.attention import MaskedTransformerBlock
from mla_med.model.mla import MLAModel
from mla_med.model.seen import Fused

MORE = Target("R@1, image to report, more", 7.6, "points")
GRID = (32, 32, 32)
"""Of images, which nobody looks at here."""
AGAIN = 10
"""So many of the nearest reports are looked at once more."""


class Pairs:
    """Images as the packaged model sees them, and their reports."""

    def __init__(self, seen_PFD: np.ndarray, examples: Sequence[Example]):
        self.seen_PFD = torch.from_numpy(seen_PFD)
        self.reports = [example.reports["en"] for example in examples]
        _, self.words_P = np.unique(self.reports, return_inverse=True)

    def __len__(self) -> int:
        return len(self.reports)


class Towers(nn.Module):
    """Tokens of findings and a report, embedded apart, and a block that judges them together."""

    def __init__(self, model: MLAModel, seen: Sequence[int]):
        from dapt.objectives.align import Align
        from dapt.objectives.fuse import Fuse

        super().__init__()
        findings, wide = seen
        width = model.config.width
        self.model = model
        self.into = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, width))
        self.name_FD = nn.Parameter(0.02 * torch.randn(findings, width))
        self.block = MaskedTransformerBlock(width, model.config.heads)
        self.align = Align(model, findings=False)
        self.fuse = Fuse(model.config, match=1.0)

    def fused(self, seen_PFD: Tensor) -> Fused:
        tokens_PFD = self.into(seen_PFD) + self.name_FD
        return _only_tokens(self.block(tokens_PFD, torch.ones(tokens_PFD.shape[:2])))

    def images_PD(self, fused: Fused) -> Tensor:
        return self.model.image_embedding_BD(fused)

    def reports_PD(self, reports: Sequence[str]) -> Tensor:
        from dapt.objectives.align import embed_reports

        return embed_reports(self.model, list(reports))

    def loss(self, known: Pairs, rows: np.ndarray, judge: bool) -> Tensor:
        batch = _batch_of(known, rows)
        fused = self.fused(known.seen_PFD[rows])
        who_P2 = torch.stack([batch.patient_B, batch.text_T], 1)
        loss = self.align.contrast(self.images_PD(fused), self.reports_PD(batch.reports), who_P2)
        assert loss is not None
        match = self.fuse.match_loss(self.model, batch, fused) if judge else None
        return loss if match is None else loss + match


def _only_tokens(tokens_PFD: Tensor) -> Fused:
    """Tokens of an image that lie nowhere."""
    shape = tokens_PFD.shape[:2]
    here, nowhere = torch.ones(shape), torch.zeros(*shape, 3)
    number = torch.ones(shape, dtype=torch.long)
    centre = torch.zeros(shape[0], 3)
    weights_PM = torch.tensor([1.0, 0.0]).expand(shape[0], 2)
    there = here.bool()
    return Fused(
        tokens_PFD, there, here, nowhere, nowhere, ~there, number, number, weights_PM, centre, centre
    )


def measure(job: Job) -> Measured:
    from dapt.tokenizer import train_tokenizer

    sizes = job.sizes
    corpus = fine_corpus(job)
    asked = [e for split in ("validation", "test") for e in read_examples(corpus, split)][: sizes["asked"]]
    examples = [*asked, *read_examples(corpus, "train")]
    size = sizes["gallery"]
    if len(examples) <= size:
        raise NotMeasured(
            f"The corpus has {len(examples)} phantoms; {size + 1} are needed, better twice as many."
        )
    seen = seen_by_packaged(job, examples)
    gallery, known = Pairs(seen[:size], examples[:size]), Pairs(seen[size:], examples[size:])
    tokenizer = train_tokenizer(known.reports, sizes["vocabulary"])

    def new_towers() -> Towers:
        vocabulary = max(sizes["vocabulary"], len(tokenizer))
        sizes_of_text = {"vocab_size": vocabulary, "text_positions": sizes["words"], "width": sizes["width"]}
        model = small_model(GRID, "concat", common_codes(examples[size:]), job.seed, **sizes_of_text)
        model.tokenizer = tokenizer
        return Towers(model, seen.shape[1:])

    def lesson(towers: Towers, judge: bool) -> Loss:
        return lambda rng: towers.loss(known, drawn(rng, len(known), sizes["batch"]), judge)

    arms: dict[str, dict[str, float]] = {}
    for name in ("two towers", "ours"):
        towers, again = new_towers(), name == "ours"
        first = sizes["steps"] * 2 // 3 if again else sizes["steps"]
        step_s = teach(towers, lesson(towers, False), first, 2e-3, job.seed)
        if again:
            rest = sizes["steps"] - first
            step_s = max(step_s, teach(towers, lesson(towers, True), rest, 1e-3, job.seed + 1000))
        arms[name] = {**_recalls(towers, again, gallery, len(asked)), "seconds of a step": step_s}
        job.say(f"{name}: R@1 {arms[name]['R@1']:.1f} % of {len(asked)} images among {size} reports")
    chance = 100 * float(_same(gallery)[: len(asked)].mean())
    return Measured(
        {MORE.name: arms["ours"]["R@1"] - arms["two towers"]["R@1"]},
        {**arms, "chance": {"R@1": chance}},
        {"images asked about": len(asked), "reports": size, "learnt from": len(known)},
    )


def _batch_of(pairs: Pairs, rows: np.ndarray) -> Any:
    from dapt.batches import Batch

    order_P = torch.arange(len(rows))
    return Batch(
        step=0,
        size=len(rows),
        patient_B=torch.from_numpy(rows),
        image_rows_I=order_P,
        image_ICIJK=None,
        present_IC=None,
        affine_I44=None,
        contexts=("",) * len(rows),
        targets=None,
        inside_IIJK=None,
        hidden_IIJK=None,
        text_rows_T=order_P,
        reports=tuple(pairs.reports[n] for n in rows),
        text_T=torch.from_numpy(pairs.words_P[rows]),
        ids_TL=None,
        labels_TL=None,
    )


def _same(gallery: Pairs) -> np.ndarray:
    return gallery.words_P[:, None] == gallery.words_P[None]


@torch.no_grad()
def _recalls(towers: Towers, again: bool, gallery: Pairs, asked: int) -> dict[str, float]:
    """Of the images of the first `asked` pairs, among the reports of all."""
    windows = range(0, len(gallery), 50)
    reports_GD = torch.cat([towers.reports_PD(gallery.reports[n : n + 50]) for n in windows])
    fused = towers.fused(gallery.seen_PFD[:asked])
    alike_PG = towers.images_PD(fused) @ reports_GD.T
    best_PK = alike_PG.topk(AGAIN, dim=1).indices
    if again:
        looked = [_again(towers, fused, gallery, n, best_PK[n], alike_PG[n]) for n in range(asked)]
        best_PK = torch.stack(looked)
    hits_PK = np.take_along_axis(_same(gallery)[:asked], best_PK.numpy(), 1)
    return {f"R@{k}": 100 * float(hits_PK[:, :k].any(1).mean()) for k in (1, 5, 10)}


def _again(
    towers: Towers, fused: Fused, gallery: Pairs, image: int, near_K: Tensor, alike_G: Tensor
) -> Tensor:
    """The nearest reports of one image, in the order of the block that sees both."""
    from dapt.objectives.align import TEMPERATURE

    reports = [gallery.reports[int(n)] for n in near_K]
    at_K = torch.full((len(reports),), image)
    judged_K = towers.fuse.judged(towers.model, fused, at_K, reports, torch.arange(len(reports)))
    score_K = nn.functional.logsigmoid(judged_K) + alike_G[near_K] / TEMPERATURE
    return near_K[score_K.argsort(descending=True)]


def _sizes(quick: bool) -> Mapping[str, Any]:
    if quick:
        return {
            **{"gallery": 20, "asked": 12, "vocabulary": 300, "words": 48, "width": 32, "batch": 6},
            "steps": 6,
        }
    return {
        **{"gallery": 1000, "asked": 400, "vocabulary": 768, "words": 128, "width": 64, "batch": 32},
        "steps": 600,
    }


ROW = Row(
    "retrieval",
    "retrieval R@1 89.7 against 82.1",
    "the report of an image among 1,000, from what the packaged model made of each finding; chance beside it",
    "two towers of equal size with as many steps",
    (MORE,),
    _sizes,
    measure,
)
