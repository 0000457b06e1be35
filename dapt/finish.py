"""Trained model + validation split -> a calibrated checkpoint directory with its model card.

    python -m dapt.finish CHECKPOINT --phantoms 600 --retest 60 --work runs/calibration

calibrates a checkpoint that is there anew, its weights untouched: thresholds, conformal sets, repeatability
and histogram from phantoms that its training did not see. What is familiar by features stays as it is: that
takes the training examples.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dapt.corpus import SCHEMA, CorpusConfig, Example, prepare_corpus, read_examples
from dapt.receipts import predict, score_findings, score_predictions
from dapt.train import Log, TrainConfig, pretrain
from mla_med.errors import CheckpointError, MlaMedError
from mla_med.files import write_text
from mla_med.imaging.transforms import Preprocessing, place_transform, window_channels
from mla_med.model.calibrate import (
    Calibration,
    calibrate,
    histogram_of,
    usual_histogram,
    what_is_said,
)
from mla_med.model.checkpoint import load_checkpoint, save_checkpoint
from mla_med.model.conformal import COVERAGE
from mla_med.model.gate import Scope
from mla_med.model.mla import MLAModel
from mla_med.report.context import context_text

NAME, VERSION = "mla_med chest CT (phantom)", "0.1.0"

FAMILIAR = 600
"""So many training examples say what is familiar to the gate."""
MEASURED = tuple(code for code, kind in SCHEMA.items() if kind.has_size)
RETEST = 40
"""So many phantoms are scanned twice to see how well sizes are repeated."""
RETEST_SEED = 650_000
"""The first of them: no split of any corpus reaches so far."""

_CARD = """# {name} {version}

Drafts chest CT reports in English. **Trained on phantoms only**: people who do not exist, made by
`mla_med.phantom`. It has never seen a patient and is not a medical device; on a real chest CT its
gate is expected to refuse, and a draft that passes is of no clinical use.

| | |
|---|---|
| parameters | {parameters:.2f} M, stored in half precision |
| input | {shape} voxels of {spacing} mm, {channels} CT windows; age, sex and indication as text |
| findings | {findings} |
| trained on | {train} phantoms, patients {first} to {last} |
| command | `{command}` |
| wall time of the training | {minutes:.0f} minutes on {device} |

## Training log
One row an epoch; losses are unweighted means over the epoch, scores are of the averaged weights on
{validation} validation phantoms at a threshold of 0.5.

{log}

## Validation split
{scores}

The familiarity limits of the gate were set on these same {validation} phantoms (`calibration.json`).
Scores on phantoms that neither training nor calibration saw are in MODEL_CARD.md of the project.
"""


_CALIBRATION = """
## Calibration
Set on {phantoms} phantoms that training did not see (`python -m dapt.finish`). The likelier answer, with
"present" from `likelier` on, is given unless the other conforms too; then the draft says that it cannot say.
Of those who have a finding, and of those who do not, {coverage:.0f} % are not told the opposite
(class-conditional split-conformal sets), among phantoms like these. `repeat mm`: two scans of one lesion
differ by less in 19 of 20.

| finding | with | without | present conforms from | likelier from | absent conforms to | repeat mm |
|---|---|---|---|---|---|---|
{rows}
"""


def train_checkpoint(
    corpus: Path, work: Path, out: Path, config: TrainConfig, log: Log | None = None, command: str = ""
) -> Path:
    """Corpus -> trained, calibrated checkpoint directory. Resumable through `work`."""
    model = pretrain(corpus, work, config, log=log, validate=score_findings)
    return finish(model, corpus, work, out, command)


def finish(
    model: MLAModel, corpus: Path, training: Path, out: Path, command: str, retest: int = RETEST
) -> Path:
    """Calibrates on the validation split and writes the checkpoint."""
    held_out = read_examples(corpus, "validation")
    said = predict(model, held_out)
    keys = model.config.finding_keys
    known = predict(model, read_examples(corpus, "train")[:FAMILIAR])
    calibration = calibrate(
        keys,
        said.probability_NF,
        said.present_NF,
        said.feature_ND,
        said.lung_share_N,
        known.feature_ND,
        size_differences_mm(model, retest),
        histograms(held_out),
    )
    scores = score_predictions(said, held_out, keys, model.config.sites)
    card = _card(model, corpus, training, scores, command) + calibration_card(calibration, len(held_out))
    return save_checkpoint(out, model, calibration, Scope(), NAME, VERSION, card)


def recalibrate(
    folder: Path, work: Path, phantoms: int, retest: int, coverage: float = COVERAGE
) -> Calibration:
    """Writes a new calibration.json into a checkpoint, and says so in its README."""
    checkpoint = load_checkpoint(folder)
    model, keys = checkpoint.model, checkpoint.model.config.finding_keys
    settings = Preprocessing.from_dict(model.config.preprocessing)
    if set(keys) - set(SCHEMA):
        raise CheckpointError(
            f"No phantom of this corpus has {min(set(keys) - set(SCHEMA))}; train it again."
        )
    config = CorpusConfig(train=0, validation=phantoms, test=0, workers=1, preprocessing=settings)
    held_out = read_examples(prepare_corpus(config, work), "validation")
    said = predict(model, held_out)
    calibration = replace(
        checkpoint.calibration,
        **what_is_said(
            keys, said.probability_NF, said.present_NF, size_differences_mm(model, retest), coverage
        ),
        **usual_histogram(histograms(held_out)),
    )
    write_text(folder / "calibration.json", json.dumps(calibration.to_dict(), indent=1) + "\n")
    card = (folder / "README.md").read_text(encoding="utf-8").split("\n## Calibration\n")[0].rstrip("\n")
    write_text(folder / "README.md", card + "\n" + calibration_card(calibration, len(held_out)))
    return calibration


def histograms(examples: Iterable[Example]) -> np.ndarray:
    """Of the images on the model's grid (N, H)."""
    return np.stack([histogram_of(np.load(example.image)) for example in examples])


