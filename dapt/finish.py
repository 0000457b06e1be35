"""Trained model + what it was not trained on -> a calibrated checkpoint directory with its model card.

    python -m dapt.finish CHECKPOINT --corpus runs/chest_ct/corpus

calibrates a checkpoint that is there anew: thresholds, conformal sets, repeatability and what is familiar,
from the validation and test splits of a corpus that its training did not see. Both, because the promise of
conformal sets gets sharper with every example; scores are measured on another cohort. --unseen names more
corpora of whom training saw nobody: the rarer a finding, the more its threshold is worth. The weights are
untouched, but for the size heads with --sizes, which are fitted to the training split (dapt/sizes.py).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from dapt.collate import collate
from dapt.receipts import predict, score_findings, score_predictions
from dapt.sizes import Refitted, refit_sizes
from dapt.train import check_fits, pretrain
from dapt.train_config import TrainConfig
from dapt.trainer import Log
from mla_med.corpus import Example, load_image, place, read_about, read_examples, read_settings
from mla_med.errors import ConfigError, MlaMedError
from mla_med.imaging.transforms import Preprocessing, window_channels
from mla_med.looking import peaks
from mla_med.memory import keep_freed
from mla_med.model.calibrate import Calibration, calibrate, histogram_of
from mla_med.model.checkpoint import as_stored, load_checkpoint, save_checkpoint
from mla_med.model.conformal import COVERAGE
from mla_med.model.gate import SCOPES, lung_share
from mla_med.model.mla import MLAModel
from mla_med.report.context import context_text
from mla_med.report.schema import schema_of
from mla_med.types import Modality

NAMES = {"chest_ct": "mla_med chest CT (phantom)", "brain_mr": "mla_med brain MR (phantom)"}
VERSION = "0.5.0"
TERMS = {"chest_ct": "chest CT", "brain_mr": "brain MR"}

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

_CARD = """# {name} {version}

Drafts {term} reports in {languages}. **Trained on phantoms only**: people who do not exist, made by
`mla_med.phantom`. It has never seen a patient and is not a medical device; on a real {term} its
gate is expected to refuse, and a draft that passes is of no clinical use.

| | |
|---|---|
| parameters | {parameters:.2f} M, stored in half precision |
| input | {shape} voxels of {spacing} mm, {channels}; age, sex and indication as text |
| findings | {findings} |
| trained on | {train} phantoms of site {site}, from cohort {seed} of {n} (phantom version {phantom}) |
| command | `{command}` |
| wall time of the training | {minutes:.0f} minutes on {device} |

## Training log
One row an epoch; losses are unweighted means over the epoch, scores are of the averaged weights on
{validation} validation phantoms at a threshold of 0.5.

{log}
"""

_HELD_OUT = """
## Held-out phantoms
{scores}

No weight of the network was learnt from these {phantoms} phantoms, but thresholds and the limits of the gate
were set on them (`calibration.json`), and how hard findings are and how far size heads go was chosen on those
of the training's own corpus.
Scores on phantoms that neither training nor calibration saw are in MODEL_CARD.md of the project.
"""


_CALIBRATION = """
## Calibration
Set on the {phantoms} held-out phantoms. The likelier answer, with
"present" from `likelier` on, is given unless the other conforms too; then the draft says that it cannot say.
Of those who have a finding, and of those who do not, {coverage:.0f} % are not told the opposite
(class-conditional split-conformal sets), among phantoms like these. `repeat mm`: two scans of one lesion
differ by less in 19 of 20.

| finding | with | without | present conforms from | likelier from | absent conforms to | repeat mm |
|---|---|---|---|---|---|---|
{rows}
"""

_SIZES = """
## Sizes
The heads that say how large a finding is were fitted last, in closed form, to the training phantoms, as
strongly as was best for the held-out ones. By how much the logarithm of a size is off in the mean, of the
held-out:

