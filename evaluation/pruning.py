"""A checkpoint and what was pruned of it (several seeds) -> what is faster, and what is still found and said.

    python -m evaluation.pruning WHOLE --corpus CORPUS --out DIR [--seeds 0 1 2] [--quick]
    python -m evaluation.pruning WHOLE --pruned A [B C] --out DIR

The first makes what the second is given, by `mla-med prune`, into DIR/seed_0 and so on; what is there already
is not made again. `--quick` shows that it runs, with four steps of recovery and eight phantoms.

On phantoms that nobody trains on: F1 of findings and BLEU-4 (evaluation/exported.py), by those of the whole
model. Times: the encoder (image and context to findings), and the model's part of a draft (with the writing),
every model in turn in each round; the median ratio within a round, lowest and highest. The control is the
whole model with as many channels at zero as the first pruned one lacks: a mask saves nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluation.exported import Patient, Said, draft_of, patients_of, said_by
from evaluation.selection import processor
from evaluation.targets import Spread, Target, targets_table
from evaluation.telling import tell
from mla_med.errors import ConfigError, MlaMedError
from mla_med.imaging.grid import Preprocessing
from mla_med.looking import see
from mla_med.model import CHECKPOINTS
from mla_med.model.checkpoint import Checkpoint, load_checkpoint
from mla_med.model.mla import MLAModel
from mla_med.model.narrow import LAYERS
from mla_med.report.context import context_text

WISH = ("--latency", "0.56")
"""A little less than the target: a time measured anew lies to either side."""
QUICK = ("--studies", "4", "--cubes", "4", "--steps", "4", "--batch", "2", "--latency", "0.9")


@dataclass(frozen=True, slots=True)
class Size:
    phantoms: int
    rounds: int


FULL, LOOK = Size(100, 15), Size(8, 2)


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    parameters: int
    encoder: Spread
    """Over rounds, by the whole model."""
    draft: Spread
    f1: float
    bleu4: float
    complaints: int


def prune(whole: Path, corpus: Path, folder: Path, seed: int, quick: bool) -> Path:
    """By the command that users have; what is there already is taken as it is."""
    if not (folder / "pruned.json").is_file():
        threads = str(torch.get_num_threads())  # what is timed now was chosen with as many
        wish = ("--seed", str(seed), "--threads", threads, *(QUICK if quick else WISH))
        given = (str(whole), "--corpus", str(corpus), "--out", str(folder), *wish)
        done = subprocess.run(
            [sys.executable, "-m", "mla_med.cli", "prune", *given], stdout=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            raise ConfigError(f"Pruning seed {seed} ended with {done.returncode}; its own words stand above.")
    return folder


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


def take_turns(works: Sequence[Callable[[], Any]], rounds: int) -> list[Spread]:
    """Of each after the first, by the first."""
    spent: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        for work, times in zip(works, spent, strict=True):
            began = time.perf_counter()
            work()
            if number:
                times.append(time.perf_counter() - began)
    return [Spread.of_ratios(times, spent[0]) for times in spent[1:]]


def encoding(checkpoint: Checkpoint, patient: Patient) -> Callable[[], Any]:
    context = context_text(patient.context)
    return lambda: see(patient.prepared, context, checkpoint.model, checkpoint.scope.examination)


def drafting(checkpoint: Checkpoint, patient: Patient) -> Callable[[], Any]:
    return lambda: draft_of(checkpoint, patient)


def run(given: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    source = CHECKPOINTS.get(str(given.whole), given.whole)
    folders = given.pruned or [
        prune(source, given.corpus, given.out / f"seed_{seed}", seed, given.quick) for seed in given.seeds
    ]
    return compare(source, folders, LOOK if given.quick else FULL)


def compare(source: Path, folders: Sequence[Path], size: Size) -> tuple[list[Row], dict[str, Any]]:
    """A row for each of what was pruned, and of the whole model what they are compared with."""
    whole = load_checkpoint(source)
    others = [load_checkpoint(folder) for folder in folders]
    for folder, one in zip(folders, others, strict=True):
        if not one.model.config.pruned:
            raise ConfigError(f"{folder} was not pruned. Make one with mla-med prune.", code="NOT_PRUNED")
    settings = Preprocessing.from_dict(whole.model.config.preprocessing)
    patients = tuple(patients_of(whole.scope.examination, settings, size.phantoms))
    control = replace(whole, model=masked_like(whole.model, others[0].model))
    timed = [whole, *others, control]
    encoders = take_turns([encoding(one, patients[0]) for one in timed], size.rounds)
    drafts = take_turns([drafting(one, patients[0]) for one in timed], size.rounds)
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
        for n, (folder, one) in enumerate(zip(folders, others, strict=True))
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
        "rounds": size.rounds,
        "threads": torch.get_num_threads(),
        "processor": processor(),
    }
    return rows, facts


def targets_of(rows: Sequence[Row], facts: dict[str, Any]) -> list[Target]:
    """Over seeds, by the whole model."""
    return [
        Target("encoder's time", Spread.of(row.encoder.median for row in rows), 0.58, at_most=True),
        Target(
            "the model's time in a draft", Spread.of(row.draft.median for row in rows), 0.70, at_most=True
        ),
        Target("F1 of findings", Spread.of(row.f1 / max(facts["f1"], 1e-9) for row in rows), 0.97),
        Target("BLEU-4", Spread.of(row.bleu4 / max(facts["bleu4"], 1e-9) for row in rows), 0.97),
        Target("encoder's time with a mask", facts["masked_encoder"], 0.97),
    ]


def to_markdown(rows: Sequence[Row], facts: dict[str, Any]) -> str:
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
            f"| {row.name} | {row.parameters / 1e6:.2f} | {row.encoder.to_text()} | {row.draft.to_text()} | "
            f"{row.f1:.3f} | {row.bleu4:.3f} | {row.complaints} |"
        )
    lines.append(
        f"| masked | {facts['parameters'] / 1e6:.2f} | {facts['masked_encoder'].to_text()} | | | | |"
    )
    lines += [
        "",
        f"Over {len(rows)} seed(s), by the whole model:",
        "",
        *targets_table(targets_of(rows, facts)),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.pruning", description=__doc__)
    parser.add_argument("whole", type=Path, help="a checkpoint folder, or chest_ct or brain_mr")
    made = parser.add_mutually_exclusive_group(required=True)
    made.add_argument("--pruned", type=Path, nargs="+", help="what mla-med prune made, by several seeds")
    made.add_argument("--corpus", type=Path, help="make them of this corpus first")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="to see that it runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="for the checkpoints and pruning.json, .md")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    try:
        rows, facts = run(given)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    values: dict[str, Any] = {"facts": facts | {"masked_encoder": asdict(facts["masked_encoder"])}}
    values |= {"rows": [asdict(row) for row in rows]}
    tell("pruning", to_markdown(rows, facts), values, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
