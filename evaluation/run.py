"""Two files of JSON lines -> Scores, metrics.json, table.md, per_finding.csv and page.html.

A line is {"id": ..., "report": ...}; in the references it may hold "patient". Lines end at "\\n" and
nowhere else. The same inputs, seed and versions give the same four files, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from evaluation.findings import (
    FindingCounts,
    Findings,
    Parse,
    code_measures,
    count_findings,
    finding_measures,
)
from evaluation.floors import RANDOM_SEED, describe_floors, floor_findings, floor_texts
from evaluation.page import to_csv, to_html, to_json, to_markdown
from evaluation.score import Case, FindingRow, Row, Scores
from evaluation.statistics import (
    RESAMPLES,
    SEED,
    Estimate,
    Measure,
    Resamples,
    draw_resamples,
    estimate,
    to_gap,
    to_score,
)
from evaluation.text import bleu_measures, count_ngrams, sentence_bleu4
from mla_med.errors import ConfigError, OutputError, ReportError
from mla_med.report.schema import CHEST_CT

NUM_WORST = 20
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Line:
    report: str
    patient: str | None


@dataclass(frozen=True, slots=True)
class ReportFile:
    name: str
    sha256: str
    lines: Mapping[str, Line]


@dataclass(frozen=True, slots=True)
class Pairs:
    """References and drafts in the same order; a missing draft is an empty text."""

    ids: tuple[str, ...]
    references: tuple[str, ...]
    drafts: tuple[str, ...]
    groups: tuple[str, ...]
    grouped_by: str
    missing: tuple[str, ...]

    @property
    def coverage(self) -> float:
        return 1 - len(self.missing) / len(self.ids)


@dataclass(frozen=True, slots=True)
class System:
    """The drafts or a floor, measured."""

    measures: Mapping[str, Measure]
    estimates: Mapping[str, Estimate]


def evaluate_reports(
    references: Path,
    drafts: Path,
    out: Path,
    *,
    train: Path | None = None,
    allow_missing: bool = False,
    parse: Parse | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Scores:
    """`train`: reports from which the constant floors are taken, instead of the references.
    `parse`: text -> findings; the project's own parser if None."""
    if resamples < 1:
        raise ConfigError(f"{resamples} resamples give no interval; take 1000 or more.")
    files = {"references": read_reports(references), "drafts": read_reports(drafts)}
    pairs = pair_reports(files["references"], files["drafts"], allow_missing)
    source = pairs.references
    if train is not None:
        files["train"] = read_reports(train)
        source = tuple(line.report for line in files["train"].lines.values())
    parsed = parse_texts({*pairs.references, *pairs.drafts, *source}, parse or _report_parser())
    drawn = draw_resamples(pairs.groups, pairs.grouped_by, resamples, seed)
    scores = score_pairs(pairs, source, "training reports" if train else "references", parsed, drawn)
    inputs = {
        role: {"file": file.name, "sha256": file.sha256, "reports": len(file.lines)}
        for role, file in files.items()
    }
    scores = replace(scores, facts={**scores.facts, "inputs": inputs})
    write_results(scores, out)
    return scores


def read_reports(path: Path) -> ReportFile:
    data = _read_bytes(path)
    lines: dict[str, Line] = {}
    for number, text in enumerate(_decode(data, path).split("\n"), start=1):
        if text.strip():
            key, line = _read_line(text, f"{path.name}, line {number}")
            if key in lines:
                raise ReportError(f"{path.name}, line {number}: id {key!r} stood there before; keep one.")
            lines[key] = line
    if not lines:
        raise ReportError(
            f'{path.name} holds no reports; expected lines like {{"id": "1", "report": "..."}}.'
        )
    return ReportFile(path.name, hashlib.sha256(data).hexdigest(), lines)


def pair_reports(references: ReportFile, drafts: ReportFile, allow_missing: bool = False) -> Pairs:
    unknown = [key for key in drafts.lines if key not in references.lines]
    if unknown:
        raise ReportError(
            f"{_some(unknown)} of {drafts.name} not in {references.name}. Are these drafts of another set?"
        )
    missing = [key for key in references.lines if key not in drafts.lines]
    if missing and not allow_missing:
        raise ReportError(
            f"{_some(missing)} of {references.name} without a draft in {drafts.name}. "
            "Draft them, or allow missing drafts, which then score as empty reports."
        )
    groups, grouped_by = _groups(references)
    return Pairs(
        ids=tuple(references.lines),
        references=tuple(line.report for line in references.lines.values()),
        drafts=tuple(drafts.lines[k].report if k in drafts.lines else "" for k in references.lines),
        groups=groups,
        grouped_by=grouped_by,
        missing=tuple(missing),
    )


