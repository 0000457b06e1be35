"""Examples of a corpus -> does the cited region carry the finding? Masked, the finding's logit must fall more
than for random regions of the body of equal size.

    python -m evaluation.faithfulness CORPUS --checkpoint A --n 100

For each finding that is planted and found: the fall of its logit when the cited box is masked, and when each
of some random regions is (model/evidence.py). The score is the share of pairs in which the cited region falls
more, ties half: the area under the curve cited against random within each finding, 0.5 for chance, with a
95 % interval by patient. "Box holds the middle": whether the middle of a planted lesion of the
finding lies in the box.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from evaluation.bar import bar_of
from evaluation.seen import Progress, SeenExample, foremost, see_batches
from mla_med.corpus import SPLITS, Example, load_image, read_examples
from mla_med.errors import MlaMedError
from mla_med.imaging.sequences import inside_head
from mla_med.imaging.transforms import Preprocessing, inside_body
from mla_med.memory import keep_freed
from mla_med.model.checkpoint import Checkpoint, load_checkpoint
from mla_med.model.evidence import REGIONS, evidence_box, measure_faithfulness
from mla_med.types import Modality, Presence


@dataclass(frozen=True, slots=True)
class Case:
    """One finding of one patient."""

    code: str
    patient: str
    fall: float
    random_falls: tuple[float, ...]
    """Empty where the box leaves no room in the body for another as large."""
    holds_middle: bool

    @property
    def rank(self) -> float:
        other = np.array(self.random_falls)
        return float(((other < self.fall) + 0.5 * (other == self.fall)).mean())


def measure(
    checkpoint: Checkpoint,
    examples: Sequence[Example],
    regions: int = REGIONS,
    progress: Progress = lambda done: None,
) -> list[Case]:
    """Findings that are planted and called present."""
    cases: list[Case] = []
    for done, example in enumerate(examples, 1):
        ((row,), _, _) = next(see_batches(checkpoint, [example]))
        cases += _cases(checkpoint, row, regions)
        progress(done)
    return cases


def _cases(checkpoint: Checkpoint, row: SeenExample, regions: int) -> list[Case]:
    model, seen, found = checkpoint.model, row.seen, []
    settings = Preprocessing.from_dict(model.config.preprocessing)
    ct = settings.modality == Modality.CT
    body = inside_body(load_image(row.example, settings)) if ct else inside_head(seen.image_CIJK)
    logits, probability_F = seen.outputs.presence_logits_BF[0], seen.outputs.probability_BF()[0]
    for code, finding in foremost(row.example.findings).items():
        f = model.config.finding_keys.index(code)
        said, _ = checkpoint.calibration.answer(code, float(probability_F[f]))
        size = float(seen.outputs.size_mm_BF[0, f]) if finding.size_mm else None
        box = evidence_box(seen.fused, seen.outputs, f, size_mm=size)
        if said is not Presence.PRESENT or box is None:
            continue
        fallen = measure_faithfulness(
            model,
            seen.image_CIJK,
            seen.affine,
            seen.context,
            f,
            box,
            body,
            float(logits[f]),
            regions,
            seen.prepared.present_C,
        )
        middles = [np.mean(lesion, axis=0) for lesion in row.example.boxes_mm[code]]
        holds = any(bool(((middle >= box[0]) & (middle <= box[1])).all()) for middle in middles)
        found.append(Case(code, row.example.id, fallen.fall, fallen.random_falls, holds))
    return found


def area(cases: Sequence[Case], draws: int = 2000) -> tuple[float, float, float]:
    """Mean rank with its 95 % interval; whole patients are drawn."""
    if not cases:
        return (float("nan"),) * 3
    patients = sorted({case.patient for case in cases})
    sums = np.array([sum(c.rank for c in cases if c.patient == p) for p in patients])
    counts = np.array([sum(c.patient == p for c in cases) for p in patients])
    drawn = np.random.default_rng(0).integers(len(patients), size=(draws, len(patients)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(sums.sum() / counts.sum()), float(low), float(high)


def table(cases: Sequence[Case], codes: Sequence[str]) -> str:
    lines = [
        "| finding | found | AUC cited v. random | 95 % CI | fall cited | random | box holds the middle |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in (*codes, "all"):
        some = [c for c in cases if name in (c.code, "all")]
        if not some:
            continue
        mean, low, high = area(some)
        cited = np.median([c.fall for c in some])
        other = np.median([fall for c in some for fall in c.random_falls])
        held = np.mean([c.holds_middle for c in some])
        lines.append(
            f"| {name} | {len(some)} | {mean:.3f} | {low:.3f} to {high:.3f} | {cited:.2f} | {other:.2f} "
            f"| {held:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.faithfulness", description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--split", choices=(*SPLITS, "all"), default="test")
    parser.add_argument("--n", type=int, default=100, help="phantoms at most")
    parser.add_argument("--regions", type=int, default=REGIONS, help="random regions for each finding")
    given = parser.parse_args(arguments)
    keep_freed()
    torch.set_num_threads(1)
    began = time.perf_counter()
    try:
        checkpoint = load_checkpoint(given.checkpoint)
        examples = read_examples(given.corpus, given.split)[: given.n]
        with bar_of("masking", len(examples)) as say:
            cases = measure(checkpoint, examples, given.regions, say)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    compared = [case for case in cases if case.random_falls]
    print(f"{len(examples)} phantoms, {len(cases)} findings planted and found, {given.regions} regions each;")
    print(f"{len(cases) - len(compared)} of them leave no room for another region and are not compared")
    print(table(compared, checkpoint.model.config.finding_keys))
    print(f"medians of the falls of the logit; {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
