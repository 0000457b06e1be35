"""Trained model + what it was not trained on -> a calibrated checkpoint directory with its model card.

    python -m dapt.finish CHECKPOINT --corpus runs/chest_ct/corpus

calibrates a checkpoint that is there anew: thresholds, conformal sets, repeatability and what is familiar,
from the validation and test splits of a corpus that its training did not see. Both, because the promise of
conformal sets gets sharper with every example; scores are measured on another cohort. --unseen names more
corpora of whom training saw nobody: the rarer a finding, the more its threshold is worth. The weights are
untouched, but for the size heads with --sizes, which are fitted to the training split (dapt/sizes.py). With
--values only the limits of the values of voxels are set anew, which takes no network and no truth.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dapt.card import (
    NAMES,
    VERSION,
    calibration_card,
    held_out_card,
    section_of,
    sizes_card,
    training_card,
    values_card,
)
from dapt.collate import collate
from dapt.receipts import predict, score_findings, score_predictions
from dapt.sizes import Refitted, refit_sizes
from dapt.train import check_fits, pretrain
from dapt.train_config import TrainConfig
from dapt.trainer import Log
from mla_med.corpus import Example, load_image, place, read_about, read_examples, read_settings
from mla_med.errors import ConfigError, MlaMedError
from mla_med.imaging.transforms import Preprocessing, window_channels
from mla_med.imaging.values import values_of
from mla_med.looking import peaks
from mla_med.memory import keep_freed
from mla_med.model.calibrate import MIN_RETESTED, Calibration, calibrate
from mla_med.model.checkpoint import Checkpoint, as_stored, load_checkpoint, save_checkpoint
from mla_med.model.conformal import COVERAGE
from mla_med.model.gate import SCOPES
from mla_med.model.mla import MLAModel
from mla_med.model.usual import Usual, usual_of
from mla_med.report.context import context_text
from mla_med.report.schema import schema_of

HELD_OUT = ("validation", "test")
FAMILIAR = 600
"""So many training examples say what is familiar to the gate."""
RETEST = 60
"""So many phantoms are scanned twice to see how well sizes are repeated."""
MIN_FURTHER = 8
"""Second and third lesions of a code that have to be there before a limit is set for them."""
CELL_MM = 12.0
"""A cell of the map of a chest."""
RETEST_COHORT = 3999
"""Cohorts have seeds of 0 to 4000; nobody trains on this one."""


def train_checkpoint(
    corpus: Path,
    work: Path,
    out: Path,
    config: TrainConfig,
    log: Log | None = None,
    command: str = "",
    start: Path | None = None,
    unseen: Sequence[Path] = (),
    rich: Sequence[Path] = (),
    backbone_weights: Path | None = None,
    retest: int = RETEST,
    before: Sequence[Path] = (),
) -> Path:
    """Corpus -> trained, calibrated checkpoint directory. Resumable through `work`. `unseen`: other corpora
    to calibrate on as well. `rich`: others to learn from as well. `backbone_weights`: see pretrain.
    `before`: those that `start` was made from, of whom nobody may be unseen either."""
    # what is wrong with them shall not be found after hours
    _strangers((corpus, *rich, *before), unseen)
    _check_usual(corpus, unseen)
    model = pretrain(
        corpus,
        work,
        config,
        log=log,
        validate=score_findings,
        start=start,
        rich=rich,
        backbone_weights=backbone_weights,
    )
    return finish(model, corpus, work, out, command, retest, unseen, rich, before)


def finish(
    model: MLAModel,
    corpus: Path,
    training: Path,
    out: Path,
    command: str,
    retest: int = RETEST,
    unseen: Sequence[Path] = (),
    rich: Sequence[Path] = (),
    before: Sequence[Path] = (),
) -> Path:
    """Fits the size heads to what was learnt, of `rich` as well, calibrates on what was held out and on
    `unseen`, and writes the checkpoint."""
    examination = read_about(corpus)["examination"]
    model, sizes = with_sizes(model, corpus, rich)
    calibration, scores, examples = calibrate_on(model, corpus, retest, unseen=unseen)
    card = training_card(model, corpus, training, command, (*rich, *before))
    card += held_out_card(scores, examples) + sizes_card(sizes) + calibration_card(calibration, examples)
    card += values_card(calibration.usual, examples)
    scope = SCOPES[examination]
    return save_checkpoint(out, model, calibration, scope, NAMES[examination], VERSION, card)


def recalibrate(
    folder: Path,
    corpus: Path,
    retest: int = RETEST,
    coverage: float = COVERAGE,
    sizes: bool = False,
    unseen: Sequence[Path] = (),
    rich: Sequence[Path] = (),
) -> str:
    """Calibrates a checkpoint anew, with `sizes` after its size heads; -> what its README says of it.
    `unseen`: corpora of whom training saw nobody; all of their patients are calibrated on, too. `rich`: what
    else it learnt from, to fit size heads to as well."""
    if not 0 < coverage < 1:
        raise ConfigError(f"A coverage lies between 0 and 1, not {coverage:g}.")
    if rich and not sizes:
        raise ConfigError("Nothing is calibrated on rich patients, only sizes are fitted: add --sizes.")
    there = load_checkpoint(folder)
    model = there.model
    for each in (corpus, *unseen, *rich):
        check_fits(model, folder, read_settings(each), read_about(each)["examination"])
    card = (folder / "README.md").read_text(encoding="utf-8")
    fitted = section_of(card, "Sizes")
    if sizes:
        model, refitted = with_sizes(model, corpus, rich)
        fitted = sizes_card(refitted)
    calibration, scores, examples = calibrate_on(model, corpus, retest, coverage, unseen)
    said = held_out_card(scores, examples) + fitted + calibration_card(calibration, examples)
    said += values_card(calibration.usual, examples)
    for name in ("Held-out phantoms", "Sizes", "Calibration", "Values"):
        card = card.replace(section_of(card, name), "")
    card = card.rstrip("\n") + "\n" + said
    _write_over(folder, replace(there, model=model, calibration=calibration), card, sizes)
    return said


def reset_values(folder: Path, corpus: Path, unseen: Sequence[Path] = ()) -> str:
    """Sets the limits of the values of voxels of a checkpoint anew, and nothing else; -> what its README
    says of it."""
    there, settings = load_checkpoint(folder), read_settings(corpus)
    for each in (corpus, *unseen):
        check_fits(there.model, folder, read_settings(each), read_about(each)["examination"])
    examples = (*_held_out(corpus), *_strangers((corpus,), unseen))
    usual = usual_values(examples, settings)
    said = values_card(usual, len(examples))
    card = (folder / "README.md").read_text(encoding="utf-8")
    card = card.replace(section_of(card, "Values"), "").rstrip("\n") + "\n" + said
    _write_over(folder, replace(there, calibration=replace(there.calibration, usual=usual)), card)
    return said


def _write_over(folder: Path, checkpoint: Checkpoint, card: str, weights: bool = False) -> None:
    """Calibration and README, with `weights` those too; what else lies in the folder stays."""
    part = save_checkpoint(
        folder.with_name(f".{folder.name}.anew"),
        *(
            checkpoint.model,
            checkpoint.calibration,
            checkpoint.scope,
            checkpoint.name,
            checkpoint.version,
            card,
        ),
    )
    for name in ("calibration.json", "README.md", *(("model.safetensors",) if weights else ())):
        (part / name).replace(folder / name)
    shutil.rmtree(part)


def with_sizes(
    model: MLAModel, corpus: Path, rich: Sequence[Path] = ()
) -> tuple[MLAModel, Mapping[str, Refitted]]:
    """A copy, as it will be stored, whose size heads are fitted to the training split, and that of `rich`."""
    model = as_stored(model)
    learnt = tuple(example for each in (corpus, *rich) for example in read_examples(each, "train"))
    refitted = refit_sizes(model, learnt, _held_out(corpus))
    return as_stored(model), refitted


def _held_out(corpus: Path) -> tuple[Example, ...]:
    return tuple(example for split in HELD_OUT for example in read_examples(corpus, split))


def _strangers(corpora: Sequence[Path], unseen: Sequence[Path]) -> tuple[Example, ...]:
    """Everybody in `unseen`; nobody of them may be in a corpus of training, and nobody stand there twice."""
    strangers = tuple(example for each in unseen for example in read_examples(each, "all"))
    seen = {example.id for each in corpora for example in read_examples(each, "all")}
    if twice := len(strangers) - len({example.id for example in strangers} - seen):
        raise ConfigError(
            f"{twice} patients of what shall be unseen are in the corpus, or there twice. Training may have "
            "seen them, and a calibration on those promises too much. Draw others: another --seed."
        )
    return strangers


def _check_usual(corpus: Path, unseen: Sequence[Path]) -> None:
    """Probabilities are calibrated on patients who have as much as those who will come."""
    for each in (corpus, *unseen):
        odds = read_about(each).get("cohort", {}).get("odds", 1.0)
        if odds != 1:
            raise ConfigError(
                f"The patients of {each} have findings at {odds:g} times the usual odds. Learn from them "
                "(--rich), and calibrate on others."
            )


def calibrate_on(
    model: MLAModel,
    corpus: Path,
    retest: int = RETEST,
    coverage: float = COVERAGE,
    unseen: Sequence[Path] = (),
) -> tuple[Calibration, dict[str, float], int]:
    """-> the calibration on what was held out and on the whole of `unseen`, the scores on both, and their
    number of examples."""
    settings, examination = read_settings(corpus), read_about(corpus)["examination"]
    _check_usual(corpus, unseen)
    held_out = (*_held_out(corpus), *_strangers((corpus,), unseen))
    said, keys = predict(model, held_out), model.config.finding_keys
    varied = predict(model, held_out, vary=np.random.default_rng(RETEST_COHORT))
    known = predict(model, read_examples(corpus, "train")[:FAMILIAR])
    calibration = calibrate(
        keys,
        said.probability_NF,
        said.present_NF,
        np.concatenate([said.feature_ND, varied.feature_ND]),
        known.feature_ND,
        size_differences_mm(model, examination, retest),
        further_limits(model, held_out, examination),
        usual_values(held_out, settings),
        coverage,
    )
    return calibration, score_predictions(said, held_out, keys, model.config.sites), len(held_out)


def usual_values(examples: Sequence[Example], settings: Preprocessing) -> Usual:
    # one image at a time: all of them fill the memory
    values = [values_of(load_image(e, settings), e.present, settings) for e in examples]
    return usual_of(settings.modality, [v.share for v in values], [v.histograms for v in values])


@torch.no_grad()
def further_limits(model: MLAModel, examples: tuple[Example, ...], examination: str) -> dict[str, float]:
    """By code, the logit of its map from which another place is more often another lesion than not, at the
    best F1 of those; without a code of which too few are there to tell."""
    settings = Preprocessing.from_dict(model.config.preprocessing)
    keys, schema = model.config.finding_keys, schema_of(examination)
    seen: dict[str, list[tuple[float, bool]]] = {}
    further: Counter[str] = Counter()
    for example in examples:
        several = {
            code for code, boxes in example.boxes_mm.items() if len(boxes) > 1 and schema[code].repeats
        }
        single = {code for code in example.boxes_mm if schema[code].repeats} - several
        if not several | single:
            continue
        inputs = collate((example,), model, settings)
        fused = model.encode(
            inputs["image_BCIJK"], inputs["text"], inputs["present_BC"], inputs["affine_B44"]
        )
        for code in several | single:
            missed = list(np.array(example.boxes_mm[code]))
            further[code] += len(missed) - 1
            for number, (middle, logit) in enumerate(peaks(keys.index(code), fused)):
                hits = [_near(middle, box) for box in missed]
                if number:
                    seen.setdefault(code, []).append((logit, any(hits)))
                if any(hits):
                    del missed[hits.index(True)]
    limits = {}
    for code, found in seen.items():
        limit = _best_limit(found, further[code])
        if limit is not None and further[code] >= MIN_FURTHER:
            limits[code] = limit
    return limits


def _near(middle: np.ndarray, box: np.ndarray) -> bool:
    """In the box, or within a cell of the map."""
    return bool(((middle >= box[0] - CELL_MM) & (middle <= box[1] + CELL_MM)).all())


def _best_limit(found: list[tuple[float, bool]], there: int) -> float | None:
    """The limit of the best F1 where at least half of what is above it is right; None where there is none."""
    best, limit, hits = 0.0, None, 0
    for number, (logit, right) in enumerate(sorted(found, reverse=True), 1):
        hits += right
        f1 = 2 * hits / (number + there)
        if f1 > best and hits >= number / 2:
            best, limit = f1, round(logit, 3)
    return limit


@torch.no_grad()
def size_differences_mm(model: MLAModel, examination: str, phantoms: int) -> dict[str, np.ndarray]:
    """Phantoms with some of what has a size, each scanned twice, as technicians and noise would have it: by
    code, the difference of the two sizes where both scans show it. Of what was seen too seldom to say, up to
    twice as many again are scanned."""
    settings = Preprocessing.from_dict(model.config.preprocessing)
    keys, schema = model.config.finding_keys, schema_of(examination)
    codes = [code for code in keys if schema[code].has_size]
    differences: dict[str, list[float]] = {code: [] for code in codes}
    first = RETEST_COHORT * 1_000_000
    again = 2 * phantoms if phantoms >= MIN_RETESTED else 0
    for n in range(phantoms + again):
        planted = codes[n % len(codes) :: 3]
        if n >= phantoms:
            planted = [code for code in codes if len(differences[code]) < MIN_RETESTED]
        if not planted:
            break
        images, presents, affines, context = scan_twice(first + n, examination, tuple(planted), settings)
        outputs = model.find(model.encode(images, [context] * 2, presents, affines))
        for code in codes:
            f = keys.index(code)
            if (outputs.presence_logits_BF[:, f] > 0).all():
                one, other = outputs.size_mm_BF[:, f].tolist()
                differences[code].append(abs(one - other))
    return {code: np.array(values) for code, values in differences.items()}


def scan_twice(
    seed: int, examination: str, codes: tuple[str, ...], settings: Preprocessing
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, str]:
    """One phantom in two scans -> images (2, C, I, J, K), which channels were taken (2, C), affines
    (2, 4, 4), and its clinical context."""
    from mla_med.phantom.examine import examine
    from mla_med.phantom.scanning import to_array
    from mla_med.phantom.sites import site_of

    examined = examine(seed, examination, site_of("a"), codes=codes)
    images, presents, affines = [], [], []
    for stage in (103, 113):
        array, affine, scan = to_array(examined, stage, settings.spacing_mm)
        values, affine, present = place(array, affine, scan, settings)
        image = torch.from_numpy(values)
        images.append(window_channels(image, settings.windows_hu) if settings.windows_hu else image)
        presents.append(torch.tensor(present))
        affines.append(torch.from_numpy(affine).to(torch.float32))
    return torch.stack(images), torch.stack(presents), torch.stack(affines), context_text(examined.context)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dapt.finish", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="the folder of the checkpoint; it is changed")
    parser.add_argument("--corpus", type=Path, required=True, help="whose held-out splits to calibrate on")
    parser.add_argument("--retest", type=int, default=RETEST, help="phantoms to scan twice")
    parser.add_argument("--coverage", type=float, default=COVERAGE)
    parser.add_argument(
        "--unseen",
        type=Path,
        nargs="+",
        default=(),
        help="corpora of whom training saw nobody, to calibrate on as well: more patients, better thresholds",
    )
    parser.add_argument("--sizes", action="store_true", help="fit the size heads to the training split, too")
    parser.add_argument(
        "--rich", type=Path, nargs="+", default=(), help="with --sizes: corpora that it learnt from as well"
    )
    parser.add_argument(
        "--values", action="store_true", help="set the limits of the values of voxels anew, and nothing else"
    )
    given = parser.parse_args()
    keep_freed()
    try:
        if given.values and (given.sizes or given.rich):
            raise ConfigError("--values sets limits of values and nothing else: not with --sizes or --rich.")
        if given.values:
            said = reset_values(given.checkpoint, given.corpus, given.unseen)
        else:
            said = recalibrate(
                *(given.checkpoint, given.corpus, given.retest, given.coverage, given.sizes),
                *(given.unseen, given.rich),
            )
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    print(said)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