def parse_texts(texts: Iterable[str], parse: Parse) -> dict[str, Findings | None]:
    """None for a text that the parser refuses. An empty text states nothing."""
    parsed: dict[str, Findings | None] = {}
    for text in sorted(texts):
        try:
            parsed[text] = parse(text) if text.strip() else ()
        except ReportError:  # a draft may be any text; that it does not parse is a result
            parsed[text] = None
    return parsed


def score_pairs(
    pairs: Pairs,
    source: Sequence[str],
    source_name: str,
    parsed: Mapping[str, Findings | None],
    drawn: Resamples,
) -> Scores:
    """The whole measurement, without files."""

    def parse(text: str) -> Findings:
        return parsed[text] or ()

    references = [parse(text) for text in pairs.references]
    texts = {
        "drafts": list(pairs.drafts),
        **floor_texts(pairs.references, source, lambda text: parsed.get(text) or ()),
    }
    stated = {name: [parse(text) for text in reports] for name, reports in texts.items()}
    codes = _codes(references, stated["drafts"])
    stated |= floor_findings(codes, len(references))
    ngrams = {name: count_ngrams(pairs.references, reports) for name, reports in texts.items()}
    counts = {name: count_findings(references, findings, codes) for name, findings in stated.items()}
    systems = {
        name: _measure(
            (bleu_measures(ngrams[name]) if name in ngrams else []) + finding_measures(counted),
            drawn,
            only_f1=name not in ngrams,
        )
        for name, counted in counts.items()
    }
    made = f"cov:{pairs.coverage:.3f}"
    floors = {k: v for k, v in describe_floors(source_name, source).items() if k in systems}
    return Scores(
        rows=tuple(_row(name, systems, made, drawn) for name in systems["drafts"].measures),
        findings=tuple(_finding_row(code, counts, made, drawn) for code in codes),
        worst=_worst(pairs, counts["drafts"], sentence_bleu4(ngrams["drafts"])),
        floors=floors,
        facts=_facts(pairs, parsed, drawn),
    )


def write_results(scores: Scores, out: Path) -> None:
    """Each file appears whole or not at all; metrics.json comes last, so it vouches for the rest."""
    files = {
        "table.md": to_markdown(scores),
        "per_finding.csv": to_csv(scores),
        "page.html": to_html(scores),
        "metrics.json": to_json(scores),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "metrics.json").unlink(missing_ok=True)
        for name, text in files.items():
            _write_whole(out / name, text)
    except OSError as error:
        raise OutputError(f"Cannot write the results to {out}: {error.strerror}.") from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReportError(f"Cannot read {path}: {error.strerror}.") from error


def _decode(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise ReportError(f"{path.name}, line {number}: not UTF-8; save the file as UTF-8.") from error


def _read_line(text: str, place: str) -> tuple[str, Line]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise ReportError(f"{place}: not JSON ({error.msg}, column {error.colno}).") from error
    except RecursionError as error:
        raise ReportError(f"{place}: JSON nested too deeply.") from error
    if not isinstance(row, dict):
        raise ReportError(f'{place}: expected an object like {{"id": "1", "report": "..."}}.')
    patient = _text_of(row, "patient", place) if row.get("patient") is not None else None
    return _text_of(row, "id", place), Line(_text_of(row, "report", place), patient)


def _text_of(row: dict, key: str, place: str) -> str:
    if key not in row:
        raise ReportError(f"{place}: no {key!r}; it holds {', '.join(map(repr, row)) or 'nothing'}.")
    if key != "report" and type(row[key]) is int:
        return str(row[key])  # many archives number their studies
    if not isinstance(row[key], str):
        raise ReportError(f"{place}: {key!r} must be a string, not {json.dumps(row[key])[:40]}.")
    if _SURROGATE.search(row[key]):
        raise ReportError(f"{place}: {key!r} holds half a character (a lone surrogate).")
    return row[key]


def _some(keys: Sequence[str]) -> str:
    named = ", ".join(map(repr, keys[:3])) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} id{'s' * (len(keys) > 1)} ({named})"


def _groups(references: ReportFile) -> tuple[tuple[str, ...], str]:
    patients = {key: line.patient for key, line in references.lines.items()}
    named = tuple(patient for patient in patients.values() if patient is not None)
    if not named:
        return tuple(patients), "report"
    if len(named) < len(patients):
        without = [key for key, patient in patients.items() if patient is None]
        raise ReportError(f"{_some(without)} of {references.name} without 'patient'; name all or none.")
    return named, "patient"