| finding | learnt | held out | before | after |
|---|---|---|---|---|
{rows}
"""


def train_checkpoint(
    corpus: Path,
    work: Path,
    out: Path,
    config: TrainConfig,
    log: Log | None = None,
    command: str = "",
    start: Path | None = None,
    unseen: Sequence[Path] = (),
) -> Path:
    """Corpus -> trained, calibrated checkpoint directory. Resumable through `work`. `unseen`: other corpora
    to calibrate on as well."""
    model = pretrain(corpus, work, config, log=log, validate=score_findings, start=start)
    return finish(model, corpus, work, out, command, unseen=unseen)


def finish(
    model: MLAModel,
    corpus: Path,
    training: Path,
    out: Path,
    command: str,
    retest: int = RETEST,
    unseen: Sequence[Path] = (),
) -> Path:
    """Fits the size heads, calibrates on what was held out and on `unseen`, and writes the checkpoint."""
    examination = read_about(corpus)["examination"]
    model, sizes = with_sizes(model, corpus)
    calibration, scores, examples = calibrate_on(model, corpus, retest, unseen=unseen)
    card = _card(model, corpus, training, command)
    card += held_out_card(scores, examples) + sizes_card(sizes) + calibration_card(calibration, examples)
    scope = SCOPES[examination]
    return save_checkpoint(out, model, calibration, scope, NAMES[examination], VERSION, card)


def recalibrate(
    folder: Path,
    corpus: Path,
    retest: int = RETEST,
    coverage: float = COVERAGE,
    sizes: bool = False,
    unseen: Sequence[Path] = (),
) -> str:
    """Calibrates a checkpoint anew, with `sizes` after its size heads; -> what its README says of it.
    `unseen`: corpora of whom training saw nobody; all of their patients are calibrated on, too."""
    if not 0 < coverage < 1:
        raise ConfigError(f"A coverage lies between 0 and 1, not {coverage:g}.")
    there = load_checkpoint(folder)
    model = there.model
    for each in (corpus, *unseen):
        check_fits(model, folder, read_settings(each), read_about(each)["examination"])
    card = (folder / "README.md").read_text(encoding="utf-8")
    fitted = _section(card, "Sizes")
    if sizes:
        model, refitted = with_sizes(model, corpus)
        fitted = sizes_card(refitted)
    calibration, scores, examples = calibrate_on(model, corpus, retest, coverage, unseen)
    said = held_out_card(scores, examples) + fitted + calibration_card(calibration, examples)
    for name in ("Held-out phantoms", "Sizes", "Calibration"):
        card = card.replace(_section(card, name), "")
    card = card.rstrip("\n") + "\n" + said
    part = save_checkpoint(
        folder.with_name(f".{folder.name}.anew"),
        *(model, calibration, there.scope, there.name, there.version, card),
    )
    changed = {"calibration.json", "README.md", *(("model.safetensors",) if sizes else ())}
    for name in sorted(changed):  # what else lies in the folder stays
        (part / name).replace(folder / name)
    shutil.rmtree(part)
    return said


def _section(card: str, name: str) -> str:
    """From its heading to the next; empty where there is none."""
    found = re.search(rf"\n## {name}\n.*?(?=\n## |\Z)", card, re.DOTALL)
    return found.group() if found else ""


def with_sizes(model: MLAModel, corpus: Path) -> tuple[MLAModel, Mapping[str, Refitted]]:
    """A copy, as it will be stored, whose size heads are fitted to the training split."""
    model = as_stored(model)
    refitted = refit_sizes(model, read_examples(corpus, "train"), _held_out(corpus))
    return as_stored(model), refitted


def _held_out(corpus: Path) -> tuple[Example, ...]:
    return tuple(example for split in HELD_OUT for example in read_examples(corpus, split))


def _strangers(corpus: Path, unseen: Sequence[Path]) -> tuple[Example, ...]:
    """Everybody in `unseen`; nobody of them may be in the corpus, or stand there twice."""
    strangers = tuple(example for each in unseen for example in read_examples(each, "all"))
    seen = [example.id for example in (*read_examples(corpus, "all"), *strangers)]
    if twice := len(seen) - len(set(seen)):
        raise ConfigError(
            f"{twice} patients of what shall be unseen are in the corpus, or there twice. Training may have "
            "seen them, and a calibration on those promises too much. Draw others: another --seed."
        )
    return strangers


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
    held_out = (*_held_out(corpus), *_strangers(corpus, unseen))
    said, keys = predict(model, held_out), model.config.finding_keys
    varied = predict(model, held_out, vary=np.random.default_rng(RETEST_COHORT))
    known = predict(model, read_examples(corpus, "train")[:FAMILIAR])
    density: dict[str, np.ndarray] = {}
    if settings.modality == Modality.CT:
        images = [load_image(example, settings) for example in held_out]
        density = {
            "lung_share_N": np.array([lung_share(hu) for hu in images]),
            "histogram_NH": np.stack([histogram_of(hu) for hu in images]),
        }
    calibration = calibrate(
        keys,
        said.probability_NF,
        said.present_NF,
        np.concatenate([said.feature_ND, varied.feature_ND]),
        known.feature_ND,
        size_differences_mm(model, examination, retest),
        further_limits(model, held_out, examination),
        coverage=coverage,
        **density,
    )
    return calibration, score_predictions(said, held_out, keys, model.config.sites), len(held_out)


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
    code, the difference of the two sizes where both scans show it."""
    settings = Preprocessing.from_dict(model.config.preprocessing)
    keys, schema = model.config.finding_keys, schema_of(examination)
    codes = [code for code in keys if schema[code].has_size]
    differences: dict[str, list[float]] = {code: [] for code in codes}
    first = RETEST_COHORT * 1_000_000
    for n in range(phantoms):
        planted = tuple(codes[n % len(codes) :: 3])
        images, presents, affines, context = scan_twice(first + n, examination, planted, settings)
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


