"""Pairs -> the drafts and every floor, measured on the same references and the same resamples.

Texts are split, counted and read once, whichever systems have them. Knows no files and no page.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from evaluation.calibration import RiskCoverage, confidences_of, risk_coverage, sureness_of
from evaluation.cases import case_row, show_case
from evaluation.compare import ComparisonRow, compare
from evaluation.findings import (
    FindingCounts,
    Findings,
    Reader,
    Reading,
    code_estimates,
    code_measures,
    count_findings,
    finding_measures,
)
from evaluation.floors import RANDOM_SEED, describe_floors, floor_findings, floor_texts
from evaluation.habits import habit_measures, prior_of, template_score
from evaluation.pairs import Pair, Pairs
from evaluation.perturb import CardRow, perturbation_card
from evaluation.results import Case, CaseRow
from evaluation.score import FindingRow, Row, Score
from evaluation.statistics import (
    FEW_GROUPS,
    RESAMPLES,
    SEED,
    Estimate,
    Measure,
    difference,
    draw_resamples,
    estimate,
    to_gap,
    to_score,
)
from evaluation.subgroups import SubgroupRow, subgroup_rows
from evaluation.text import Score as TextScore
from evaluation.text import score_systems, text_scores
from mla_med.errors import ReportError
from mla_med.report.schema import schema_of

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
_CHINESE = re.compile("[\u4e00-\u9fff]")
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


class Systems:
    """One set of references, and what is measured of the drafts, of the floors and of another system."""

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
        self.codes = self._codes(self.references, self.drafts)
        floors = floor_texts(self.references, self.source, self.parse, self.is_train, self.groups)
        self.constant = floors["constant"][0]
        texts = {"drafts": self.drafts, **floors}
        scores = score_systems(self.references, texts, options.words)
        self.text_scores = scores["drafts"]
        self.systems = {name: self._measure(drafts, scores[name]) for name, drafts in texts.items()}
        # of the findings that the references speak of, so that no draft can weaken them by naming others
        told = self._codes(self.references)
        for name, findings in floor_findings(told, len(self.references)).items():
            self.systems[name] = self._measure_findings(findings)

    @property
    def ours(self) -> System:
        return self.systems["drafts"]

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
        counted = self.ours.counts
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
        return replace(row, scores={name: float(s.per_pair[k]) for name, s in self.text_scores.items()})

    def show(self, row: CaseRow, k: int) -> Case:
        pair = self.pairs[k]
        readings = self.read(pair.reference), self.read(pair.draft)
        return show_case(row, pair.reference, pair.draft, *readings, language=self.options.language)

    def describe(self) -> dict[str, str]:
        whose = "training reports" if self.is_train else "references"
        words = describe_floors(whose, self.source, self.constant, self.is_train)
        return {name: said for name, said in words.items() if name in self.systems}

    def subgroups(self) -> tuple[SubgroupRow, ...]:
        measures = [self.ours.measures[name] for name in BY_SUBGROUP]
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
        sure = [
            sureness_of(pair.meta, given) for pair, given in zip(self.pairs, self.confidences, strict=True)
        ]
        stated = [k for k, value in enumerate(sure) if value is not None]
        if len(stated) < 2:
            return None
        counts = self.ours.counts
        matched_R = (counts.reference_RF * counts.draft_RF).sum(axis=1)
        whole_R = counts.reference_RF.sum(axis=1) + counts.draft_RF.sum(axis=1)
        risk_R = 1 - np.where(whole_R > 0, 2 * matched_R / np.maximum(whole_R, 1), 1.0)
        return risk_coverage(np.array([sure[k] for k in stated], float), risk_R[stated])

    def compare(self, other: Pairs) -> tuple[ComparisonRow, ...]:
        """The drafts are A, the others B; both have the values of their own tables."""
        drafts = {pair.id: pair.draft for pair in other.pairs}
        others = [drafts.get(pair.id, "") for pair in self.pairs]
        codes = self._codes(self.references, self.drafts, others)
        counts = [self._count([self.parse(t) for t in texts], codes) for texts in (self.drafts, others)]
        sizes_mm = np.union1d(*(counted.size_error_P for counted in counts))
        words = self.text_scores, text_scores(self.references, others, self.options.words)
        ours, theirs = (
            [m for m in self._measures_of(*system, sizes_mm) if m.name not in DESCRIBED]
            for system in zip((self.drafts, others), words, counts, strict=True)
        )
        return compare(ours, theirs, self.drawn, self.groups)

    def facts(self) -> dict[str, Any]:
        counts = self.ours.counts
        return {
            "num_reports": len(self.pairs),
            "coverage": self.coverage.share,
            "missing": list(self.coverage.missing),
            "duplicate": list(self.coverage.duplicate),
            "unknown": list(self.coverage.unknown),
            "empty_references": sum(not text.strip() for text in self.references),
            "empty_drafts": sum(not text.strip() for text in self.drafts),
            "copied_drafts": sum(pair.draft == pair.reference for pair in self.pairs),
            "distinct_drafts": len(set(self.drafts)),
            "references_not_parsed": sum(text in self.refused for text in self.references),
            "drafts_not_parsed": sum(text in self.refused for text in self.drafts),
            "findings_in_references": int(counts.reference_RF.sum()),
            "findings_in_drafts": int(counts.draft_RF.sum()),
            "references_in_chinese": sum(bool(_CHINESE.search(text)) for text in self.references),
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

    def _codes(self, *texts: Sequence[str]) -> tuple[str, ...]:
        """What any of them speaks of, in the order of the schema; all of that where none speaks of any."""
        stated = {f.code for some in texts for text in some for f in self.parse(text)}
        known = tuple(code for code in self.schema if code in stated or not stated)
        return (*known, *sorted(stated - set(self.schema)))

    def _measure(self, drafts: Sequence[str], scores: Mapping[str, TextScore]) -> System:
        counts = self._count([self.parse(text) for text in drafts], self.codes)
        return self._system(counts, self._measures_of(drafts, scores, counts))

    def _measures_of(
        self,
        drafts: Sequence[str],
        scores: Mapping[str, TextScore],
        counts: FindingCounts,
        sizes_mm: np.ndarray | None = None,
    ) -> list[Measure]:
        template_R = np.array([self._template(text) for text in drafts])
        return [
            *(score.measure for score in scores.values()),
            *_named(finding_measures(counts, sizes_mm)),
            *habit_measures(self.references, drafts, self.priors, template_R, self.options.language),
        ]

    def _count(self, drafts: Sequence[Findings], codes: Sequence[str]) -> FindingCounts:
        return count_findings([self.parse(text) for text in self.references], drafts, codes)

    def _measure_findings(self, findings: Sequence[Findings]) -> System:
        counts = self._count(findings, self.codes)
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
        gaps = {k: to_gap(self._apart(name, s, drafts), better) for k, s in floors.items()}

        def scored(system: System) -> Score:
            return to_score(system.measures[name], system.estimates[name], self._made, self.drawn)

        return Row(
            score=scored(drafts),
            unit=measure.unit,
            higher_is_better=better,
            floors={k: scored(s) for k, s in floors.items()},
            gaps={k: gap for k, gap in gaps.items() if gap is not None} if name not in UNFLOORED else {},
        )

    def _apart(self, name: str, floor: System, drafts: System) -> Estimate:
        first, second = floor.measures[name].statistic, drafts.measures[name].statistic
        return difference(first, second, floor.estimates[name], drafts.estimates[name], self.drawn)

    def _template(self, text: str) -> float:
        if text not in self._templates:
            self._templates[text] = template_score(text, self.read, self.schema, self.options.language)
        return self._templates[text]


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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "not installed"