@torch.no_grad()
def size_differences_mm(model: MLAModel, phantoms: int) -> dict[str, np.ndarray]:
    """Every finding that has a size, planted in each phantom and scanned twice, as technicians and noise
    would have it: the difference of the two sizes where both scans show it."""
    settings = Preprocessing.from_dict(model.config.preprocessing)
    codes = [code for code in MEASURED if code in model.config.finding_keys]
    places = [model.config.finding_keys.index(code) for code in codes]
    differences: dict[str, list[float]] = {code: [] for code in codes}
    for seed in range(RETEST_SEED, RETEST_SEED + phantoms):
        images, affines, context = scan_twice(seed, tuple(codes), settings)
        outputs = model.find(model.encode(images, [context] * 2, affine_B44=affines))
        found_2F = (outputs.presence_logits_BF[:, places] > 0).tolist()
        size_2F = outputs.size_mm_BF[:, places].tolist()
        for code, here, there, one, other in zip(codes, *found_2F, *size_2F, strict=True):
            if here and there:
                differences[code].append(abs(one - other))
    return {code: np.array(values) for code, values in differences.items()}


def scan_twice(
    seed: int, codes: tuple[str, ...], settings: Preprocessing
) -> tuple[torch.Tensor, torch.Tensor, str]:
    """One phantom in two scans -> images (2, C, I, J, K), affines (2, 4, 4), and its clinical context."""
    from monai.data import MetaTensor

    from mla_med.phantom.plain.cohort import make_phantom
    from mla_med.phantom.plain.scanner import random_scan, scan_person

    phantom = make_phantom(seed, codes)
    images, affines = [], []
    for time in range(2):
        rng = np.random.default_rng([seed, 60 + time])
        scan = random_scan(rng, (settings.spacing_mm,) * 3, int(max(settings.shape) * 1.06))
        # a scanner at the model's own spacing, with what slab averaging would leave of the noise
        scan = replace(scan, noise_hu=0.4 * scan.noise_hu)
        hu, grid = scan_person(phantom.person, phantom.lesions, scan, rng)
        image = MetaTensor(torch.from_numpy(hu.astype(np.float32))[None], affine=torch.tensor(grid.affine))
        placed = place_transform(settings)({"image": image})["image"]
        images.append(window_channels(placed.as_tensor()[0], settings.windows_hu))
        affines.append(placed.affine.to(torch.float32))
    return torch.stack(images), torch.stack(affines), context_text(phantom.context)


def calibration_card(calibration: Calibration, phantoms: int) -> str:
    """What may be said of each finding, as a section of the README."""
    rows = []
    for code, a in calibration.answers.items():
        repeat = f"{calibration.size_repeat_mm[code]:.1f}" if code in calibration.size_repeat_mm else ""
        limits = f"{a.present_from:.4f} | {a.cut:.2f} | {a.absent_to:.4f}"
        rows.append(f"| {code} | {a.num_present} | {a.num_absent} | {limits} | {repeat} |")
    return _CALIBRATION.format(
        phantoms=phantoms, coverage=100 * (calibration.coverage or 0), rows="\n".join(rows)
    )


def _card(model: MLAModel, corpus: Path, training: Path, scores, command: str) -> str:
    about = json.loads((corpus / "corpus.json").read_text())
    rows = [json.loads(line) for line in (training / "log.jsonl").read_text().splitlines()]
    trained = sum(row["seconds"] for row in rows)
    first = about["seed"] * 100_000
    return _CARD.format(
        name=NAME,
        version=VERSION,
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        shape=" x ".join(map(str, about["preprocessing"]["shape"])),
        spacing=about["preprocessing"]["spacing_mm"],
        channels=len(about["preprocessing"]["windows_hu"]),
        findings=", ".join(model.config.finding_keys),
        train=about["train"],
        first=first,
        last=first + about["train"] - 1,
        command=command,
        minutes=trained / 60,
        device="two cores" if model.device.type == "cpu" else str(model.device),
        validation=about["validation"],
        log=_table([r for r in rows if "presence" in r], ("epoch", "seconds", "presence", "evidence", "lm"))
        + "\n\n"
        + _table([r for r in rows if "perplexity" in r], ("epoch", "seconds", "perplexity")),
        scores="| score | value |\n|---|---|\n" + "\n".join(f"| {k} | {v:.3f} |" for k, v in scores.items()),
    )


def _table(rows: list[dict], columns: tuple[str, ...]) -> str:
    extra = tuple(k for k in (rows[0] if rows else {}) if k.startswith("validation macro"))
    columns = (*columns, *extra)
    head = "| " + " | ".join(columns) + " |\n|" + "---|" * len(columns)
    return head + "".join("\n| " + " | ".join(str(r.get(c, "")) for c in columns) + " |" for r in rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dapt.finish", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="the folder of the checkpoint; it is changed")
    parser.add_argument("--phantoms", type=int, default=600, help="to calibrate on")
    parser.add_argument("--retest", type=int, default=RETEST, help="to scan twice")
    parser.add_argument("--coverage", type=float, default=COVERAGE)
    parser.add_argument("--work", type=Path, default=Path("runs/calibration"), help="for the phantoms")
    given = parser.parse_args()
    try:
        done = recalibrate(given.checkpoint, given.work, given.phantoms, given.retest, given.coverage)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    print(calibration_card(done, given.phantoms))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
