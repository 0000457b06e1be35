"""An adapted model + the validation part of its site -> a checkpoint that `mla-med draft` takes, or why not.

What may be said of each finding (thresholds, conformal sets), and which images are familiar, is set on
studies of the site that taught nothing. A study counts for a finding only where it is known whether it is
there. How well sizes are repeated needs two scans of the same lesions, which a site's corpus does not hold:
the checkpoint states none, and says so in its README. Second lesions of a code are stated nowhere, as
`dapt.finish` sets their limits on drawn boxes only. Knows no training.
"""

# N studies, F findings, D width, H bins

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dapt.batches import Wanted, once
from dapt.stages import Shelf
from mla_med.corpus import Example, load_channels, load_image
from mla_med.errors import ConfigError, MlaMedError, ReportError
from mla_med.imaging.transforms import Preprocessing
from mla_med.imaging.values import Values, values_of
from mla_med.looking import Prepared, Seen, find
from mla_med.model.calibrate import (
    Calibration,
    best_threshold,
    familiar_features,
)
from mla_med.model.checkpoint import as_stored, load_checkpoint, save_checkpoint
from mla_med.model.conformal import COVERAGE, fit_answer
from mla_med.model.gate import SCOPES, feature_reasons, value_reasons
from mla_med.model.generate import report_slots, write_texts
from mla_med.model.mla import MLAModel
from mla_med.model.usual import usual_of
from mla_med.report.style import load_style

LEAST = 9
"""Studies with a finding, and without it, below which a conformal set of 90 % says nothing: the
ceil((n + 1) 0.9)-th smallest of n has to exist."""
FAMILIAR = 600
"""Most studies of the train split that say what is familiar."""
VERSION = "adapted to a site"
PASSING = 0.9
"""Share of the validation studies that a gate set on them has to let through."""
LEAST_FAMILIAR = 20
"""Fewer span no space that a distance could be measured in."""

_CARD = """# {name}

Drafts {examination} reports. Adapted to a site by `mla-med adapt` ({chain}), not a medical device, and of no
clinical use before its drafts were measured on studies of that site which nobody trained or calibrated on.

Calibrated on {studies} validation studies of the site. Of those who have a finding, and of those who do not,
{coverage:.0f} % are not told the opposite (class-conditional split-conformal sets), among studies like
these. Of a finding with fewer than {least} studies on either side the draft will mostly say that it cannot
say. {passing} of the {studies} pass this gate themselves.

How well sizes are repeated is not known: nobody was scanned twice. Changes of size since an earlier study are
therefore not stated, and one lesion of a kind is described, the foremost.

| finding | with | without | present conforms from | likelier from | absent conforms to |
|---|---|---|---|---|---|
{rows}
"""


class DeliveryRefused(MlaMedError):
    """No checkpoint can be made of this model with this corpus."""

    code = "NOT_CALIBRATED"


@dataclass(frozen=True, slots=True)
class Judged:
    """What a model says of some studies, as it will when it drafts: with their requests."""

    probability_NF: np.ndarray
    present_NF: np.ndarray
    """1, 0, or NaN where nobody knows."""
    feature_ND: np.ndarray
    values: tuple[Values, ...]


def deliver(model: MLAModel, shelf: Shelf, out: Path, chain: str) -> Path:
    """Writes the checkpoint; DeliveryRefused says why not."""
    if shelf.settings is None:
        raise DeliveryRefused("The site's corpus holds texts alone; nothing can be calibrated on them.")
    if shelf.examination not in SCOPES:
        raise DeliveryRefused(
            f"It is not known which studies a model of '{shelf.examination}' may read: there are scopes for "
            f"{', '.join(SCOPES)}."
        )
    held_out, known = (
        tuple(e for e in some if e.image is not None) for some in (shelf.held_out, shelf.train[:FAMILIAR])
    )
    if len(known) < LEAST_FAMILIAR or not held_out:
        raise DeliveryRefused(
            f"{len(known)} training and {len(held_out)} validation studies have an image; what is familiar "
            f"takes {LEAST_FAMILIAR} of the one, and some of the other. Gather more studies of the site."
        )
    model = as_stored(model)
    judged, seen = judge_studies(model, held_out, shelf.settings), judge_studies(model, known, shelf.settings)
    keys = model.config.finding_keys
    enough = [key for f, key in enumerate(keys) if min(_counts(judged.present_NF[:, f])) >= LEAST]
    if not enough:
        best = max(min(_counts(judged.present_NF[:, f])) for f in range(len(keys)))
        raise DeliveryRefused(
            f"Of no finding are {LEAST} validation studies known to have it and {LEAST} not to (at most "
            f"{best}), so nothing could be said with a stated coverage. Label more of the site's validation "
            "split."
        )
    calibration = calibration_of(keys, judged, seen, shelf.settings.modality)
    passing = sum(not _refused(calibration, judged, n) for n in range(len(held_out)))
    if passing < PASSING * len(held_out):
        raise DeliveryRefused(
            f"Its gate would refuse {len(held_out) - passing} of the {len(held_out)} validation studies: "
            "their image embeddings lie too close together to tell what is familiar. Train longer, on more "
            "studies."
        )
    _try_to_write(model, calibration, held_out[0], shelf)
    name = f"mla_med {shelf.examination.replace('_', ' ')}"
    rows = [
        f"| {code} | {a.num_present} | {a.num_absent} | {a.present_from:.4f} | {a.cut:.2f} | "
        f"{a.absent_to:.4f} |"
        for code, a in calibration.answers.items()
    ]
    card = _CARD.format(
        name=name,
        examination=shelf.examination.replace("_", " "),
        chain=chain,
        studies=len(held_out),
        coverage=100 * COVERAGE,
        least=LEAST,
        passing=passing,
        rows="\n".join(rows),
    )
    save_checkpoint(out, model, calibration, SCOPES[shelf.examination], name, VERSION, card)
    # what was written is what drafts: it has to come back
    load_checkpoint(out)
    return out


