"""A checkpoint and what was pruned of it (several seeds) -> what is faster, and what is still found and said.

    python -m evaluation.pruning WHOLE --pruned A [B C] [--n 100] [--rounds 15] [--threads 2] [--out DIR]

On phantoms that nobody trains on: F1 of findings and BLEU-4 (evaluation/exported.py), by those of the whole
model. Times: the encoder (image and context to findings), and the model's part of a draft (with the writing),
every model in turn in each round; the median ratio within a round, lowest and highest. The control is the
whole model with as many channels at zero as the first pruned one lacks: a mask saves nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median, pstdev
from typing import Any

import torch
from torch import nn

from evaluation.exported import Patient, Said, draft_of, patients_of, said_by
from evaluation.selection import processor
from mla_med.errors import ConfigError, MlaMedError
from mla_med.files import write_text
from mla_med.imaging.grid import Preprocessing
from mla_med.looking import see
from mla_med.model.checkpoint import Checkpoint, load_checkpoint
from mla_med.model.mla import MLAModel
from mla_med.model.narrow import LAYERS
from mla_med.report.context import context_text

BARS = {"encoder": 0.58, "draft": 0.70, "F1": 0.97, "BLEU-4": 0.97, "masked": 0.97}
"""At most, at most, at least, at least, at least: by the whole model."""


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    parameters: int
    encoder: tuple[float, float, float]
    """Median, lowest and highest over rounds, by the whole model."""
    draft: tuple[float, float, float]
    f1: float
    bleu4: float
    complaints: int


def masked_like(model: MLAModel, pruned: MLAModel) -> MLAModel:
    """The model with the last rows of every layer at zero that the pruned one lacks: which ones does not
    matter for how long it takes."""
    copy = deepcopy(model)
    small = dict(pruned.named_modules())
    with torch.no_grad():
        for name, layer in copy.named_modules():
            if isinstance(layer, LAYERS):
                rows: Any = small[name].weight.shape[0]
                layer.weight[rows:] = 0
                if isinstance(layer.bias, nn.Parameter):
                    layer.bias[rows:] = 0
    return copy


def take_turns(works: Sequence[Callable[[], Any]], rounds: int) -> list[tuple[float, float, float]]:
    """Of each after the first, by the first: median, lowest and highest over rounds."""
    spent: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        for work, times in zip(works, spent, strict=True):
            began = time.perf_counter()
            work()
            if number:
                times.append(time.perf_counter() - began)
    found = []
    for times in spent[1:]:
        ratios = [own / whole for own, whole in zip(times, spent[0], strict=True)]
        found.append((median(ratios), min(ratios), max(ratios)))
    return found


def encoding(checkpoint: Checkpoint, patient: Patient) -> Callable[[], Any]:
    context = context_text(patient.context)
    return lambda: see(patient.prepared, context, checkpoint.model, checkpoint.scope.examination)


def drafting(checkpoint: Checkpoint, patient: Patient) -> Callable[[], Any]:
    return lambda: draft_of(checkpoint, patient)


def run(given: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    whole = load_checkpoint(given.whole)
    others = [load_checkpoint(folder) for folder in given.pruned]
    for folder, one in zip(given.pruned, others, strict=True):
        if not one.model.config.pruned:
            raise ConfigError(f"{folder} was not pruned. Make one with mla-med prune.", code="NOT_PRUNED")
    settings = Preprocessing.from_dict(whole.model.config.preprocessing)
    patients = tuple(patients_of(whole.scope.examination, settings, given.n))
    control = replace(whole, model=masked_like(whole.model, others[0].model))
    timed = [whole, *others, control]
    encoders = take_turns([encoding(one, patients[0]) for one in timed], given.rounds)
    drafts = take_turns([drafting(one, patients[0]) for one in timed], given.rounds)
    said: list[Said] = [said_by(one, patients) for one in (whole, *others)]
    rows = [
        Row(
            str(folder),
            sum(p.numel() for p in one.model.parameters()),
            encoders[n],
            drafts[n],
            said[n + 1].f1,
            said[n + 1].bleu4,
            said[n + 1].complaints,
        )
        for n, (folder, one) in enumerate(zip(given.pruned, others, strict=True))
    ]
    facts = {
        "name": whole.name,
        "sha256": whole.weights_sha256,
        "parameters": sum(p.numel() for p in whole.model.parameters()),
        "f1": said[0].f1,
        "bleu4": said[0].bleu4,
        "complaints": said[0].complaints,
        "masked_encoder": encoders[-1],
        "patients": len(patients),
        "rounds": given.rounds,
        "threads": torch.get_num_threads(),
        "processor": processor(),
    }
    return rows, facts


def to_markdown(rows: Sequence[Row], facts: dict[str, Any]) -> str:
    def times(values: tuple[float, float, float]) -> str:
        return f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"

    lines = [
        "# Pruned beside whole",
        "",
        f"{facts['name']} ({facts['sha256'][:12]}), {facts['patients']} phantoms, {facts['rounds']} rounds, "
        f"{facts['threads']} thread(s) of {facts['processor']}. Times by those of the whole model.",
        "",
        "| model | parameters, M | encoder | draft, model's part | F1 | BLEU-4 | complaints |",
        "|---|---|---|---|---|---|---|",
        f"| whole | {facts['parameters'] / 1e6:.2f} | 1 | 1 | {facts['f1']:.3f} | {facts['bleu4']:.3f} | "
        f"{facts['complaints']} |",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.parameters / 1e6:.2f} | {times(row.encoder)} | {times(row.draft)} | "
            f"{row.f1:.3f} | {row.bleu4:.3f} | {row.complaints} |"
        )
    lines.append(f"| masked | {facts['parameters'] / 1e6:.2f} | {times(facts['masked_encoder'])} | | | | |")
    measured = {
        "encoder": [row.encoder[0] for row in rows],
        "draft": [row.draft[0] for row in rows],
        "F1": [row.f1 / max(facts["f1"], 1e-9) for row in rows],
        "BLEU-4": [row.bleu4 / max(facts["bleu4"], 1e-9) for row in rows],
        "masked": [facts["masked_encoder"][0]],
    }
    lines += ["", "| by the whole model | mean | deviation over seeds | bar | met |", "|---|---|---|---|---|"]
    for name, values in measured.items():
        upper = name in ("encoder", "draft")
        met = all(v <= BARS[name] if upper else v >= BARS[name] for v in values)
        bar = f"{'at most' if upper else 'at least'} {BARS[name]:.2f}"
        lines.append(
            f"| {name} | {mean(values):.3f} | {pstdev(values):.3f} | {bar} | {'yes' if met else 'no'} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.pruning", description=__doc__)
    parser.add_argument("whole", type=Path)
    parser.add_argument("--pruned", type=Path, nargs="+", required=True)
    parser.add_argument("--n", type=int, default=100, help="phantoms")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="for pruning.json and pruning.md")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    try:
        rows, facts = run(given)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    words = to_markdown(rows, facts)
    print(words)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        values = {"facts": facts, "rows": [asdict(row) for row in rows]}
        write_text(given.out / "pruning.json", json.dumps(values, indent=1) + "\n")
        write_text(given.out / "pruning.md", words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
