"""The first sentence of the page is right, whatever was measured."""

import math
import re
from itertools import product

import pytest

from evaluation.results import DETAILS, Grade, Scores, verdict_of
from evaluation.score import Gap, Row, Score, Unit

FACTS = {
    "num_reports": 120,
    "findings_in_references": 300,
    "references_without_a_reading": 0,
    "distinct_drafts": 120,
    "empty_drafts": 0,
    "language": "en",
}
LEVELS = {
    "clears": (0.95, 0.3, (0.55, 0.75)),
    "ties": (0.5, 0.48, (-0.1, 0.14)),
    "worse": (0.3, 0.6, (-0.4, -0.2)),
    "nearly": (0.96, 1.0, (-0.08, 0.0)),
    "unmeasured": (math.nan, 0.5, None),
}
NAMES = ("findings F1 macro", "findings F1 micro", "BLEU-4", *DETAILS)


def row_of(name, level, higher_is_better=True):
    value, floor, ci95 = LEVELS[level]
    gaps = {"constant": Gap(value - floor, ci95)} if ci95 else {}
    floors = {"constant": Score(name, floor, (floor, floor), "", 120)}
    return Row(Score(name, value, (value, value), "", 120), Unit.RATE, higher_is_better, floors, gaps)


def fault_of(name, value):
    return Row(Score(name, value, (value, value), "", 120), Unit.RATE, False, {}, {})


def scores_of(levels, omission=0.02, **facts):
    rows = [row_of(name, level) for name, level in zip(NAMES, levels, strict=True)]
    return Scores((*rows, fault_of("omission", omission)), (), (), (), {}, {**FACTS, **facts})


@pytest.mark.parametrize("omission", [0.02, 0.5])
def test_the_sentence_is_right_in_every_combination(omission):
    some = ("clears", "ties", "nearly")
    for levels in product(LEVELS, LEVELS, ("clears", "worse"), LEVELS, some, some[:2]):
        verdict = verdict_of(scores_of(levels, omission))
        macro, micro, wording, *details = levels
        deciding = [level for level in (macro, micro) if level != "unmeasured"]
        # what is nearly perfect beside a perfect floor is not amiss in its details, and decides all the same
        amiss = [level for level in details if level in ("ties", "worse")]
        if not deciding:
            expected = Grade.UNKNOWN
        elif any(level != "clears" for level in deciding):
            expected = Grade.BAD
        elif amiss or wording in ("ties", "worse", "nearly") or omission > 0.1:
            expected = Grade.MIXED
        else:
            expected = Grade.GOOD
        assert verdict.grade is expected, levels
        opening = {"unknown": "Nobody can say", "bad": "No", "mixed": "Not yet", "good": "Yes"}[expected]
        assert verdict.words.startswith(f"{opening}: ")
        assert verdict.words.endswith(".")
        assert not re.search(r"nan|\.\s", verdict.words), verdict.words
        if amiss and expected is Grade.MIXED:
            named = [name for name, level in zip(DETAILS, details, strict=True) if level in ("ties", "worse")]
            assert all(name in verdict.words for name in named)
        assert ("better than every" in verdict.words) == (expected in (Grade.MIXED, Grade.GOOD))
        for number in map(float, re.findall(r"\d\.\d\d", verdict.words)):
            assert number in {round(x, 2) for value, floor, _ in LEVELS.values() for x in (value, floor)}


GOOD = ("clears",) * len(NAMES)


def test_what_it_says_of_swapped_sides():
    verdict = verdict_of(scores_of(("clears", "clears", "clears", "worse", "clears", "clears")))
    assert verdict.words == (
        "Not yet: it finds what is there better than every draft written without images, but in side it is "
        "no better: side accuracy is 0.30 where the same report for all gets 0.60."
    )


def test_a_good_draft_with_wording_of_its_own_is_not_called_blind():
    verdict = verdict_of(scores_of(("clears", "clears", "worse", "clears", "clears", "clears")))
    assert verdict.grade is Grade.MIXED
    assert "but in wording it is no better: BLEU-4 is 0.30" in verdict.words


def test_one_text_for_all_is_no_whatever_it_scores():
    verdict = verdict_of(scores_of(GOOD, distinct_drafts=1))
    assert verdict.grade is Grade.BAD
    assert verdict.words == "No: every draft is the same text, so none can be of what its images show."
    assert verdict_of(scores_of(GOOD, empty_drafts=120)).words == "No: every draft is empty."


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"num_reports": 1}, "Yes: on this one report it"),
        (
            {"num_reports": 12},
            "Yes: on these 12 reports, which are few, it",
        ),
        ({"references_without_a_reading": 40}, "Yes: on the 80 of 120 reports that could be read it finds"),
        (
            {"references_without_a_reading": 110},
            "on the 10 of 120 reports that could be read, which are few, it",
        ),
        (
            {"findings_in_references": 0},
            "Nobody can say: no finding could be read as present in the references",
        ),
    ],
)
def test_it_says_on_how_much_it_rests(facts, words):
    assert words in verdict_of(scores_of(GOOD, **facts)).words


def test_a_lead_that_a_few_reports_cannot_show_is_neither_good_nor_bad():
    few = scores_of(("ties", *GOOD[1:]), num_reports=12)
    assert verdict_of(few).grade is Grade.UNKNOWN
    assert "by no more than chance could make it" in verdict_of(few).words
    assert verdict_of(scores_of(("worse", *GOOD[1:]), num_reports=12)).grade is Grade.BAD


def test_a_tie_with_a_floor_that_cannot_be_beaten_is_no_reproach():
    row = row_of("side accuracy", "nearly")
    perfect = Row(Score("side accuracy", 1.0, (1.0, 1.0), "", 120), row.unit, True, row.floors, row.gaps)
    scores = scores_of(GOOD)
    rows = [perfect if r.score.name == "side accuracy" else r for r in scores.rows]
    verdict = verdict_of(Scores(tuple(rows), (), (), (), {}, FACTS))
    assert verdict.grade is Grade.GOOD
    assert "side accuracy" not in " ".join(verdict.reasons)


def test_what_is_lost_is_told_with_the_largest_share_first():
    verdict = verdict_of(scores_of(GOOD, omission=0.42))
    assert "but with too many errors: 42% of the findings in the references are missing" in verdict.words
    assert verdict.reasons[2].startswith("42%")
