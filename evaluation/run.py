"""References and drafts of any system -> Scores, and a folder with the page, the tables and metrics.json.

The same inputs, seed and versions give the same files, byte for byte. Knows no network: findings come
from rules, and networks that judge reports run in processes of their own (`judges`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from evaluation.calibration import reliabilities
from evaluation.findings import Parse, Reader, Reading, reader_of
from evaluation.judges import judge_reports
from evaluation.leakage import leakage_words
from evaluation.page import to_html
from evaluation.pairs import Pairs, read_pairs, read_texts
from evaluation.results import Scores
from evaluation.systems import Options, Systems
from evaluation.tables import (
    to_cases_csv,
    to_comparison_csv,
    to_findings_csv,
    to_json,
    to_markdown,
    to_model_card,
    to_subgroups_csv,
)
from mla_med.errors import ConfigError, OutputError, ReportError
from mla_med.files import write_text

NUM_WORST = 20


def evaluate_reports(
    references: Path,
    drafts: Path,
    out: Path,
    *,
    options: Options | None = None,
    train: Path | None = None,
    other: Path | None = None,
    allow: Collection[str] = (),
    parse: Parse | None = None,
) -> Scores:
    """`train`: reports from which the floors are taken, instead of the references. `other`: the drafts of
    another system, to compare with. `parse`: text -> findings, instead of the project's extractor."""
    options = options or Options()
    if options.resamples < 1:
        raise ConfigError(f"{options.resamples} resamples give no interval; take 1000 or more.")
    if options.seed < 0:
        raise ConfigError(f"The seed is {options.seed}; take 0 or more.")
    read = _with_parse(parse) if parse else reader_of(options.examination, options.language)
    pairs = read_pairs(references, drafts, allow)
    source = tuple(read_texts(train)) if train else None
    theirs = read_pairs(references, other, allow) if other else None
    scores = score_pairs(pairs, read, options, source, theirs)
    roles = {"references": references, "drafts": drafts, "train": train, "compared with": other}
    inputs = {role: _input(path) for role, path in roles.items() if path is not None}
    leaks = leakage_words(references, train) if train else ()
    scores = replace(scores, facts={**scores.facts, "inputs": inputs, "leakage": list(leaks)})
    write_results(scores, out)
    return scores


def score_pairs(
    pairs: Pairs,
    read: Reader,
    options: Options | None = None,
    source: Sequence[str] | None = None,
    other: Pairs | None = None,
) -> Scores:
    """The whole measurement, without files."""
    options = options or Options()
    systems = Systems(pairs, read, options, source)
    cases = [systems.case(k) for k in range(len(pairs.pairs))]
    order = sorted(range(len(cases)), key=lambda k: (-cases[k].num_errors, cases[k].scores["BLEU-4"]))
    return Scores(
        rows=tuple(systems.row(name) for name in systems.ours.measures),
        findings=tuple(systems.finding_row(code) for code in systems.codes),
        cases=tuple(cases),
        worst=tuple(systems.show(cases[k], k) for k in order[:NUM_WORST]),
        floors=systems.describe(),
        facts=systems.facts(),
        subgroups=systems.subgroups(),
        card=systems.card(),
        reliabilities=reliabilities(systems.confidences, systems.ours.counts.reference_RF, systems.codes),
        risk=systems.risk(),
        comparison=systems.compare(other) if other else (),
        judged=judge_reports(systems.references, systems.drafts, options.judges, options.language),
    )


def write_results(scores: Scores, out: Path) -> None:
    """Each file appears whole or not at all; metrics.json comes last, so it vouches for the rest."""
    files = {
        "table.md": to_markdown(scores),
        "model_card.md": to_model_card(scores),
        "per_finding.csv": to_findings_csv(scores),
        "per_case.csv": to_cases_csv(scores),
        "subgroups.csv": to_subgroups_csv(scores),
        "page.html": to_html(scores),
    }
    if scores.comparison:
        files["comparison.csv"] = to_comparison_csv(scores)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "metrics.json").unlink(missing_ok=True)
        for name, text in {**files, "metrics.json": to_json(scores)}.items():
            write_text(out / name, text)
    except OSError as error:
        raise OutputError(f"Cannot write the results to {out}: {error.strerror}.") from error


def _with_parse(parse: Parse) -> Reader:
    return lambda text: Reading(parse(text))


def _input(path: Path) -> dict[str, str]:
    try:
        return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    except OSError as error:
        raise ReportError(f"Cannot read {path}: {error.strerror}.") from error
