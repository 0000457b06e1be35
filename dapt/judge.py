"""Adapted models -> their scores on the site's validation studies, and those of chain and control compared.

Sums by study, so that a statistic over studies needs no model again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from dapt.batches import Wanted, once
from dapt.report import nll_with_image
from dapt.site import Measured
from dapt.stages import Shelf
from mla_med.corpus import Example
from mla_med.model.checkpoint import read_model
from mla_med.model.config import ModalConfig
from mla_med.model.mla import MLAModel


@dataclass(frozen=True, slots=True)
class Sums:
    """What each study adds, and the value that the sums have."""

    each_RT: np.ndarray
    value_of: Callable[[np.ndarray], np.ndarray]
    higher_is_better: bool = True
    signature: str = ""


class Scorer(Protocol):
    """What scores texts, which is not known here: `evaluation` stands beside `dapt`."""

    def texts(self, references: Sequence[str], drafts: Sequence[str], language: str) -> dict[str, Sums]: ...


class Referee(Scorer, Protocol):
    """And knows statistics."""

    def compare(
        self, chain: Sequence[Sums], control: Sequence[Sums], patients: Sequence[str]
    ) -> dict[str, Any]:
        """Of one score, a `Sums` for each seed over the same patients."""
        ...


def compare(
    chain: Sequence[Path],
    control: Sequence[Path],
    shelf: Shelf,
    measured: Measured,
    referee: Referee | None,
) -> list[dict[str, Any]]:
    """Models' folders, one a seed -> of every score of the site's validation studies, chain and control with
    intervals over patients; values alone where nobody knows statistics."""
    (chain_sums, patients), (control_sums, _) = (
        _sums_of([judge(read_model(folder), shelf, measured, referee) for folder in folders])
        for folders in (chain, control)
    )
    rows = []
    for name, ours in chain_sums.items():
        theirs = control_sums[name]
        row: dict[str, Any] = {
            "score": name,
            "higher_is_better": ours[0].higher_is_better,
            "signature": ours[0].signature,
            "adapted_seeds": [_value(one) for one in ours],
            "control_seeds": [_value(one) for one in theirs],
            "patients": len(set(patients)),
        }
        row["adapted"], row["control"] = (float(np.mean(row[k])) for k in ("adapted_seeds", "control_seeds"))
        if referee is not None:
            row |= referee.compare(ours, theirs, patients)
        rows.append(row)
    return rows


def _sums_of(judged: list[tuple[dict[str, Sums], list[str]]]) -> tuple[dict[str, list[Sums]], list[str]]:
    by_name: dict[str, list[Sums]] = {}
    for sums, _ in judged:
        for name, one in sums.items():
            by_name.setdefault(name, []).append(one)
    return by_name, judged[0][1]


def _value(sums: Sums) -> float:
    return float(sums.value_of(sums.each_RT.sum(0, keepdims=True))[0])


@torch.no_grad()
def judge(
    model: MLAModel, shelf: Shelf, measured: Measured, scorer: Scorer | None
) -> tuple[dict[str, Sums], list[str]]:
    """-> the scores of the validation studies that have an image and a report, and whose each one is."""
    model.eval()
    held_out = told_of(shelf, measured)
    likelihood, stated = [], []
    references: list[str] = []
    drafts: list[str] = []
    language = min(held_out[0].reports)
    stream = once(held_out, model.config, model.tokenizer, shelf.settings, Wanted(), measured.batch)
    for some in (batch.to(model.device) for batch in stream):
        nll_I, tokens_I = nll_with_image(model, some)
        likelihood.append(torch.stack([nll_I, tokens_I], 1).double().cpu().numpy())
        assert some.image_ICIJK is not None
        fused = model.encode(some.image_ICIJK, list(some.contexts), some.present_IC, some.affine_I44)
        outputs = model.find(fused)
        if some.targets is not None:
            truth_IF = some.targets.presence_BF
            known_IF = ~truth_IF.isnan()
            found_IF = (outputs.presence_logits_BF > 0) & known_IF
            there_IF = (truth_IF == 1) & known_IF
            counts = torch.cat([found_IF & there_IF, found_IF, there_IF], 1)
            stated.append(counts.double().cpu().numpy())
        references += some.reports
        if measured.drafts and scorer is not None:
            ids = model.generate(
                fused=fused,
                findings=outputs,
                max_new_tokens=min(measured.tokens, _positions(model.config) - 1),
                do_sample=False,
            )
            drafts += model.tokenizer.batch_decode(ids, skip_special_tokens=True)
    sums = {"perplexity of the report": Sums(np.concatenate(likelihood), _perplexity, False)}
    if len(stated) == len(likelihood):
        made = "heads at 0.5, no threshold fitted"
        sums["findings macro F1"] = Sums(np.concatenate(stated), _macro_f1, True, made)
    if drafts and scorer is not None:
        sums |= scorer.texts(references, drafts, language)
    return sums, [e.patient or e.id for e in held_out]


def told_of(shelf: Shelf, measured: Measured) -> list[Example]:
    """The validation studies that can be judged: with an image and a report."""
    told = [e for e in shelf.held_out[: measured.examples] if e.image is not None and any(e.reports.values())]
    return told[: measured.drafts or None]


def _positions(config: ModalConfig) -> int:
    return int(config.decoder.max_position_embeddings)  # type: ignore[union-attr]


def _perplexity(sums_B2: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(sums_B2[:, 0] / np.maximum(sums_B2[:, 1], 1), 700))


def _macro_f1(sums_BT: np.ndarray) -> np.ndarray:
    """Over the findings that anybody of the resample has."""
    hit_BF, found_BF, there_BF = np.split(sums_BT, 3, axis=1)
    f1_BF = 2 * hit_BF / np.maximum(found_BF + there_BF, 1) * (there_BF > 0)
    findings_B = (there_BF > 0).sum(axis=1)
    return np.where(findings_B > 0, f1_BF.sum(axis=1) / np.maximum(findings_B, 1), np.nan)


# Every receipt in one place
