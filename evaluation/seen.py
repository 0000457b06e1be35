"""Examples of a corpus -> what a checkpoint sees and says of each, beside the truth.

Encoded in batches, then looked at one patient at a time by the same code that drafts (mla_med/looking.py), so
that what is measured is what is stated. A corpus does not say whether a CT was taken with contrast medium:
what is only seen with it is asked of every chest, where a draft would say that it cannot say.
"""

# B batch

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mla_med.corpus import LANGUAGES, STYLE, Example, load_channels
from mla_med.imaging.transforms import Preprocessing
from mla_med.looking import Prepared, Seen, find, image_feature, is_unseen
from mla_med.model.checkpoint import Checkpoint
from mla_med.model.evidence import evidence_box, slices_in_box
from mla_med.model.findings import FindingOutputs
from mla_med.model.fusion import Fused
from mla_med.model.generate import report_slots, write_texts
from mla_med.model.seen import of_patients
from mla_med.phantom.patient import context_of, make_patient
from mla_med.report.interpret import interpret
from mla_med.report.schema import CONTRAST, schema_of
from mla_med.report.style import load_style
from mla_med.types import Box, ClinicalContext, Finding, Presence

BATCH = 8
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class SeenExample:
    example: Example
    seen: Seen


@dataclass(frozen=True, slots=True)
class Case:
    """One patient: what is true, and what was said."""

    id: str
    planted: tuple[Finding, ...]
    """Of one code, the largest first."""
    stated: tuple[Finding, ...]
    """What is stated as present; of one code, the foremost first."""
    unsaid: frozenset[str]
    """Codes of which nothing can be said, whether the draft says so or, of what no report has to speak of, is
    silent."""
    probability: dict[str, float]
    """By code, of the model before calibration."""
    cites: dict[str, bool]
    """By code that is planted and stated: whether the first cited slice crosses a lesion of it. False where
    nothing is cited."""
    by_chance: dict[str, float]
    """By the same codes: the share of all slices that do."""
    reference: str
    written: str
    """Empty where nothing was written."""


def see_batches(
    checkpoint: Checkpoint, examples: Sequence[Example], language: str = LANGUAGES[0], batch: int = BATCH
) -> Iterator[tuple[tuple[SeenExample, ...], Fused, FindingOutputs]]:
    """The patients of each batch one by one, and the batch as it was encoded, for the decoder."""
    model, examination = checkpoint.model, checkpoint.scope.examination
    settings = Preprocessing.from_dict(model.config.preprocessing)
    batch = settings.at_once(batch)
    for start in range(0, len(examples), batch):
        some = examples[start : start + batch]
        loaded = [load_channels(example, settings) for example in some]
        texts = [example.contexts[language] for example in some]
        image_BCIJK, present_BC, affine_B44 = (torch.stack(parts) for parts in zip(*loaded, strict=True))
        with torch.no_grad():
            fused = model.encode(image_BCIJK, texts, present_BC, affine_B44)
            outputs = model.find(fused)
        rows = tuple(
            SeenExample(
                example,
                Seen(
                    of_patients(fused, [b]),
                    of_patients(outputs, [b]),
                    Prepared(image_BCIJK[b], present_BC[b], affine_B44[b]),
                    texts[b],
                    examination,
                ),
            )
            for b, example in enumerate(some)
        )
        yield rows, fused, outputs


def look(
    checkpoint: Checkpoint,
    examples: Sequence[Example],
    language: str = LANGUAGES[0],
    batch: int = BATCH,
    write: bool = True,
    progress: Progress = lambda done: None,
) -> tuple[list[Case], np.ndarray]:
    """A case for each example, and the pooled features of their images (N, D)."""
    cases: list[Case] = []
    features: list[np.ndarray] = []
    for rows, fused, outputs in see_batches(checkpoint, examples, language, batch):
        found = [_found(checkpoint, row) for row in rows]
        texts = [""] * len(rows)
        if write:
            texts = _written(checkpoint, rows, found, fused, outputs, language)
        for row, findings, text in zip(rows, found, texts, strict=True):
            cases.append(_case(checkpoint, row, findings, text, language))
            features.append(image_feature(checkpoint.model, row.seen))
        progress(len(cases))
    return cases, np.array(features)


def request_of(example: Example, examination: str, language: str) -> ClinicalContext:
    """The request as it was made: a phantom follows from its seed."""
    return context_of(make_patient(int(example.id.removeprefix("phantom-"))), examination, language)


