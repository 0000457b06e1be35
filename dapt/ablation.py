"""Corpus -> what each level of the model is worth: every fusion type on the same budget, in one table.

    python -m dapt.ablation runs/chest_ct/corpus --epochs 3 --limit 600 --seeds 0 1 2 --out runs/ablation
    python -m dapt.ablation runs/chest_ct/corpus --image-encoder CHECKPOINT --test runs/nine_corpus

Same examples in the same order, same steps, same learning rate; scored on the test split, or on all patients
of another corpus, at the thresholds of best F1 on the validation split. With `--image-encoder` all of them
have that of the checkpoint, which does not learn: what is compared is what comes after it, in half of a
training's time or less. Resumable: a training that has ended is not run again, one that was killed goes on
from its last epoch. Writes ablation.json and ablation.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from scipy import stats

from dapt.receipts import Predictions, predict, score_predictions
from dapt.train import pretrain
from dapt.train_config import TrainConfig
from mla_med.corpus import Example, read_examples
from mla_med.errors import ConfigError, MlaMedError
from mla_med.files import write_json, write_text
from mla_med.memory import keep_freed
from mla_med.model.calibrate import best_threshold
from mla_med.model.checkpoint import load_checkpoint
from mla_med.model.config import FUSION_TYPES

SHOWN = ("macro F1", "side accuracy", "site accuracy", "median size error mm")


@dataclass(frozen=True, slots=True)
class Bench:
    """What every training has in common."""

    corpus: Path
    test: Path | None = None
    """Another corpus, all of whose patients are unseen; none: the test split of the first."""
    image_encoder: Path | None = None
    """A checkpoint whose image encoder all have."""
    limit: int | None = None

    def unseen(self) -> tuple[Example, ...]:
        return read_examples(self.corpus, "test") if self.test is None else read_examples(self.test, "all")


def score_fusion(bench: Bench, work: Path, config: TrainConfig, console: Console) -> dict[str, float]:
    """Trains one model (unless its scores are there) and scores it on patients it has not seen."""
    done = work / "scores.json"
    if done.is_file():
        return json.loads(done.read_text())
    name = f"{config.fusion_type}, seed {config.seed}"

    def tell(row: dict) -> None:
        if "finished" in row or row.get("step", 0) % 100 == 0:
            console.print(f"{name}: {row}", highlight=False)

    model = pretrain(
        bench.corpus, work, config, log=tell, limit=bench.limit, image_encoder=bench.image_encoder
    )
    held_out, test = read_examples(bench.corpus, "validation"), bench.unseen()
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
    """By fusion type, the scores of each seed -> a Markdown table of mean and standard deviation, and of what
    each type is worth beside `full` by the same seeds (mean, 95 % interval of Student's t)."""
    columns = (*SHOWN, "seconds of an encoding")
    lines = [
        "| fusion | " + " | ".join(columns) + " | macro F1 above that of full |",
        "|---" * (len(columns) + 2) + "|",
    ]
    whole = [run["macro F1"] for run in scores.get("full", ())]
    for name, runs in scores.items():
        cells = []
        for column in columns:
            values = np.array([run[column] for run in runs], float)
            spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.3f}{spread}")
        cells.append("" if name == "full" else _gap([run["macro F1"] for run in runs], whole))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _gap(ours: Sequence[float], others: Sequence[float]) -> str:
    if not others:
        return ""
    gaps = np.subtract(ours, others)
    if len(gaps) < 2:
        return f"{gaps.mean():+.3f}"
    half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5
    return f"{gaps.mean():+.3f} ({gaps.mean() - half:+.3f} to {gaps.mean() + half:+.3f})"


def _same_as_before(out: Path, bench: Bench, config: TrainConfig) -> None:
    """ConfigError where the folder holds trainings of other settings."""
    common = replace(config, fusion_type="full", seed=0).to_dict() | {
        "taught by": _digest_of(read_examples(bench.corpus, "train")[: bench.limit]),
        "scored on": _digest_of(bench.unseen()),
        "image encoder": bench.image_encoder and load_checkpoint(bench.image_encoder).weights_sha256,
    }
    path = out / "settings.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != common:
        raise ConfigError(
            f"{out} holds trainings with other settings (settings.json there). Use another folder, or "
            "delete it to start again.",
            code="TRAINING_DIFFERS",
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, common)


def _digest_of(examples: tuple[Example, ...]) -> str:
    return sha256(" ".join(example.id for example in examples).encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dapt.ablation", description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--fusion", nargs="+", choices=FUSION_TYPES, default=FUSION_TYPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--limit", type=int, help="train on the first so many examples only")
    parser.add_argument("--image-encoder", type=Path, help="a checkpoint whose image encoder all have")
    parser.add_argument("--test", type=Path, help="another corpus that all are scored on")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    keep_freed()
    console = Console(stderr=True)
    bench = Bench(given.corpus, given.test, given.image_encoder, given.limit)
    scores: dict[str, list[dict[str, float]]] = {}
    try:
        base = TrainConfig(
            text_epochs=0,
            rounds=0,
            epochs=given.epochs,
            freeze_image_encoder=given.image_encoder is not None,
            patches=0 if given.image_encoder else TrainConfig().patches,
            device=given.device,
        )
        _same_as_before(given.out, bench, base)
        for seed in given.seeds:
            for name in given.fusion:
                config, work = replace(base, fusion_type=name, seed=seed), given.out / f"{name}-{seed}"
                scores.setdefault(name, []).append(score_fusion(bench, work, config, console))
        write_text(given.out / "ablation.json", json.dumps(scores, indent=1) + "\n")
        write_text(given.out / "ablation.md", table_of(scores))
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    print(table_of(scores))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
