"""References and drafts of any system -> Scores, and a folder with the page, the tables and metrics.json.

The same inputs, seed and versions give the same files, byte for byte. Knows no network: findings come
from rules, and networks that judge reports run in processes of their own (`judges`).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.calibration import RiskCoverage, reliabilities, risk_coverage, sureness
from evaluation.cases import case_row, show_case
from evaluation.compare import ComparisonRow, compare
from evaluation.findings import (
    FindingCounts,
    Findings,
    Parse,
    Reader,
    Reading,
    code_estimates,
    code_measures,
    count_findings,
    finding_measures,
    reader_of,
)
from evaluation.floors import RANDOM_SEED, describe_floors, floor_findings, floor_texts
from evaluation.habits import habit_measures, prior_of, template_score
from evaluation.judges import judge_reports
from evaluation.leakage import Leakage, check_leakage, find_leaks
from evaluation.page import to_html
from evaluation.pairs import Pair, Pairs, read_pairs, read_texts
from evaluation.perturb import CardRow, perturbation_card
from evaluation.results import Case, CaseRow, Scores
from evaluation.score import FindingRow, Row, Score
from evaluation.statistics import (
    FEW_GROUPS,
    RESAMPLES,
    SEED,
    Estimate,
    Measure,
    draw_resamples,
    estimate,
    to_gap,
    to_score,
)
from evaluation.subgroups import SubgroupRow, subgroup_rows
from evaluation.tables import (
    to_cases_csv,
    to_comparison_csv,
    to_findings_csv,
    to_json,
    to_markdown,
    to_model_card,
    to_subgroups_csv,
)
from evaluation.text import text_measures, text_scores
from mla_med.errors import ConfigError, OutputError, ReportError
from mla_med.report.schema import schema_of

NUM_WORST = 20
PREFIXED = ("F1", "precision", "recall")
"""Measures of findings whose name alone does not say of what."""
DESCRIBED = ("length ratio", "repetition", "identical outputs")
"""Neither good nor bad by themselves."""
BY_SUBGROUP = ("findings F1 micro", "hallucination", "omission", "BLEU-4")
UNFLOORED = (
    *DESCRIBED,
    "template adherence",
    "temporal claims without prior",
    "conflicting drafts",
    "hallucination",
    "contradiction",
    "unsupported",
)
"""A constant normal report is perfect in these without looking: its value is shown, and clears nothing."""
WITHOUT_TEXT = ("findings F1", "CRG")
"""What the floors that are findings without a text are scored by."""


@dataclass(frozen=True, slots=True)
class Options:
    """How reports are scored."""

    protocol: str = ""
    """Of the text scores (evaluation.protocols); empty: coco, and zh for Chinese."""
    examination: str = "chest_ct"
    language: str = "en"
    resamples: int = RESAMPLES
    seed: int = SEED
    with_card: bool = True
    judges: tuple[str, ...] = ()
    """Keys of evaluation.judges; each is skipped with a reason where its weights are absent."""

    @property
    def words(self) -> str:
        return self.protocol or ("zh" if self.language == "zh" else "coco")


@dataclass(frozen=True, slots=True)
class System:
    """The drafts or a floor, measured."""

    counts: FindingCounts
    measures: Mapping[str, Measure]
    estimates: Mapping[str, Estimate]


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
    read = _with_parse(parse) if parse else reader_of(options.examination, options.language)
    pairs = read_pairs(references, drafts, allow)
    source = tuple(read_texts(train)) if train else None
    theirs = read_pairs(references, other, allow) if other else None
    scores = score_pairs(pairs, read, options, source, theirs)
    roles = {"references": references, "drafts": drafts, "train": train, "compared with": other}
    inputs = {role: _input(path) for role, path in roles.items() if path is not None}
    leaks = _leakage(references, train) if train else ()
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
    bench = Bench(pairs, read, options or Options(), source)
    drafts = bench.systems["drafts"]
    cases = [bench.case(k) for k in range(len(bench.drafts))]
    order = sorted(range(len(cases)), key=lambda k: (-cases[k].num_errors, cases[k].scores["BLEU-4"]))
    return Scores(
        rows=tuple(bench.row(name) for name in drafts.measures),
        findings=tuple(bench.finding_row(code) for code in bench.codes),
        cases=tuple(cases),
        worst=tuple(bench.show(cases[k], k) for k in order[:NUM_WORST]),
        floors=bench.describe(),
        facts=bench.facts(),
        subgroups=bench.subgroups(),
        card=bench.card(),
        reliabilities=reliabilities(bench.confidences, drafts.counts.reference_RF, bench.codes),
        risk=bench.risk(),
        comparison=bench.compare(other) if other else (),
        judged=judge_reports(bench.references, bench.drafts, bench.options.judges, bench.options.language),
    )


@dataclass(frozen=True, slots=True)
class Threshold:
    """A score that must not be worse than this."""

    name: str
    value: float

    def missed(self, scores: Scores) -> str:
        """In words; empty where it is kept."""
        found = scores.value_of(self.name)
        if found is None:
            known = ", ".join(row.score.name for row in scores.rows)
            raise ConfigError(f"No score '{self.name}'; there are: {known}.", code="SCORE_UNKNOWN")
        value, higher_is_better = found
        kept = value >= self.value if higher_is_better else value <= self.value
        if kept:  # NaN keeps nothing
            return ""
        bound = "least" if higher_is_better else "most"
        return f"{self.name} is {value:.4g}, and was to be at {bound} {self.value:g}"


def read_threshold(text: str) -> Threshold:
    """From NAME=VALUE."""
    name, _, value = text.rpartition("=")
    try:
        return Threshold(name.strip(), float(value))
    except ValueError as error:
        raise ConfigError(f'{text!r} is no threshold; write "NAME=VALUE", as "BLEU-4=0.2".') from error


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
            _write_whole(out / name, text)
    except OSError as error:
        raise OutputError(f"Cannot write the results to {out}: {error.strerror}.") from error


class Bench:
    """One set of references and everything that is measured on them; texts are read once."""

    def __init__(self, pairs: Pairs, read: Reader, options: Options, source: Sequence[str] | None = None):
        self.options, self.pairs = options, pairs.pairs
        self.coverage = pairs.coverage
        self.refused: set[str] = set()
        self._read, self._readings = read, dict[str, Reading]()
        self._templates: dict[str, float] = {}
        self.schema = schema_of(options.examination)
        self.references = [pair.reference for pair in self.pairs]
        self.drafts = [pair.draft for pair in self.pairs]
        self.priors = [prior_of(pair.meta) for pair in self.pairs]
        self.groups, self.by = _groups(self.pairs)
        self.drawn = draw_resamples(self.groups, self.by, options.resamples, options.seed)
        self.is_train = source is not None
        self.source = list(source) if source is not None else self.references
        self.codes = self._codes()
        floors = floor_texts(self.references, self.source, self.parse, self.is_train)
        self.constant = floors["constant"][0]
        self.systems = {
            name: self._measure(texts) for name, texts in {"drafts": self.drafts, **floors}.items()
        }
        for name, findings in floor_findings(self.codes, len(self.references)).items():
            self.systems[name] = self._measure_findings(findings)

    def read(self, text: str) -> Reading:
        """Nothing, where the reader refuses the text: a draft may be any text, and that is a result."""
        if text not in self._readings:
            try:
                self._readings[text] = self._read(text) if text.strip() else Reading(())
            except ReportError:
                self._readings[text] = Reading(())
                self.refused.add(text)
        return self._readings[text]

    def parse(self, text: str) -> Findings:
        return self.read(text).findings

    def row(self, name: str) -> Row:
        return self._row(name, self.systems)

    def finding_row(self, code: str) -> FindingRow:
        systems = {name: self._code_system(name, code) for name in self.systems}
        counted = self.systems["drafts"].counts
        column = counted.codes.index(code)
        reference_R, draft_R = counted.reference_RF[:, column], counted.draft_RF[:, column]
        drafts = systems["drafts"]
        precision, recall = (
            to_score(drafts.measures[name], drafts.estimates[name], self._made, self.drawn)
            for name in (f"precision {code}", f"recall {code}")
        )
        return FindingRow(
            code=code,
            num_references=int(reference_R.sum()),
            num_drafts=int(draft_R.sum()),
            num_matched=int((reference_R * draft_R).sum()),
            precision=precision,
            recall=recall,
            f1=self._row(f"F1 {code}", systems),
        )

    def case(self, k: int) -> CaseRow:
        pair = self.pairs[k]
        readings = self.read(pair.reference), self.read(pair.draft)
        row = case_row(
            pair.id, pair.reference, pair.draft, self.priors[k], *readings, language=self.options.language
        )
        return replace(row, scores={name: float(values[k]) for name, values in self._per_pair.items()})

    def show(self, row: CaseRow, k: int) -> Case:
        pair = self.pairs[k]
        readings = self.read(pair.reference), self.read(pair.draft)
        return show_case(row, pair.reference, pair.draft, *readings, language=self.options.language)

    def describe(self) -> dict[str, str]:
        whose = "training reports" if self.is_train else "references"
        words = describe_floors(whose, self.source, self.constant, self.is_train)
        return {name: said for name, said in words.items() if name in self.systems}

    def subgroups(self) -> tuple[SubgroupRow, ...]:
        measures = [self.systems["drafts"].measures[name] for name in BY_SUBGROUP]
        return subgroup_rows(measures, [pair.meta for pair in self.pairs], self.drawn, self.groups)

    def card(self) -> tuple[CardRow, ...]:
        if not self.options.with_card:
            return ()
        return perturbation_card(
            self.references, self.read, self.codes, self.options.language, self.options.words
        )

    @property
    def confidences(self) -> list[dict[str, float] | None]:
        return [confidences_of(pair.meta, pair.id) for pair in self.pairs]

    def risk(self) -> RiskCoverage | None:
        """Of the reports that state how sure they are; the risk is 1 - F1 of the report's findings."""
        sure = [_sureness(pair.meta, given) for pair, given in zip(self.pairs, self.confidences, strict=True)]
        stated = [k for k, value in enumerate(sure) if value is not None]
        if len(stated) < 2:
            return None
        counts = self.systems["drafts"].counts
        matched_R = (counts.reference_RF * counts.draft_RF).sum(axis=1)
        whole_R = counts.reference_RF.sum(axis=1) + counts.draft_RF.sum(axis=1)
        risk_R = 1 - np.where(whole_R > 0, 2 * matched_R / np.maximum(whole_R, 1), 1.0)
        return risk_coverage(np.array([sure[k] for k in stated], float), risk_R[stated])

    def compare(self, other: Pairs) -> tuple[ComparisonRow, ...]:
        """The drafts are A, the others B."""
        theirs = {pair.id: pair.draft for pair in other.pairs}
        both = [*self.drafts, *(theirs.get(pair.id, "") for pair in self.pairs)]
        measures = self._measures_of(self.references * 2, both, self.priors * 2)
        return compare([m for m in measures if m.name not in DESCRIBED], self.drawn, self.groups)

    def facts(self) -> dict[str, Any]:
        counts = self.systems["drafts"].counts
        return {
            "num_reports": len(self.pairs),
            "coverage": self.coverage.share,
            "missing": list(self.coverage.missing),
            "duplicate": list(self.coverage.duplicate),
            "unknown": list(self.coverage.unknown),
            "empty_references": sum(not text.strip() for text in self.references),
            "empty_drafts": sum(not text.strip() for text in self.drafts),
            "distinct_drafts": len(set(self.drafts)),
            "references_not_parsed": sum(text in self.refused for text in self.references),
            "drafts_not_parsed": sum(text in self.refused for text in self.drafts),
            "findings_in_references": int(counts.reference_RF.sum()),
            "findings_in_drafts": int(counts.draft_RF.sum()),
            "references_without_a_reading": sum(not self.parse(t) for t in self.references if t.strip()),
            "protocol": self.options.words,
            "examination": self.options.examination,
            "language": self.options.language,
            "bootstrap": {
                "resamples": len(self.drawn.counts_BR),
                "seed": self.drawn.seed,
                "by": self.drawn.by,
                "groups": self.drawn.num_groups,
            },
            "random_floor_seed": RANDOM_SEED,
            "floors_from_train": self.is_train,
            "leakage": [],
            "versions": {
                "python": platform.python_version(),
                **{name: _version(name) for name in ("mla_med", "sacrebleu", "numpy", "scipy")},
            },
        }

    @property
    def _made(self) -> str:
        return f"cov:{self.coverage.share:.3f}"

    @cached_property
    def _per_pair(self) -> dict[str, np.ndarray]:
        scores = text_scores(self.references, self.drafts, self.options.words)
        return {name: s.per_pair for name, s in scores.items() if s.per_pair is not None}

    def _codes(self) -> tuple[str, ...]:
        """What any report speaks of, in the order of the schema; all of that where none speaks of any."""
        stated = {f.code for text in (*self.references, *self.drafts) for f in self.parse(text)}
        known = tuple(code for code in self.schema if code in stated or not stated)
        return (*known, *sorted(stated - set(self.schema)))

    def _measures_of(
        self, references: Sequence[str], drafts: Sequence[str], priors: Sequence[bool | None]
    ) -> list[Measure]:
        counts = self._count(references, drafts)
        template_R = np.array([self._template(text) for text in drafts])
        return [
            *text_measures(references, drafts, self.options.words),
            *_named(finding_measures(counts)),
            *habit_measures(references, drafts, priors, template_R, self.options.language),
        ]

    def _count(self, references: Sequence[str], drafts: Sequence[str]) -> FindingCounts:
        return count_findings(
            [self.parse(t) for t in references], [self.parse(t) for t in drafts], self.codes
        )

    def _measure(self, drafts: Sequence[str]) -> System:
        measures = self._measures_of(self.references, drafts, self.priors)
        return self._system(self._count(self.references, drafts), measures)

    def _measure_findings(self, findings: Sequence[Findings]) -> System:
        counts = count_findings([self.parse(t) for t in self.references], findings, self.codes)
        measures = [m for m in _named(finding_measures(counts)) if m.name.startswith(WITHOUT_TEXT)]
        return self._system(counts, measures)

    @cached_property
    def _by_code(self) -> dict[str, dict[str, Estimate]]:
        counts_BR = self.drawn.counts_BR
        return {name: code_estimates(system.counts, counts_BR) for name, system in self.systems.items()}

    def _code_system(self, name: str, code: str) -> System:
        counts = self.systems[name].counts
        measures = code_measures(counts, code)
        if self.drawn.num_groups < FEW_GROUPS:  # intervals are corrected, one measure at a time
            return self._system(counts, measures)
        estimates = self._by_code[name]
        return System(counts, {m.name: m for m in measures}, {m.name: estimates[m.name] for m in measures})

    def _system(self, counts: FindingCounts, measures: Sequence[Measure]) -> System:
        return System(
            counts,
            {m.name: m for m in measures},
            {m.name: estimate(m.statistic, self.drawn) for m in measures},
        )

    def _row(self, name: str, systems: Mapping[str, System]) -> Row:
        drafts = systems["drafts"]
        measure = drafts.measures[name]
        floors = {k: s for k, s in systems.items() if k != "drafts" and name in s.measures}
        better = measure.higher_is_better
        gaps = {k: to_gap(drafts.estimates[name], s.estimates[name], better) for k, s in floors.items()}

        def scored(system: System) -> Score:
            return to_score(system.measures[name], system.estimates[name], self._made, self.drawn)

        return Row(
            score=scored(drafts),
            unit=measure.unit,
            higher_is_better=better,
            floors={k: scored(s) for k, s in floors.items()},
            gaps={k: gap for k, gap in gaps.items() if gap is not None} if name not in UNFLOORED else {},
        )

    def _template(self, text: str) -> float:
        if text not in self._templates:
            self._templates[text] = template_score(text, self.read, self.schema, self.options.language)
        return self._templates[text]


