"""`python -m dapt`: phantoms -> corpus -> trained, calibrated checkpoint. The one documented command."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from dapt.corpus import CorpusConfig, prepare_corpus
from dapt.finish import train_checkpoint
from dapt.train import TrainConfig
from mla_med.errors import MlaMedError, OutputError


def main() -> int:
    options = _parser().parse_args()
    began = time.perf_counter()
    try:
        corpus_config = CorpusConfig(train=options.train, seed=options.seed, workers=options.workers)
        corpus = prepare_corpus(corpus_config, options.work / "corpus", _progress)
        train_checkpoint(
            corpus,
            options.work / "training",
            options.out,
            TrainConfig(epochs=options.epochs, device=options.device, seed=options.seed),
            log=lambda row: print(json.dumps(row), flush=True),
            command=f"python -m dapt --train {options.train} --epochs {options.epochs} --seed {options.seed}",
        )
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{OutputError.code}: {error.strerror}; free some space and run it again.", file=sys.stderr)
        return 1
    print(f"{options.out} written after {(time.perf_counter() - began) / 60:.0f} minutes")
    return 0


def _parser() -> argparse.ArgumentParser:
    corpus, training = CorpusConfig(), TrainConfig()
    parser = argparse.ArgumentParser(prog="python -m dapt", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/chest_ct"), help="corpus and training state")
    parser.add_argument("--out", type=Path, default=Path("runs/chest_ct/checkpoint"), help="the checkpoint")
    parser.add_argument("--train", type=int, default=corpus.train, help="phantoms to train on")
    parser.add_argument("--epochs", type=int, default=training.epochs)
    parser.add_argument("--seed", type=int, default=corpus.seed)
    parser.add_argument("--workers", type=int, default=corpus.workers)
    parser.add_argument("--device", default=training.device, help="cpu or cuda")
    return parser


def _progress(done: int, total: int) -> None:
    if done % 100 == 0 or done == total:
        print(f"corpus {done}/{total}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
