"""Retrieval: the report of an image among 1,000, by contrast and a second look, or by two towers alone.

Two towers: image and report are embedded apart (`Align`, InfoNCE) and compared. Ours: the same model learns
as many steps in all, the last third of them to judge pairs (`Fuse`, matching with hard negatives), and
looks again at the nearest reports with the block that sees both. A report in the same words is right too.
"""

# P pairs, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.claims.row import Job, Measured, Row, Target
from evaluation.claims.training import small_model, teach
from evaluation.claims.world import common_codes, pooled_corpus
from mla_med.corpus import Example, read_examples, read_settings

MORE = Target("R@1, image to report, more", 7.6, "points")


def measure(job: Job) -> Measured:
    from dapt.batches import Wanted, make_batch
    from dapt.objectives.align import Align
    from dapt.objectives.fuse import Fuse
    from dapt.tokenizer import train_tokenizer

    corpus, sizes = pooled_corpus(job), job.sizes
    settings = read_settings(corpus)
    examples = [_english(e) for e in read_examples(corpus, "all")]
    gallery, known = examples[: sizes["gallery"]], examples[sizes["gallery"] :]
    tokenizer = train_tokenizer([e.reports["en"] for e in known], sizes["vocabulary"])

    def new_model() -> Any:
        codes = common_codes(known)
        model = small_model(
            settings.shape,
            "concat",
            codes,
            job.seed,
            vocab_size=max(sizes["vocabulary"], len(tokenizer)),
            text_positions=sizes["words"],
        )
        model.tokenizer = tokenizer
        return model

    def batch_of(rng: np.random.Generator, model: Any, findings: bool) -> Any:
        rows = rng.choice(len(known), sizes["batch"], replace=False)
        rngs = [np.random.default_rng([job.seed, int(row)]) for row in rows]
        wanted = Wanted(findings=findings)
        return make_batch([known[n] for n in rows], model.config, tokenizer, settings, wanted, rngs)

    arms: dict[str, dict[str, float]] = {}
    for name in ("two towers", "ours"):
        model = new_model()
        align, fuse = Align(model.config, queue=sizes["queue"], findings=False), Fuse(model.config, match=1.0)
        first = sizes["steps"] if name == "two towers" else sizes["steps"] * 2 // 3
        both = torch.nn.ModuleList([model, align, fuse])

        def aligned(rng: np.random.Generator, model: Any = model, align: Align = align) -> Tensor:
            return align(model, batch_of(rng, model, False))["contrast"]

        def matched(
            rng: np.random.Generator, model: Any = model, align: Align = align, fuse: Fuse = fuse
        ) -> Tensor:
            batch = batch_of(rng, model, False)
            fused = model.encode(batch.image_ICIJK, None, batch.present_IC, batch.affine_I44)
            match = fuse.match_loss(model, batch, fused)
            contrast = align(model, batch)["contrast"]
            return contrast if match is None else contrast + match

        step_s = teach(both, aligned, first, 2e-3, job.seed)
        if name == "ours":
            step_s = max(step_s, teach(both, matched, sizes["steps"] - first, 1e-3, job.seed + 1000))
        arms[name] = {
            **_recalls(model, fuse if name == "ours" else None, gallery, settings, sizes["again"]),
            "seconds of a step": step_s,
        }
        job.say(f"{name}: R@1 {arms[name]['R@1']:.1f} % of {len(gallery)}")
    chance = 100 * float(_same(gallery).mean(1).mean())
    return Measured(
        {MORE.name: arms["ours"]["R@1"] - arms["two towers"]["R@1"]},
        {**arms, "chance": {"R@1": chance}},
        {"gallery": len(gallery), "learnt from": len(known)},
    )


def _english(example: Example) -> Example:
    return replace(example, reports={"en": example.reports["en"]}, contexts={"en": ""})


def _same(gallery: Sequence[Example]) -> np.ndarray:
    texts = np.array([e.reports["en"] for e in gallery])
    return texts[:, None] == texts[None]


@torch.no_grad()
def _recalls(
    model: Any, fuse: Any, gallery: Sequence[Example], settings: Any, again: int
) -> dict[str, float]:
    from dapt.batches import Wanted, once
    from dapt.objectives.align import embed_reports

    images, texts, kept = [], [], []
    for batch in once(gallery, model.config, model.tokenizer, settings, Wanted(findings=False), 20):
        fused = model.encode(batch.image_ICIJK, None, batch.present_IC, batch.affine_I44)
        images.append(model.image_embedding_BD(fused))
        texts.append(embed_reports(model, list(batch.reports)))
        kept.append(fused)
    alike_PP = torch.cat(images) @ torch.cat(texts).T
    best_PK = alike_PP.topk(min(again, len(gallery)), dim=1).indices
    if fuse is not None:
        best_PK = _looked_again(model, fuse, kept, gallery, best_PK, alike_PP)
    hits_PK = np.take_along_axis(_same(gallery), best_PK.numpy(), 1)
    return {f"R@{k}": 100 * float(hits_PK[:, :k].any(1).mean()) for k in (1, 5, 10)}


def _looked_again(
    model: Any, fuse: Any, kept: Sequence[Any], gallery: Sequence[Example], best_PK: Tensor, alike_PP: Tensor
) -> Tensor:
    """The nearest reports of each image, in the order of the block that sees both."""
    rows, first = [], 0
    for fused in kept:
        for image in range(len(fused.tokens_BSD)):
            near_K = best_PK[first + image]
            reports = [gallery[int(n)].reports["en"] for n in near_K]
            at = torch.full((len(reports),), image)
            judged_K = fuse.judged(model, fused, at, reports, torch.arange(len(reports)))
            score_K = torch.nn.functional.logsigmoid(judged_K) + alike_PP[first + image, near_K] / 0.07
            rows.append(near_K[score_K.argsort(descending=True)])
        first += len(fused.tokens_BSD)
    return torch.stack(rows)


def _sizes(quick: bool) -> Mapping[str, Any]:
    if quick:
        return {
            **{"gallery": 20, "vocabulary": 300, "words": 48, "batch": 6, "queue": 16},
            **{"steps": 6, "again": 4},
        }
    return {
        **{"gallery": 1000, "vocabulary": 768, "words": 128, "batch": 16, "queue": 256},
        **{"steps": 240, "again": 10},
    }


ROW = Row(
    "retrieval",
    "retrieval R@1 89.7 against 82.1",
    "the report of an image among 1,000 pooled phantoms (12 mm); chance stands beside",
    "two towers of equal size with as many steps",
    (MORE,),
    _sizes,
    measure,
)
