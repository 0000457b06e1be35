"""What a reader changes: findings, sentences, evidence and comparisons stay those of one lesion."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mla_med.documents.sr3d import tracking_uid
from mla_med.documents.text import sentence_findings
from mla_med.report.parse import parse_sentence
from mla_med.report.render import render_report
from mla_med.report.style import load_style
from mla_med.review.editing import (
    Edited,
    add_finding,
    change_finding,
    change_sentence,
    remove_finding,
    still_compared,
)
from mla_med.types import (
    Change,
    Comparison,
    Draft,
    Evidence,
    Finding,
    Gate,
    Presence,
    Prior,
    Provenance,
    Report,
    Side,
)

STYLE = load_style()
PROVENANCE = Provenance("m", "1", "0" * 64, "1.2.3", ("1.2.3.1",), "2026-11-28T10:00:00+00:00")


def shown_at(x: float, uid: str) -> Evidence:
    return Evidence((uid,), ((x, 0.0, 0.0), (x + 10, 10.0, 10.0)))


RIGHT = Finding("consolidation", site="upper_lobe", side=Side.RIGHT, evidence=shown_at(60, "1.2.1"))
LEFT = Finding("consolidation", site="lower_lobe", side=Side.LEFT, evidence=shown_at(-60, "1.2.2"))


def edited(*findings: Finding) -> Edited:
    return Edited(render_report(findings, STYLE), "prose")


def assert_paired(report: Report) -> None:
    """Every sentence that the style can read stands for the finding that it states, and for no other."""
    for sentence, found in zip(report.sentences, sentence_findings(report.sentences, report), strict=True):
        stated = parse_sentence(sentence.text, STYLE, report.examination)
        assert stated is None or stated in found
        if len(sentence.codes) == 1 and stated is not None and stated.presence is Presence.PRESENT:
            assert found == (stated,)


def of_code(report: Report, code: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.code == code]


def number_of(report: Report, finding: Finding) -> int:
    return report.findings.index(finding) + 1


def test_a_sentence_that_becomes_another_lesion_takes_nothing_from_the_first():
    before = edited(RIGHT)
    number = next(n for n, s in enumerate(before.report.sentences, 1) if s.codes == ("lung_mass",))
    after = change_sentence(before, number, "There is consolidation in the left lower lobe.")
    assert_paired(after.report)
    evidence = {f.side: f.evidence for f in of_code(after.report, "consolidation")}
    assert evidence == {Side.RIGHT: RIGHT.evidence, Side.LEFT: None}
    (left,) = (f for f in of_code(after.report, "consolidation") if f.side is Side.LEFT)
    gone = remove_finding(after, number_of(after.report, left))
    assert of_code(gone.report, "consolidation") == [RIGHT]
    assert_paired(gone.report)
    assert "left lower lobe" not in " ".join(s.text for s in gone.report.sentences)


@pytest.mark.parametrize("first", [RIGHT, LEFT])
def test_lesions_of_one_kind_are_told_by_what_shows_them(first):
    drafted = edited(RIGHT, LEFT)
    uid = {f.side: tracking_uid(f, n, PROVENANCE) for n, f in enumerate(drafted.report.findings, 1)}
    after = remove_finding(drafted, number_of(drafted.report, first))
    (left_over,) = of_code(after.report, "consolidation")
    assert left_over.side is not first.side
    assert tracking_uid(left_over, number_of(after.report, left_over), PROVENANCE) == uid[left_over.side]
    assert uid[Side.LEFT] != uid[Side.RIGHT]


def test_evidence_is_kept_where_it_still_shows_what_is_stated():
    unsure = Finding("consolidation", Presence.CANNOT_SAY, evidence=RIGHT.evidence)
    for old, new, kept in (
        (RIGHT, replace(RIGHT, site="middle_lobe"), True),
        (unsure, replace(RIGHT, evidence=None), True),
        (RIGHT, replace(LEFT, evidence=None), False),
        (RIGHT, Finding("consolidation", Presence.ABSENT), False),
    ):
        before = edited(old)
        after = change_finding(before, number_of(before.report, old), replace(new, evidence=None))
        (finding,) = of_code(after.report, "consolidation")
        assert finding == new
        assert finding.evidence == (RIGHT.evidence if kept else None)


def test_what_a_reader_changed_in_the_impression_stays_when_something_else_changes():
    hernia = Finding("hiatal_hernia")
    before = edited(RIGHT, hernia)
    texts = [s.text for s in before.report.impression]
    at = len(before.report.sentences)
    mine = "Consolidation in the right upper lobe, as in pneumonia."
    (number,) = (n for n, text in enumerate(texts, 1) if text.startswith("Consolidation in"))
    after = change_sentence(before, at + number, mine)
    (number,) = (n for n, s in enumerate(after.report.impression, 1) if "hernia" in s.text)
    after = change_sentence(after, at + number, "")
    after = add_finding(after, Finding("emphysema"))
    said = [s.text for s in after.report.impression]
    assert mine in said
    assert not any("hernia" in text for text in said)
    assert sum("onsolidation in the right upper lobe" in text for text in said) == 1
    assert any("mphysema" in text for text in said)


def test_a_comparison_goes_with_the_finding_that_it_was_of():
    report = edited(RIGHT, replace(LEFT, change=Change.NEW)).report
    compared = (
        Comparison("consolidation", Change.NEW, "present now, elsewhere then"),
        Comparison("hiatal_hernia", Change.RESOLVED, "present then, absent now"),
    )
    prior = Prior("1.2.9", "20250101", (), compared)
    draft = Draft(report, Gate(True, (), {}), (), {}, PROVENANCE, prior=prior)
    assert still_compared(draft, report).comparisons == compared
    after = remove_finding(Edited(report, "prose"), number_of(report, RIGHT))
    assert still_compared(draft, after.report).comparisons == compared[1:]
