"""`python -m evaluation REFERENCES DRAFTS --out DIR`: what `mla-med evaluate` does, alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.pairs import KINDS
from evaluation.run import evaluate_reports
from evaluation.statistics import RESAMPLES, SEED
from evaluation.systems import Options
from evaluation.tables import to_markdown
from evaluation.thresholds import read_threshold
from mla_med.errors import MlaMedError


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        thresholds = [read_threshold(text) for text in given.fail_under]
        scores = evaluate_reports(
            given.references,
            given.drafts,
            given.out,
            options=Options(
                protocol=given.protocol,
                examination=given.examination,
                language=given.language,
                resamples=given.resamples,
                seed=given.seed,
                judges=tuple(given.judge),
            ),
            train=given.train,
            other=given.compare,
            allow=[word.strip() for word in given.allow.split(",") if word.strip()],
        )
        missed = [words for threshold in thresholds if (words := threshold.missed(scores))]
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    print(to_markdown(scores))
    print(f"{given.out / 'page.html'}")
    for words in missed:
        print(f"THRESHOLD: {words}.", file=sys.stderr)
    return 3 if missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation", description="Score draft reports beside the floors any model must beat."
    )
    parser.add_argument("references", type=Path, help='JSON lines {"id": ..., "report": ..., ...}, or CSV')
    parser.add_argument("drafts", type=Path, help="the same ids, from any system")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--protocol", default="", help="how words are counted (coco; zh for Chinese)")
    parser.add_argument("--examination", default="chest_ct", help="whose findings are read (%(default)s)")
    parser.add_argument("--language", default="en", help="of the reports (%(default)s)")
    parser.add_argument("--train", type=Path, help="training reports, to take the floors from")
    parser.add_argument("--compare", type=Path, metavar="OTHER", help="drafts of another system")
    parser.add_argument("--fail-under", action="append", default=[], metavar="NAME=VALUE", help="else exit 3")
    parser.add_argument("--allow", default="", help=f"{', '.join(KINDS)} (by commas) or all: count as empty")
    parser.add_argument("--judge", action="append", default=[], help="a network of evaluation.judges")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="of the bootstrap (%(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of the bootstrap (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