def taken_of(example: Example, settings: Preprocessing) -> frozenset[str] | None:
    """What there is of what findings are seen on; None where a corpus does not say."""
    if not settings.sequences:
        return None
    taken = {name for name, there in zip(settings.sequences, example.present, strict=True) if there}
    return frozenset(taken | ({CONTRAST} if "T1 contrast" in taken else set()))


def foremost(findings: Sequence[Finding]) -> dict[str, Finding]:
    """By code, the first."""
    return {finding.code: finding for finding in reversed(findings)}


def _found(checkpoint: Checkpoint, row: SeenExample) -> tuple[Finding, ...]:
    settings = Preprocessing.from_dict(checkpoint.model.config.preprocessing)
    taken = taken_of(row.example, settings)
    return find(row.seen, checkpoint.model, checkpoint.calibration, taken=taken)


def _written(
    checkpoint: Checkpoint,
    rows: Sequence[SeenExample],
    found: Sequence[tuple[Finding, ...]],
    fused: Fused,
    outputs: FindingOutputs,
    language: str,
) -> list[str]:
    style, examination = load_style(STYLE, language), checkpoint.scope.examination
    slots = []
    for row, findings in zip(rows, found, strict=True):
        meant = interpret(findings, request_of(row.example, examination, language), examination)
        codes = list(dict.fromkeys(finding.code for finding in findings))
        slots.append(report_slots(findings, style, examination, codes, meant))
    return [written.text for written in write_texts(checkpoint.model, fused, outputs, slots)]


def _unsaid(
    checkpoint: Checkpoint, row: SeenExample, findings: Sequence[Finding], chances: dict[str, float]
) -> frozenset[str]:
    schema = schema_of(checkpoint.scope.examination)
    taken = taken_of(row.example, Preprocessing.from_dict(checkpoint.model.config.preprocessing))
    spoken = {finding.code: finding.presence for finding in findings}
    unsaid = set()
    for code, chance in chances.items():
        silent = checkpoint.calibration.answer(code, chance)[0]
        if is_unseen(schema[code], taken):
            silent = Presence.CANNOT_SAY
        if spoken.get(code, silent) is Presence.CANNOT_SAY:
            unsaid.add(code)
    return frozenset(unsaid)


def _case(
    checkpoint: Checkpoint, row: SeenExample, findings: Sequence[Finding], text: str, language: str
) -> Case:
    example, seen, codes = row.example, row.seen, checkpoint.model.config.finding_keys
    stated = tuple(f for f in findings if f.presence is Presence.PRESENT)
    probability = seen.outputs.probability_BF()[0].tolist()
    boxes, said, slices = example.boxes_mm, foremost(stated), seen.image_CIJK.shape[-1]
    both = [code for code in said if code in boxes]
    chances = dict(zip(codes, probability, strict=True))
    return Case(
        example.id,
        example.findings,
        stated,
        _unsaid(checkpoint, row, findings, chances),
        chances,
        {code: _cites(seen, codes.index(code), said[code].size_mm, boxes[code]) for code in both},
        {code: float(holding(boxes[code], seen.affine.numpy(), slices).mean()) for code in both},
        example.reports[language],
        text,
    )


def _cites(seen: Seen, f: int, size_mm: float | None, boxes_mm: Sequence[Box]) -> bool:
    box = evidence_box(seen.fused, seen.outputs, f, size_mm=size_mm)
    return box is not None and crosses(box, boxes_mm, seen.affine.double().numpy(), seen.image_CIJK.shape[1:])


def crosses(box_mm: Box, boxes_mm: Sequence[Box], affine: np.ndarray, shape: Sequence[int]) -> bool:
    """Whether the first axial slice that is cited for a box holds some of one of the others."""
    columns, rows, slices = shape
    k = slices_in_box(box_mm, affine, slices, ((columns - 1) / 2, (rows - 1) / 2))[0]
    return bool(holding(boxes_mm, affine, slices)[k])


def holding(boxes_mm: Sequence[Box], affine: np.ndarray, slices: int) -> np.ndarray:
    """Whether each axial slice (K,) holds some of one of the boxes: a slice is as thick as it is far from the
    next."""
    heights_K, half = affine[2, 2] * np.arange(slices) + affine[2, 3], abs(affine[2, 2]) / 2
    inside = [(heights_K >= low[2] - half) & (heights_K <= high[2] + half) for low, high in boxes_mm]
    return np.any(inside, axis=0)
