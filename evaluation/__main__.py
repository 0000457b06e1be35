"""`python -m evaluation REFERENCES.jsonl DRAFTS.jsonl --out DIR`: one function, from a shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.page import to_markdown
from evaluation.run import evaluate_reports
from evaluation.statistics import RESAMPLES, SEED
from mla_med.errors import MlaMedError


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        scores = evaluate_reports(
            given.references,
            given.drafts,
            given.out,
            train=given.train,
            allow_missing=given.allow_missing,
            resamples=given.resamples,
            seed=given.seed,
        )
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    print(to_markdown(scores))
    print(f"{given.out / 'page.html'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation", description="Score draft reports beside the floors any model must beat."
    )
    parser.add_argument("references", type=Path, help='JSON lines {"id": ..., "report": ..., "patient": ...}')
    parser.add_argument("drafts", type=Path, help='JSON lines {"id": ..., "report": ...}')
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--train", type=Path, help="take the constant floors from these reports")
    parser.add_argument("--allow-missing", action="store_true", help="score a missing draft as an empty one")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="of the bootstrap (%(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of the bootstrap (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
