"""Trained model + validation split -> a calibrated checkpoint directory with its model card."""

from __future__ import annotations

import json
from pathlib import Path

from dapt.corpus import read_examples
from dapt.receipts import predict, score_findings, score_predictions
from dapt.train import Log, TrainConfig, pretrain
from mla_med.model.calibrate import calibrate
from mla_med.model.checkpoint import save_checkpoint
from mla_med.model.gate import Scope
from mla_med.model.mla import MLAModel

NAME, VERSION = "mla_med chest CT (phantom)", "0.1.0"

FAMILIAR = 600
"""So many training examples say what is familiar to the gate."""

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

Thresholds and the familiarity limits of the gate were set on these same {validation} phantoms
(`calibration.json`). Scores on phantoms that neither training nor calibration saw are in
MODEL_CARD.md of the project.
"""


def train_checkpoint(
    corpus: Path, work: Path, out: Path, config: TrainConfig, log: Log | None = None, command: str = ""
) -> Path:
    """Corpus -> trained, calibrated checkpoint directory. Resumable through `work`."""
    model = pretrain(corpus, work, config, log=log, validate=score_findings)
    return finish(model, corpus, work, out, command)


def finish(model: MLAModel, corpus: Path, training: Path, out: Path, command: str) -> Path:
    """Calibrates on the validation split and writes the checkpoint."""
    held_out = read_examples(corpus, "validation")
    said = predict(model, held_out)
    keys = model.config.finding_keys
    known = predict(model, read_examples(corpus, "train")[:FAMILIAR])
    calibration = calibrate(
        keys, said.probability_NF, said.present_NF, said.feature_ND, said.lung_share_N, known.feature_ND
    )
    scores = score_predictions(said, held_out, keys, model.config.sites)
    card = _card(model, corpus, training, scores, command)
    return save_checkpoint(out, model, calibration, Scope(), NAME, VERSION, card)


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