def held_out_card(scores: Mapping[str, float], phantoms: int) -> str:
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in scores.items())
    return _HELD_OUT.format(scores="| score | value |\n|---|---|\n" + rows, phantoms=phantoms)


def sizes_card(refitted: Mapping[str, Refitted]) -> str:
    """A section of the README; empty where no head was fitted."""
    rows = [
        f"| {code} | {one.learnt} | {one.unseen} | {one.before:.3f} | {one.after:.3f} |"
        for code, one in refitted.items()
    ]
    return _SIZES.format(rows="\n".join(rows)) if rows else ""


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


def _card(model: MLAModel, corpus: Path, training: Path, command: str) -> str:
    about = read_about(corpus)
    settings = read_settings(corpus)
    rows = [json.loads(line) for line in (training / "log.jsonl").read_text().splitlines()]
    trained = sum(row["seconds"] for row in rows)
    windows = f"{len(settings.windows_hu)} CT windows"
    return _CARD.format(
        name=NAMES[about["examination"]],
        version=VERSION,
        term=TERMS[about["examination"]],
        languages="English and Chinese",
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        shape=" x ".join(map(str, settings.shape)),
        spacing=settings.spacing_mm,
        channels=windows if settings.windows_hu else f"sequences {', '.join(settings.sequences)}",
        findings=", ".join(model.config.finding_keys),
        train=about["train"],
        **about["cohort"],
        command=command,
        minutes=trained / 60,
        device=" and ".join(sorted({row.get("device", "CPU") for row in rows})),
        validation=about["validation"],
        log=_table([r for r in rows if "presence" in r], ("epoch", "seconds", "presence", "evidence", "lm"))
        + "\n\n"
        + _table([r for r in rows if "perplexity" in r], ("epoch", "seconds", "perplexity")),
    )


def _table(rows: list[dict], columns: tuple[str, ...]) -> str:
    extra = tuple(k for k in (rows[0] if rows else {}) if k.startswith("validation macro"))
    columns = (*columns, *extra)
    head = "| " + " | ".join(columns) + " |\n|" + "---|" * len(columns)
    return head + "".join("\n| " + " | ".join(str(r.get(c, "")) for c in columns) + " |" for r in rows)


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
    given = parser.parse_args()
    keep_freed()
    try:
        said = recalibrate(
            given.checkpoint, given.corpus, given.retest, given.coverage, given.sizes, given.unseen
        )
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    print(said)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