def calibration_of(keys: Sequence[str], judged: Judged, seen: Judged, modality: str) -> Calibration:
    """Each finding on the studies of which it is known."""
    thresholds, answers = {}, {}
    for f, code in enumerate(keys):
        use_N = ~np.isnan(judged.present_NF[:, f])
        p_N, present_N = judged.probability_NF[use_N, f], judged.present_NF[use_N, f] == 1
        # of a finding that nobody has, the threshold of best F1 is anywhere
        thresholds[code] = best_threshold(p_N, present_N) if present_N.any() else 0.9
        answers[code] = fit_answer(p_N, present_N, thresholds[code])
    shares, histograms = [v.share for v in judged.values], [v.histograms for v in judged.values]
    return Calibration(
        **familiar_features(judged.feature_ND, seen.feature_ND),
        thresholds=thresholds,
        answers=answers,
        coverage=COVERAGE,
        usual=usual_of(modality, shares, histograms),
    )


@torch.no_grad()
def judge_studies(
    model: MLAModel, examples: Sequence[Example], settings: Preprocessing, batch: int = 8
) -> Judged:
    model.eval()
    probabilities, truths, features = [], [], []
    for some in once(examples, model.config, model.tokenizer, settings, Wanted(texts=False), batch):
        some = some.to(model.device)
        assert some.image_ICIJK is not None
        fused = model.encode(some.image_ICIJK, list(some.contexts), some.present_IC, some.affine_I44)
        probability_IF = model.find(fused).probability_BF()
        probabilities.append(probability_IF)
        unknown_IF = torch.full(probability_IF.shape, torch.nan)
        truth_IF = unknown_IF if some.targets is None else some.targets.presence_BF
        truths.append(truth_IF.double().cpu().numpy())
        features.append(model.image_embedding_BD(fused).double().cpu().numpy())
    return Judged(
        np.concatenate(probabilities),
        np.concatenate(truths),
        np.concatenate(features),
        tuple(values_of(load_image(e, settings), e.present, settings) for e in examples),
    )


@torch.no_grad()
def _try_to_write(model: MLAModel, calibration: Calibration, example: Example, shelf: Shelf) -> None:
    """One draft, under constraint: a decoder with too few places for a report is found out here."""
    assert shelf.settings is not None
    image, present, affine = load_channels(example, shelf.settings)
    text = next(iter(example.contexts.values()), "")
    fused = model.encode(image[None], [text], present[None], affine[None])
    outputs = model.find(fused)
    seen = Seen(fused, outputs, Prepared(image, present, affine), text, shelf.examination)
    findings = find(seen, model, calibration)
    codes = list(dict.fromkeys(finding.code for finding in findings))
    try:
        slots = report_slots(findings, load_style(), shelf.examination, codes)
        write_texts(model, fused, outputs, [slots])
    except (ConfigError, ReportError) as error:
        raise DeliveryRefused(f"It cannot write a report ({error.code}): {error}") from error


def _counts(present_N: np.ndarray) -> tuple[int, int]:
    return int((present_N == 1).sum()), int((present_N == 0).sum())


def _refused(calibration: Calibration, judged: Judged, n: int) -> bool:
    distance, values = calibration.feature_distance(judged.feature_ND[n]), judged.values[n]
    return bool(
        value_reasons(calibration.usual, values.share, values.histograms)
        or feature_reasons(calibration, distance)
    )


def deliver_once(model: MLAModel, shelf: Shelf, out: Path, chain: str, fingerprint: str) -> str:
    """-> why there is no checkpoint; empty where there is one. Not repeated for the same model and data."""
    note = out.with_name(f"{out.name}.json")
    if note.is_file():
        kept = json.loads(note.read_text(encoding="utf-8"))
        if kept["fingerprint"] == fingerprint and (kept["why_not"] or (out / "checkpoint.json").is_file()):
            return str(kept["why_not"])
    why_not = ""
    try:
        deliver(model, shelf, out, chain)
    except DeliveryRefused as error:
        why_not = str(error)
    note.write_text(json.dumps({"fingerprint": fingerprint, "why_not": why_not}) + "\n", encoding="utf-8")
    return why_not