def confidences_of(meta: Mapping[str, object], id_: str) -> dict[str, float] | None:
    """Finding code -> probability that it is present, where the drafts state them ("confidences")."""
    given = meta.get("confidences")
    if given is None:
        return None
    if isinstance(given, str):
        given = _json_object(given, id_)
    if not isinstance(given, Mapping):
        raise ReportError(f"Draft {id_!r}: 'confidences' must be an object of probabilities by finding code.")
    for code, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ReportError(
                f"Draft {id_!r}: the confidence of {code} is {value!r}; it must be from 0 to 1."
            )
    return {str(code): float(value) for code, value in given.items()}


def _json_object(text: str, id_: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ReportError(f"Draft {id_!r}: 'confidences' is not JSON ({error.msg}).") from error


def _sureness(meta: Mapping[str, object], given: Mapping[str, float] | None) -> float | None:
    whole = meta.get("confidence")
    if isinstance(whole, int | float) and not isinstance(whole, bool):
        return float(whole)
    return sureness(given) if given else None


def _named(measures: Sequence[Measure]) -> list[Measure]:
    return [replace(m, name=f"findings {m.name}") if m.name.startswith(PREFIXED) else m for m in measures]


def _groups(pairs: Sequence[Pair]) -> tuple[list[str], str]:
    named = [pair.meta.get("patient") for pair in pairs]
    if not any(name not in (None, "") for name in named):
        return [pair.id for pair in pairs], "report"
    without = [pair.id for pair, name in zip(pairs, named, strict=True) if name in (None, "")]
    if without:
        raise ReportError(
            f"{len(without)} references ({without[0]!r}, ...) without 'patient'; name all or none."
        )
    return [str(name) for name in named], "patient"


def _leakage(references: Path, train: Path) -> Iterator[str]:
    """In words, a line for each kind; nothing where nothing leaked."""
    try:
        found = check_leakage(references, train)
    except ReportError:  # training reports may be texts alone, without ids
        tested, trained = read_texts(references), read_texts(train)
        found = Leakage(len(tested), len(trained), find_leaks(tested, trained))
    if found.leaks:
        near = len(found.leaks) - found.num_same
        yield (
            f"{found.num_same} of {found.num_texts} references stand word for word in the training reports, "
            f"and {near} nearly: what the model wrote there it may have learnt by heart."
        )
    if found.common_ids or found.common_patients:
        yield (
            f"{len(found.common_ids)} ids and {len(found.common_patients)} patients are in the references "
            "and in the training reports."
        )


def _with_parse(parse: Parse) -> Reader:
    return lambda text: Reading(parse(text))


def _input(path: Path) -> dict[str, str]:
    try:
        return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    except OSError as error:
        raise ReportError(f"Cannot read {path}: {error.strerror}.") from error


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
