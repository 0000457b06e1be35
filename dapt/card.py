"""A model, its training and its calibration -> the README of its checkpoint, section by section.

Knows what is said and in which order; trains and measures nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dapt.sizes import Refitted
from mla_med.corpus import read_about, read_settings
from mla_med.model.calibrate import Calibration
from mla_med.model.mla import MLAModel
from mla_med.model.usual import Usual

NAMES = {"chest_ct": "mla_med chest CT (phantom)", "brain_mr": "mla_med brain MR (phantom)"}
VERSION = "0.7.0"
TERMS = {"chest_ct": "chest CT", "brain_mr": "brain MR"}


_CARD = """# {name} {version}

Drafts {term} reports in {languages}. **Trained on phantoms only**: people who do not exist, made by
`mla_med.phantom`. It has never seen a patient and is not a medical device; on a real {term} its
gate is expected to refuse, and a draft that passes is of no clinical use.

| | |
|---|---|
| parameters | {parameters:.2f} M, stored in half precision |
| input | {shape} voxels of {spacing} mm, {channels}; age, sex and indication as text |
| findings | {findings} |
| trained on | {train} |
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

_VALUES = """
## Values
A study passes the gate if {low:.0f} to {high:.0f} % of the image is lung (CT), or of what was measured is
head (MR), and if no more voxels than these have other values than in the mean of the {phantoms} held-out
phantoms; of an MR, of those in the head.

| channel | % of the voxels |
|---|---|
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


def training_card(
    model: MLAModel, corpus: Path, training: Path, command: str, rich: Sequence[Path] = ()
) -> str:
    """The beginning: what the model is, and its training on `corpus` and `rich` as `training`/log.jsonl
    tells it."""
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
        train="; ".join(_patients(read_about(each)) for each in (corpus, *rich)),
        command=command,
        minutes=trained / 60,
        device=" and ".join(sorted({row.get("device", "CPU") for row in rows})),
        validation=about["validation"],
        log="\n\n".join(
            _table(told, ("epoch", "seconds", *columns))
            for columns in (("presence", "evidence", "lm"), ("perplexity",))
            if (told := [row for row in rows if columns[0] in row])
        ),
    )


def _patients(about: Mapping[str, Any]) -> str:
    cohort = about["cohort"]
    odds = cohort.get("odds", 1.0)
    often = "" if odds == 1 else f", findings at {odds:g} times their usual odds"
    whose = "{n}, phantom version {phantom}".format(**cohort)
    return (
        f"{about['train']} phantoms of site {cohort['site']}, from cohort {cohort['seed']} ({whose}{often})"
    )


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


def values_card(usual: Usual, phantoms: int) -> str:
    """Which values of voxels are familiar, as a section of the README."""
    rows = [f"| {name} | {100 * limit:.0f} |" for name, limit in usual.limits.items()]
    low, high = (100 * share for share in usual.share)
    return _VALUES.format(low=low, high=high, phantoms=phantoms, rows="\n".join(rows))


def section_of(card: str, name: str) -> str:
    """From its heading to the next; empty where there is none."""
    found = re.search(rf"\n## {name}\n.*?(?=\n## |\Z)", card, re.DOTALL)
    return found.group() if found else ""


def _table(rows: list[dict], columns: tuple[str, ...]) -> str:
    extra = tuple(k for k in rows[0] if k.startswith("validation macro"))
    columns = (*columns, *extra)
    head = "| " + " | ".join(columns) + " |\n|" + "---|" * len(columns)
    return head + "".join("\n| " + " | ".join(str(r.get(c, "")) for c in columns) + " |" for r in rows)
