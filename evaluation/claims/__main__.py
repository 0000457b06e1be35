"""Every claim, measured beside its control: python -m evaluation.claims

    python -m evaluation.claims --quick                     every row in its smallest size; proves nothing
    python -m evaluation.claims --rows imdb dma             some rows
    python -m evaluation.claims --out runs/claims           go on with what is there

Prints target, measured, met or missed. Exit code 0 whatever is met; 1 where something is wrong. Rows that are
done are not run again; with --rows, those that lie in OUT stand in the table too. OUT gets claims.json,
claims.md, claims.html, a picture of each row, and in rows/ what each seed gave.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from evaluation.claims.row import (
    QUICK_SEEDS,
    SEEDS,
    Result,
    Row,
    is_whole,
    machine_words,
    machines_of,
    run_row,
    show,
    shown,
    to_dict,
)
from mla_med.errors import ConfigError, MlaMedError
from mla_med.files import write_text

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
CORPUS = ROOT / "runs" / "chest_ct" / "corpus"


def rows() -> tuple[Row, ...]:
    """In the order of the table."""
    from evaluation.claims import (
        annotation,
        bridge,
        cameras,
        dapt,
        dapt_packaged,
        hffn,
        imdb,
        medpix,
        noise,
        ppt,
        pruning,
        retrieval,
        selection,
        step_time,
        text_adaptation,
    )

    return (
        selection.ROW,
        imdb.ROW,
        bridge.ROW,
        retrieval.ROW,
        noise.ROW,
        cameras.DMA,
        hffn.ROW,
        ppt.ROW,
        dapt.ROW,
        dapt_packaged.ROW,
        pruning.ROW,
        cameras.CRACKS,
        text_adaptation.ROW,
        text_adaptation.SMALL,
        medpix.ROW,
        annotation.ROW,
        step_time.ROW,
    )


def run(given: argparse.Namespace, console: Console) -> list[Result]:
    known = {row.key: row for row in rows()}
    for key in given.rows or ():
        if key not in known:
            raise ConfigError(f"No row '{key}'; there are: {', '.join(known)}.", code="NO_ROW")
    seeds = given.seeds or (QUICK_SEEDS if given.quick else SEEDS)
    out, began, results = given.out, time.perf_counter(), []

    def say(words: str) -> None:
        if not given.quiet:
            console.print(f"[{time.perf_counter() - began:5.0f} s] {words}")

    for key, row in known.items():
        if given.rows and key not in given.rows and not is_whole(row, seeds, given.quick, out):
            continue
        result = run_row(row, seeds, given.quick, out, given.data, given.corpus, say)
        results.append(result)
        say(f"{key}: {result.verdict}{': ' + result.why_not if result.why_not else ''}")
    return results


def to_markdown(results: Sequence[Result], facts: dict[str, Any]) -> str:
    lines = ["# Claims, and what was measured", "", _how(facts), ""]
    lines += ["| row | claim | target | measured [95 % over seeds] | |", "|---|---|---|---|---|"]
    for result in results:
        row = result.row
        if not result.measured:
            targets = "; ".join(target.words for target in row.targets)
            lines.append(
                f"| {row.key} | {row.claim} | {targets} | not measured: {result.why_not} | not met |"
            )
        for n, one in enumerate(result.held if result.measured else ()):
            verdict = ("met" if one.is_met else "**missed**") + (
                " (interval holds it)" if one.is_unsure else ""
            )
            if facts["quick"]:
                verdict = "quick"
            first = (row.key, row.claim) if n == 0 else ("", "")
            lines.append(f"| {first[0]} | {first[1]} | {one.target.words} | {shown(one)} | {verdict} |")
    lines += ["", "## Arms", ""]
    for result in results:
        if result.measured:
            lines += [
                f"### {result.row.key}",
                "",
                f"{result.row.measured_as}. Control: {result.row.control}.",
            ]
            lines += ["", *_arms(result), ""]
    return "\n".join(lines) + "\n"


def _how(facts: dict[str, Any]) -> str:
    machines = "; ".join(machine_words(one) for one in facts["machines"])
    words = (
        f"`{facts['command']}` on {machines}; seeds {', '.join(map(str, facts['seeds']))}. "
        "A target that is missed is printed as missed."
    )
    return (
        "The quick run: it shows that every row runs, and proves nothing. " + words
        if facts["quick"]
        else words
    )


def _arms(result: Result) -> list[str]:
    names = list(result.measured[0].arms)
    columns = list(dict.fromkeys(k for arm in result.measured[0].arms.values() for k in arm))
    lines = ["| arm | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = []
        for column in columns:
            by_seed = [m.arms.get(name, {}).get(column) for m in result.measured]
            known = [value for value in by_seed if value is not None]
            cells.append(", ".join(show(value) for value in known))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _facts(given: argparse.Namespace, results: Sequence[Result]) -> dict[str, Any]:
    """The command is that which would make the table anew, and names no folder of this machine."""
    words = ["python -m evaluation.claims", *(["--quick"] if given.quick else [])]
    if given.rows:
        words += ["--rows", *(result.row.key for result in results)]
    if given.seeds:
        words += ["--seeds", *map(str, given.seeds)]
    return {
        "command": " ".join(words),
        "machines": machines_of(results),
        "seeds": list(given.seeds or (QUICK_SEEDS if given.quick else SEEDS)),
        "quick": given.quick,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="smallest sizes, one seed; proves nothing")
    parser.add_argument("--rows", nargs="+", help="these alone")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of 0 1 2")
    parser.add_argument("--out", type=Path, help="runs/claims, or runs/claims-quick")
    parser.add_argument("--data", type=Path, default=DATA, help="real texts and images; ../shared/data")
    parser.add_argument(
        "--corpus", type=Path, default=CORPUS, help="phantoms of chest CT; runs/chest_ct/corpus"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quiet", action="store_true", help="the table alone")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    given.out = given.out or Path("runs") / ("claims-quick" if given.quick else "claims")
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    import torch

    from evaluation.claims.page import draw, to_html

    torch.set_num_threads(given.threads)
    try:
        results = run(given, console)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    facts = _facts(given, results)
    words = to_markdown(results, facts)
    whole = {"facts": facts, "rows": [to_dict(result) for result in results]}
    pictures = draw(results, given.out)
    write_text(given.out / "claims.json", json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    write_text(given.out / "claims.md", words)
    write_text(given.out / "claims.html", to_html(results, facts, pictures))
    print(words)
    print(f"{given.out / 'claims.html'} shows it")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
