"""A worker that is warm reads the next study while it drafts this one; a profile says where the time went."""

from __future__ import annotations

import time

from mla_med.dicom.select import choose_series
from mla_med.documents.profile import Profile
from mla_med.drafting import _reading_ahead
from mla_med.model.checkpoint import Checkpoint
from mla_med.model.gate import Scope
from mla_med.types import ClinicalContext, Study


def study(uid: str) -> Study:
    return Study(uid, "", "", ClinicalContext(), ())


def test_the_next_study_is_read_while_this_one_is_drafted():
    asked: list[tuple[str, str]] = []

    def call(read, one, *_):
        asked.append((read.__name__, one.study_uid))
        return ()

    studies = [study("1"), study(""), study("2")]
    checkpoint = Checkpoint(None, None, Scope(), "", "", "")  # type: ignore[arg-type]
    with _reading_ahead(studies, checkpoint, call) as read_of:
        first = read_of(studies[0])
        until = time.monotonic() + 10
        while ("choose_series", "2") not in asked and time.monotonic() < until:
            time.sleep(0.01)
        # nobody has asked for the second yet
        assert asked == [("choose_series", "1"), ("choose_series", "2")]
        assert first(choose_series, studies[0], "chest_ct") == ()
        assert read_of(studies[2])(choose_series, studies[2], "chest_ct") == ()
    # and what was read ahead was not read again
    assert asked == [("choose_series", "1"), ("choose_series", "2")]


def test_a_profile_has_every_stage_once_with_its_share():
    now = iter([0.0, 1.0, 1.0, 1.5, 1.5, 4.0])
    told: list[str] = []
    profile = Profile(clock=lambda: next(now), also=told.append)
    for stage in ("reading", "prior: reading", "reading"):
        profile(stage)
    found = profile.end()
    assert told == ["reading", "prior: reading", "reading"]
    rows = {name: (seconds, share) for name, seconds, share, _ in found.rows()}
    assert rows == {"reading": (3.5, 0.875), "prior: reading": (0.5, 0.125)}
    assert "reading" in found.to_text()
    page = found.to_html()
    assert page.count("<rect") == 3
    # a stage inside another stands under it
    assert 'y="34"' in page


def test_a_profile_shows_no_markup_of_a_stage():
    profile = Profile()
    profile("<script>")
    assert "<script>" not in profile.end().to_html()
