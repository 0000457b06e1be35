"""Corpus -> what each level of the model is worth: every fusion type on the same budget, in one table.

    python -m dapt.ablation runs/chest_ct/corpus --epochs 3 --limit 600 --seeds 0 1 2 --out runs/ablation

Same examples in the same order, same steps, same learning rate; scored on the test split at the thresholds of
best F1 on the validation split. Resumable: a training that has ended is not run again, one that was killed
goes on from its last epoch. Writes ablation.json and ablation.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from dapt.receipts import Predictions, predict, score_predictions
from dapt.train import TrainConfig, pretrain
from mla_med.corpus import Example, read_examples
from mla_med.errors import MlaMedError
from mla_med.files import write_text
from mla_med.model.calibrate import best_threshold
from mla_med.model.config import FUSION_TYPES

SHOWN = ("macro F1", "side accuracy", "site accuracy", "median size error mm")


def score_fusion(
    corpus: Path, work: Path, config: TrainConfig, limit: int | None, console: Console
) -> dict[str, float]:
    """Trains one model (unless its scores are there) and scores it on the test split."""
    done = work / "scores.json"
    if done.is_file():
        return json.loads(done.read_text())
    name = f"{config.fusion_type}, seed {config.seed}"

    def tell(row: dict) -> None:
        if "finished" in row or row.get("step", 0) % 100 == 0:
            console.print(f"{name}: {row}", highlight=False)

    model = pretrain(corpus, work, config, log=tell, limit=limit)
    held_out, test = read_examples(corpus, "validation"), read_examples(corpus, "test")
    scores = score_predictions(
        _at_best_thresholds(predict(model, test), predict(model, held_out)),
        test,
        model.config.finding_keys,
        model.config.sites,
    )
    scores["seconds of an encoding"] = _seconds(model, test)
    write_text(done, json.dumps(scores, indent=1) + "\n")
    return scores


def _at_best_thresholds(said: Predictions, held_out: Predictions) -> Predictions:
    """Probabilities moved so that 0.5 is the threshold of best F1 on the other examples."""
    threshold_F = np.array(
        [
            best_threshold(held_out.probability_NF[:, f], held_out.present_NF[:, f])
            for f in range(held_out.present_NF.shape[1])
        ]
    )
    return replace(said, probability_NF=said.probability_NF - threshold_F + 0.5)


@torch.no_grad()
def _seconds(model, examples: tuple[Example, ...], repeats: int = 5) -> float:
    """Median time of one patient through encoder, fusion and findings."""
    import time

    from dapt.collate import collate
    from mla_med.imaging.transforms import Preprocessing

    inputs = collate(examples[:1], model, Preprocessing.from_dict(model.config.preprocessing))
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        model.find(
            model.encode(inputs["image_BCIJK"], inputs["text"], inputs["present_BC"], inputs["affine_B44"])
        )
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


def table_of(scores: dict[str, list[dict[str, float]]]) -> str:
    """By fusion type, the scores of each seed -> a Markdown table of mean and standard deviation."""
    columns = (*SHOWN, "seconds of an encoding")
    lines = ["| fusion | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, runs in scores.items():
        cells = []
        for column in columns:
            values = np.array([run[column] for run in runs], float)
            spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.3f}{spread}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dapt.ablation", description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--fusion", nargs="+", choices=FUSION_TYPES, default=FUSION_TYPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--limit", type=int, help="train on the first so many examples only")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    console = Console(stderr=True)
    scores: dict[str, list[dict[str, float]]] = {}
    try:
        for seed in given.seeds:
            for name in given.fusion:
                config = TrainConfig(
                    text_epochs=0,
                    rounds=0,
                    epochs=given.epochs,
                    fusion_type=name,
                    seed=seed,
                    device=given.device,
                )
                work = given.out / f"{name}-{seed}"
                scores.setdefault(name, []).append(
                    score_fusion(given.corpus, work, config, given.limit, console)
                )
        write_text(given.out / "ablation.json", json.dumps(scores, indent=1) + "\n")
        write_text(given.out / "ablation.md", table_of(scores))
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    print(table_of(scores))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