def _report_parser() -> Parse:
    from mla_med.report.parse import parse_report

    return lambda text: parse_report(text).findings


def _codes(references: Sequence[Findings], drafts: Sequence[Findings]) -> tuple[str, ...]:
    """What any report speaks of, in the order of the schema; all of that where none speaks of any."""
    stated = {f.code for found in (*references, *drafts) for f in found}
    known = tuple(code for code in CHEST_CT if code in stated or not stated)
    return (*known, *sorted(stated - set(CHEST_CT)))


def _measure(measures: Sequence[Measure], drawn: Resamples, only_f1: bool = False) -> System:
    wanted = {m.name: m for m in measures if not only_f1 or m.name.startswith("F1")}
    return System(wanted, {name: estimate(m.statistic, drawn) for name, m in wanted.items()})


def _row(name: str, systems: Mapping[str, System], made: str, drawn: Resamples) -> Row:
    drafts = systems["drafts"]
    measure = drafts.measures[name]
    floors = {k: s for k, s in systems.items() if k != "drafts" and name in s.measures}
    better = measure.higher_is_better
    gaps = {k: to_gap(drafts.estimates[name], s.estimates[name], better) for k, s in floors.items()}
    return Row(
        score=to_score(measure, drafts.estimates[name], made, drawn),
        unit=measure.unit,
        higher_is_better=better,
        floors={k: to_score(s.measures[name], s.estimates[name], made, drawn) for k, s in floors.items()},
        gaps={k: gap for k, gap in gaps.items() if gap is not None},
    )


def _finding_row(code: str, counts: Mapping[str, FindingCounts], made: str, drawn: Resamples) -> FindingRow:
    systems = {name: _measure(code_measures(counted, code), drawn) for name, counted in counts.items()}
    drafts, counted = systems["drafts"], counts["drafts"]
    column = counted.codes.index(code)
    reference_R, draft_R = counted.reference_RF[:, column], counted.draft_RF[:, column]
    precision, recall = (
        to_score(drafts.measures[name], drafts.estimates[name], made, drawn)
        for name in (f"precision {code}", f"recall {code}")
    )
    return FindingRow(
        code=code,
        num_references=int(reference_R.sum()),
        num_drafts=int(draft_R.sum()),
        num_matched=int((reference_R * draft_R).sum()),
        precision=precision,
        recall=recall,
        f1=_row(f"F1 {code}", systems, made, drawn),
    )


def _worst(pairs: Pairs, counts: FindingCounts, bleu4_R: Iterable[float]) -> tuple[Case, ...]:
    """Most wrong findings first, then the lowest BLEU-4."""
    missed_RF = counts.reference_RF > counts.draft_RF
    invented_RF = counts.draft_RF > counts.reference_RF
    cases = [
        Case(
            id=pairs.ids[k],
            reference=pairs.references[k],
            draft=pairs.drafts[k],
            missed=tuple(c for c, is_so in zip(counts.codes, missed_RF[k], strict=True) if is_so),
            invented=tuple(c for c, is_so in zip(counts.codes, invented_RF[k], strict=True) if is_so),
            wrong_sides=int(counts.sides_R2[k, 1] - counts.sides_R2[k, 0]),
            bleu4=float(bleu4),
        )
        for k, bleu4 in enumerate(bleu4_R)
    ]
    return tuple(sorted(cases, key=lambda case: (-case.num_errors, case.bleu4))[:NUM_WORST])


def _facts(pairs: Pairs, parsed: Mapping[str, Findings | None], drawn: Resamples) -> dict[str, Any]:
    return {
        "num_reports": len(pairs.ids),
        "coverage": pairs.coverage,
        "missing": list(pairs.missing),
        "empty_references": sum(not text.strip() for text in pairs.references),
        "empty_drafts": sum(not text.strip() for text in pairs.drafts),
        "distinct_drafts": len(set(pairs.drafts)),
        "references_not_parsed": sum(parsed[text] is None for text in pairs.references),
        "drafts_not_parsed": sum(parsed[text] is None for text in pairs.drafts),
        "bootstrap": {
            "resamples": len(drawn.counts_BR),
            "seed": drawn.seed,
            "by": drawn.by,
            "groups": drawn.num_groups,
        },
        "random_floor_seed": RANDOM_SEED,
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("mla_med", "sacrebleu", "numpy", "scipy")},
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "not installed"


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(text.encode("utf-8"))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
