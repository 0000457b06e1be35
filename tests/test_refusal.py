"""The bench of refusals: what is counted as refused, and how well features alone tell."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from benches import SETTINGS, calibration, write_checkpoint, write_corpus
from dicom_series import write_series

from evaluation.refusal import (
    EDITS,
    WRITING,
    Judged,
    Scored,
    _judged,
    _pixels,
    areas,
    draw,
    edited,
    judge,
    prepared_array,
    prepared_volume,
    real_studies,
    score,
    to_markdown,
)
from mla_med.errors import CheckpointError, SeriesError
from mla_med.looking import Prepared
from mla_med.model.checkpoint import load_checkpoint
from mla_med.model.usual import Usual
from mla_med.types import Draft, Gate, Provenance, Reason


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusal")
    return load_checkpoint(write_checkpoint(folder / "checkpoint", write_corpus(folder / "corpus")))


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Path:
    """A short stack of slices."""
    folder = tmp_path_factory.mktemp("head")
    write_series(folder, [0.0, 2.0, 4.0, 6.0])
    return folder


def _refusal(*codes: str) -> Draft:
    reasons = tuple(Reason(code, "") for code in codes)
    return Draft(None, Gate(False, reasons), (), {}, Provenance("", "", "", "", (), ""))


def test_where_the_writing_would_begin_the_gate_is_passed():
    def draft(progress):
        progress("reading the volume")
        progress(WRITING)
        raise AssertionError("nothing is written")

    assert _judged(draft) == (True, ())


def test_a_refusal_and_an_error_of_the_images_have_their_codes():
    assert _judged(lambda progress: _refusal("WRONG_MODALITY", "NO_SERIES", "NO_SERIES")) == (
        False,
        ("WRONG_MODALITY", "NO_SERIES"),
    )

    def broken(progress):
        raise SeriesError("truncated", code="TRUNCATED_PIXELS")

    assert _judged(broken) == (False, ("TRUNCATED_PIXELS",))


def test_a_damaged_model_is_no_refusal():
    def damaged(progress):
        raise CheckpointError("weights")

    with pytest.raises(CheckpointError):
        _judged(damaged)


def test_the_bench_waits_for_the_step_that_drafting_announces():
    from mla_med import drafting

    assert f'progress("{WRITING}")' in Path(drafting.__file__).read_text(encoding="utf-8")


def test_a_real_series_is_judged_alone_with_a_patient_who_is_known(head, checkpoint):
    ((kind, study),) = real_studies(head)
    assert kind.startswith("real CT")
    assert (study.context.age_years, study.context.indication) == (60.0, "routine check")
    accepted, codes = judge(study, checkpoint)
    assert not accepted
    assert "NO_CONTEXT" not in codes
    assert codes


def test_headers_are_edited_and_the_files_left_alone(head, tmp_path):
    edited(head, tmp_path, EDITS["localizer"])
    assert len(list(tmp_path.rglob("1-*"))) == 4
    assert "LOCALIZER" in pydicom.dcmread(tmp_path / "1-000").ImageType
    assert "LOCALIZER" not in pydicom.dcmread(head / "1-000").ImageType
    ((kind, _),) = real_studies(tmp_path)
    assert kind == "real CT, localizer"


def test_what_cannot_be_placed_is_as_strange_as_can_be(checkpoint):
    one = score("real MR", False, None, checkpoint)
    assert one.distance == one.gate == math.inf


def test_the_gate_is_the_worst_of_its_parts(checkpoint):
    prepared = Prepared.whole(torch.rand(3, *SETTINGS.shape), torch.eye(4))
    assert score("x", True, prepared, checkpoint).gate >= score("x", True, prepared, checkpoint).distance
    # all air: no lung, where some is usual
    air = Prepared.whole(torch.zeros(3, *SETTINGS.shape), torch.eye(4))
    usual = calibration(usual=Usual(share=(0.1, 0.4)))
    assert _pixels(air, checkpoint, usual.usual) == math.inf
    assert score("x", True, air, replace(checkpoint, calibration=usual)).gate == math.inf


def test_a_head_can_be_looked_at_as_if_it_were_a_chest(checkpoint):
    array = np.zeros((20, 20, 20), np.int16)
    array[5:15, 5:15, 5:15] = 900
    prepared = prepared_array(array, np.diag([10.0, 10.0, 10.0, 1.0]), checkpoint)
    assert prepared.image_CIJK.shape == (3, *SETTINGS.shape)
    assert 0 < score("brain_mr phantom", False, prepared, checkpoint).distance < math.inf


def test_a_short_real_series_can_be_looked_at(head, checkpoint):
    from mla_med.dicom.volume import read_volume

    ((_, study),) = real_studies(head)
    assert prepared_volume(read_volume(study.series[0]), checkpoint).image_CIJK.shape == (3, *SETTINGS.shape)


def _scored(kind, familiar, *distances) -> list[Scored]:
    return [Scored("chest_ct", kind, familiar, d, 2 * d) for d in distances]


def test_strange_images_further_away_give_an_area_of_one(tmp_path):
    scored = [
        *_scored("chest_ct phantom of the training's site", True, 0.3, 0.4, 0.6),
        *_scored("chest_ct phantom of the second site", True, 0.4, 0.9),
        *_scored("real CT, head", False, 0.5, 3.0, math.inf, math.inf),
    ]
    (values,) = areas(scored).values()
    assert values["AUROC of the distance"] == pytest.approx(11 / 12)
    assert values["arrays that pass, chest_ct phantom of the second site (2)"] == 0.5
    draw(scored, tmp_path / "refusal.png")
    assert (tmp_path / "refusal.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_counts_codes_and_names_what_should_not_have_been_drafted():
    judged = [
        Judged("chest_ct", "real CT, head", "a", False, False, ("WRONG_BODY_PART", "COVERAGE_TOO_SMALL")),
        Judged("chest_ct", "real CT, head", "b", False, False, ("WRONG_BODY_PART",)),
        Judged("brain_mr", "real MR, brain", "c", False, True, ()),
        *[Judged("chest_ct", "second site", f"{n}", True, n > 0, ()) for n in range(20)],
    ]
    words = to_markdown(judged, {}, {"models": []})
    row = "| chest_ct | real CT, head | 2 | be refused | 2 of 2 | WRONG_BODY_PART 2, COVERAGE_TOO_SMALL 1 |"
    assert row in words
    assert "Drafted, and should not have been: 1.\n- brain_mr: real MR, brain, c" in words
    assert "19 of 20 accepted (95.0%; the bar is 95%)" in words
