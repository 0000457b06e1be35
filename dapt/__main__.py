"""`python -m dapt`: phantoms -> corpus -> trained, calibrated checkpoint. The one documented command."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from dapt.corpus import CorpusConfig, prepare_corpus
from dapt.finish import finish
from dapt.receipts import score_findings
from dapt.train import TrainConfig, pretrain
from mla_med.errors import MlaMedError


def main() -> int:
    options = _parser().parse_args()
    corpus_config = CorpusConfig(train=options.train, seed=options.seed, workers=options.workers)
    began = time.perf_counter()
    try:
        corpus = prepare_corpus(corpus_config, options.work / "corpus", _progress)
        model = pretrain(
            corpus,
            options.work / "training",
            TrainConfig(epochs=options.epochs, device=options.device, seed=options.seed),
            log=lambda row: print(json.dumps(row), flush=True),
            validate=score_findings,
        )
        command = "python -m dapt " + " ".join(sys.argv[1:])
        seconds = time.perf_counter() - began
        finish(model, corpus, options.work / "training", options.out, seconds, command.strip())
    except MlaMedError as error:
        print(f"{error.code}: {error}")
        return 1
    print(f"{options.out} written after {(time.perf_counter() - began) / 60:.0f} minutes")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dapt", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/chest_ct"), help="corpus and training state")
    parser.add_argument("--out", type=Path, default=Path("runs/chest_ct/checkpoint"), help="the checkpoint")
    parser.add_argument("--train", type=int, default=CorpusConfig.train, help="phantoms to train on")
    parser.add_argument("--epochs", type=int, default=TrainConfig.epochs)
    parser.add_argument("--seed", type=int, default=CorpusConfig.seed)
    parser.add_argument("--workers", type=int, default=CorpusConfig.workers)
    parser.add_argument("--device", default=TrainConfig.device, help="cpu or cuda")
    return parser


def _progress(done: int, total: int) -> None:
    if done % 100 == 0 or done == total:
        print(f"corpus {done}/{total}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
