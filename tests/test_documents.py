"""Draft -> text, JSON, HTML, SR and files, on a made-up draft about a real CT header."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.data import get_charset_files, get_testdata_file

from mla_med.documents.envelope import cited, source_zone
from mla_med.documents.html import draft_to_html
from mla_med.documents.json import draft_from_json, draft_to_json, told_name
from mla_med.documents.sr import draft_to_sr
from mla_med.documents.text import NOTICE, draft_to_text, sentence_findings
from mla_med.documents.write import write_draft
from mla_med.errors import OutputError, ReportError
from mla_med.types import (
    Certificate,
    Complaint,
    Draft,
    Evidence,
    Finding,
    Gate,
    Instance,
    Presence,
    Provenance,
    Reason,
    Report,
    Sentence,
    Series,
    SeriesVerdict,
    Side,
    Volume,
)

SOURCE = Path(get_testdata_file("CT_small.dcm"))
STUDY_UID = "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322"
PATIENT_NAME = "CompressedSamples^CT1"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
SLICES, SPACING_MM = 60, (2.0, 2.0, 5.0)
SPECIAL = "Nodule of ≥ 3 mm ± 0.5 µm 肺 in the right upper lobe."
NODULE_MM = np.array([60.0, 20.0, 60.0])
"""Right, in front of and above the centre, patient RAS mm."""


def make_volume() -> Volume:
    """A thorax of ellipsoids: body, lungs, heart, spine, an effusion at the left, a nodule at the right."""
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    affine[:3, 3] = (191.0, 191.0, -147.5)
    x, y, z = (affine[a, a] * np.arange(n) + affine[a, 3] for a, n in enumerate((192, 192, SLICES)))
    grid = np.meshgrid(x, y, z, indexing="ij", sparse=True)
    hu = np.full((192, 192, SLICES), -1000.0)
    for centre, radius, value in (
        ((0, 0, 0), (170, 120, 400), 30),
        ((0, 0, 0), (162, 112, 400), -90),
        ((0, 0, 0), (155, 104, 400), 45),
        ((72, 5, 10), (58, 82, 130), -850),
        ((-72, 5, 10), (58, 82, 130), -850),
        ((-22, 25, -40), (58, 48, 60), 40),
        ((0, -85, 0), (22, 20, 400), 250),
        ((-85, -68, -60), (40, 22, 50), 10),
        (NODULE_MM, (7, 7, 7), 40),
    ):
        hu[_ellipsoid(grid, centre, radius)] = value
    hu += np.random.default_rng(0).normal(0, 18, hu.shape)
    return Volume(hu.astype(np.float32), affine, make_series(), make_certificate())


def _ellipsoid(grid, centre, radius):
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radius, strict=True)) <= 1


def make_series(n: int = 1, path: Path = SOURCE, description: str = "Thorax 5.0 I30f") -> Series:
    instances = tuple(Instance(f"2.25.{n}{k:03d}", CT_IMAGE, path) for k in range(SLICES))
    return Series(f"2.25.{n}", "CT", description, "CHEST", ("ORIGINAL", "PRIMARY", "AXIAL"), instances)


def make_certificate() -> Certificate:
    return Certificate(
        shape=(192, 192, SLICES),
        spacing_mm=SPACING_MM,
        affine=(
            (-2.0, 0.0, 0.0, 191.0),
            (0.0, -2.0, 0.0, 191.0),
            (0.0, 0.0, 5.0, -147.5),
            (0.0, 0.0, 0.0, 1.0),
        ),
        orientation="axial",
        tilt_deg=0.0,
        largest_spacing_error=0.0012,
        duplicates_dropped=1,
        rescale="slope 1, intercept -1024, per slice",
        transfer_syntax_uid="1.2.840.10008.1.2.4.70",
        lossy=False,
        air_hu=-1003.0,
        notes=("1 exact duplicate dropped",),
    )


def make_report() -> Report:
    nodule = Evidence(
        ("2.25.1041", "2.25.1042"), (tuple(NODULE_MM - 8), tuple(NODULE_MM + 8)), faithfulness=2.31
    )
    effusion = Evidence(("2.25.1018",), ((-125.0, -90.0, -105.0), (-50.0, -45.0, -20.0)), faithfulness=1.07)
    findings = (
        Finding(
            "lung_nodule", Presence.PRESENT, "upper_lobe", Side.RIGHT, 14.0, confidence=0.93, evidence=nodule
        ),
        Finding("pleural_effusion", Presence.PRESENT, None, Side.LEFT, confidence=0.88, evidence=effusion),
        Finding("hiatal_hernia", Presence.CANNOT_SAY, confidence=0.51),
        Finding("pneumothorax", Presence.ABSENT, confidence=0.99),
        Finding("consolidation", Presence.ABSENT, confidence=0.97),
    )
    return Report(
        findings=findings,
        sentences=(
            Sentence(SPECIAL, ("lung_nodule",)),
            Sentence("Small left pleural effusion.", ("pleural_effusion",)),
            Sentence("A hiatal hernia cannot be excluded.", ("hiatal_hernia",)),
            Sentence("No pneumothorax and no consolidation.", ("pneumothorax", "consolidation")),
        ),
        impression=(
            Sentence("14 mm nodule in the right upper lobe.", ("lung_nodule",)),
            Sentence("Small left pleural effusion.", ("pleural_effusion",)),
        ),
        technique="CT of the chest, 60 axial slices of 5 mm, without contrast medium.",
    )


def make_provenance() -> Provenance:
    return Provenance("mla-chest", "0.1.0", "8f3a" * 16, STUDY_UID, ("2.25.1",), "2026-11-05T09:30:12+00:00")


def make_draft() -> Draft:
    return Draft(
        report=make_report(),
        gate=Gate(True, scores={"histogram_distance": 0.0731, "feature_distance": 12.4}),
        verdicts=(
            SeriesVerdict(make_series(), make_certificate(), None, chosen=True),
            SeriesVerdict(
                make_series(2, description="Thorax 1.0 B70f"),
                make_certificate(),
                Reason("THINNER_SERIES_CHOSEN", "A series with a softer kernel was preferred."),
            ),
            SeriesVerdict(
                make_series(3, description="Topogram"),
                None,
                Reason("LOCALIZER", "A localizer; it has no volume."),
            ),
        ),
        modal_weights={"lung window": 0.46, "soft tissue window": 0.27, "bone window": 0.09, "text": 0.18},
        provenance=make_provenance(),
        complaints=(
            Complaint("SIZE_NOT_STATED", "The impression gives 14 mm, the findings 3 mm.", "14 mm nodule"),
        ),
    )


def make_refusal() -> Draft:
    return Draft(
        report=None,
        gate=Gate(
            False,
            (
                Reason("BODY_PART_UNKNOWN", "The images are of a foot; this model drafts CT of the chest."),
                Reason("SLICE_GAP", "202.50 mm are missing after slice 1 of 4. Send series 2.25.3 again."),
            ),
        ),
        verdicts=make_draft().verdicts[1:],
        modal_weights={},
        provenance=replace(make_provenance(), series_uids=()),
        complaints=(Complaint("SIDE", "Nodule is right in the text.", "Nodule at the left."),),
    )


@pytest.fixture(scope="module")
def volume() -> Volume:
    return make_volume()


@pytest.fixture
def draft() -> Draft:
    return make_draft()


@pytest.fixture
def refusal() -> Draft:
    return make_refusal()


def saying(draft: Draft, text: str) -> Draft:
    """The draft with another first sentence."""
    assert draft.report is not None
    first, *others = draft.report.sentences
    return replace(draft, report=replace(draft.report, sentences=(replace(first, text=text), *others)))


# Text


def test_text_has_the_notice_the_sections_and_the_origin(draft):
    lines = draft_to_text(draft).splitlines()
    assert lines[0] == "AI DRAFT - NOT FOR DIAGNOSIS"
    assert [line for line in lines if line.isupper()][1:] == [
        "TECHNIQUE",
        "FINDINGS",
        "IMPRESSION",
        "CHECKS THAT FAILED",
    ]
    assert SPECIAL in lines
    assert "weights 8f3a8f3a8f3a8f3a" in lines[-1]


def test_text_of_a_refusal_gives_reasons_and_no_findings(refusal):
    text = draft_to_text(refusal)
    assert "No draft.\n\nBODY_PART_UNKNOWN: The images are of a foot" in text
    assert "odule" not in text


def test_two_nodules_each_get_their_own_sentence():
    right, left = (Finding("lung_nodule", side=side) for side in (Side.RIGHT, Side.LEFT))
    sentences = (Sentence("Right nodule.", ("lung_nodule",)), Sentence("Left nodule.", ("lung_nodule",)))
    report = Report((right, left), sentences, (Sentence("Two nodules.", ("lung_nodule",)),), "")
    assert sentence_findings(report.sentences, report) == [(right,), (left,)]
    assert sentence_findings(report.impression, report) == [(right, left)]


# JSON


@pytest.mark.parametrize("make", [make_draft, make_refusal])
def test_json_round_trip_is_equal_but_for_folders(make):
    text = json.dumps(draft_to_json(make()), allow_nan=False)
    back = draft_from_json(json.loads(text))
    assert draft_to_json(back) == json.loads(text)  # confidence and evidence too
    assert back.verdicts[0].series.instances[0].path == Path(told_name("CT_small.dcm"))
    assert draft_from_json(draft_to_json(back)) == back
    assert replace(make(), verdicts=back.verdicts) == back


def test_json_holds_no_folder_and_no_patient(draft):
    text = json.dumps(draft_to_json(draft))
    assert str(SOURCE.parent) not in text
    assert PATIENT_NAME not in text


def test_json_keeps_a_score_that_is_infinite(draft):
    draft = replace(draft, gate=Gate(True, scores={"distance": float("inf")}))
    text = json.dumps(draft_to_json(draft), allow_nan=False)
    assert draft_from_json(json.loads(text)).gate.scores == {"distance": float("inf")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("format"), "format mla_med.draft/1"),
        (lambda d: d["draft"].pop("gate"), "draft has unknown or missing keys: gate"),
        (lambda d: d["draft"]["report"]["findings"][0].update(presence="maybe"), r"findings\[0\].presence"),
        (lambda d: d["draft"]["gate"].update(accepted="yes"), "draft.gate.accepted is str"),
        (lambda d: d["draft"]["verdicts"][0]["certificate"]["shape"].pop(), "2 items where a draft has 3"),
    ],
)
def test_json_that_is_no_draft_is_refused_with_its_place(draft, change, message):
    data = draft_to_json(draft)
    change(data)
    with pytest.raises(ReportError, match=message):
        draft_from_json(data)


# HTML


class Page(HTMLParser):
    """Ids, links, sources, element names and attribute names of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name == "id":
                self.ids.append(value)
            if name == "href":
                self.links.append(value)
            if name in ("src", "srcset", "data", "poster", "xlink:href"):
                self.sources.append(value)


def pictures(html: str) -> list[np.ndarray]:
    uris = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri)))) for uri in uris]


def boxes(html: str) -> list[tuple[float, ...]]:
    pattern = r'class="line" x="([\d.-]+)" y="([\d.-]+)" width="([\d.-]+)" height="([\d.-]+)"'
    return [tuple(float(v) for v in match) for match in re.findall(pattern, html)]


@pytest.mark.parametrize("make", [make_draft, make_refusal])
def test_page_is_self_contained_and_its_anchors_resolve(make, volume):
    html = draft_to_html(make(), volume)
    page = Page(html)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert len(set(page.ids)) == len(page.ids)
    assert page.elements.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    assert "url(" not in html
    assert "@import" not in html
    assert PATIENT_NAME not in html
    assert len(html.encode()) < 3_000_000


def test_each_sentence_links_to_its_evidence(draft, volume):
    html = draft_to_html(draft, volume)
    assert f'<a class="words" href="#finding-1">{SPECIAL}</a>' in html
    assert '<a class="words" href="#finding-2">Small left pleural effusion.</a>' in html
    assert 'class="sentence states-4 states-5"' in html
    assert "body:has(.states-1:is(:hover, :focus-within)) #finding-1" in html


def test_box_frames_the_nodule_at_the_side_of_the_patients_right(draft, volume):
    html = draft_to_html(draft, volume)
    axial, coronal = pictures(html)[:2]
    assert axial.shape == (512, 512)
    for picture, (left, top, width, height) in zip((axial, coronal), boxes(html), strict=False):
        column, row = round(left + width / 2), round(top + height / 2)
        assert column < picture.shape[1] / 2  # patient right at image left
        assert row < picture.shape[0] / 2  # the nodule lies in front of and above the centre
        assert picture[row, column] > 200  # nodule, white in the lung window
        assert picture[row, round(left)] < 90  # lung
    assert "Slice 42 of 60, S 57.5 mm" in html
    assert "Lung window, L −600 W 1500" in html
    assert "Soft tissue window, L 40 W 400" in html


@pytest.mark.parametrize("flipped", [0, 1, 2])
def test_pictures_do_not_depend_on_how_the_voxels_are_stored(draft, volume, flipped):
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, flipped] * (volume.voxels.shape[flipped] - 1)
    affine[:3, flipped] *= -1
    instances = volume.series.instances[::-1] if flipped == 2 else volume.series.instances
    other = Volume(
        np.flip(volume.voxels, flipped).copy(),
        affine,
        replace(volume.series, instances=instances),
        volume.certificate,
    )
    before, after = draft_to_html(draft, volume), draft_to_html(draft, other)
    assert boxes(before) == boxes(after)
    for a, b in zip(pictures(before), pictures(after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_sagittal_images_are_shown_as_acquired(draft, volume):
    turned = Volume(
        np.ascontiguousarray(volume.voxels.transpose(1, 2, 0)),
        volume.affine[:, [1, 2, 0, 3]].copy(),
        volume.series,
        volume.certificate,
    )
    html = draft_to_html(draft, turned)
    assert "<strong>Sagittal</strong> · Slice 42 of 192" in html
    assert '<b class="edge left">A</b><b class="edge right">P</b>' in html


def test_page_with_every_finding_of_a_large_study_stays_under_3_mb(draft):
    noise = np.random.default_rng(0).normal(-600, 400, (512, 512, 12)).astype(np.float32)
    volume = Volume(noise, np.diag([-0.7, -0.7, 20.0, 1.0]), make_series(), make_certificate())
    finding = replace(
        make_report().findings[0], evidence=Evidence(("2.25.1004",), ((-200, -200, 60), (-150, -150, 90)))
    )
    report = replace(make_report(), findings=(finding,) * 12)
    html = draft_to_html(replace(draft, report=report), volume)
    assert len(pictures(html)) == 24
    assert len(html.encode()) < 3_000_000


def test_hostile_text_is_escaped_everywhere(draft, refusal):
    hostile = '"><script>alert(1)</script><img src=http://evil onerror=alert(1)>'
    verdict = draft.verdicts[2]
    bad_series = replace(verdict.series, description=hostile, series_uid=hostile)
    verdicts = (replace(verdict, series=bad_series, reason=Reason(hostile, hostile)),)
    provenance = replace(draft.provenance, model_name=hostile, study_uid=hostile)
    bad_draft = replace(
        saying(draft, hostile),
        verdicts=verdicts,
        provenance=provenance,
        modal_weights={hostile: 1.0},
        complaints=(Complaint(hostile, hostile, hostile),),
    )
    bad_refusal = replace(refusal, verdicts=verdicts, gate=Gate(False, (Reason(hostile, hostile),)))
    for html in (draft_to_html(bad_draft, None), draft_to_html(bad_refusal, None)):
        page = Page(html)
        assert page.elements.isdisjoint({"script", "img"})
        assert "onerror" not in page.attributes
        assert "&lt;script&gt;" in html


def test_page_of_a_refusal_says_why_and_nothing_of_findings(refusal, volume):
    html = draft_to_html(refusal, volume)
    assert "The images are of a foot; this model drafts CT of the chest." in html
    assert "What to do next" in html
    assert "A localizer; it has no volume." in html
    assert "odule" not in html
    assert not pictures(html)


def test_page_without_a_volume_says_so(draft):
    html = draft_to_html(draft, None)
    assert "The images were not at hand" in html
    assert not pictures(html)


# SR


def saved(sr, folder: Path) -> Path:
    path = folder / "draft.dcm"
    sr.save_as(path, enforce_file_format=True)
    return path


def texts(dataset) -> list[str]:
    return [item.TextValue for item in walk(dataset) if item.ValueType == "TEXT"]


def walk(item):
    yield item
    for child in item.get("ContentSequence", []):
        yield from walk(child)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("make", [make_draft, make_refusal])
def test_dciodvfy_finds_no_error(make, tmp_path):
    path = saved(draft_to_sr(make(), SOURCE), tmp_path)
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    assert "BasicTextSR" in done.stdout + done.stderr
    assert "Error" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("make", "completion", "description"),
    [
        (make_draft, "COMPLETE", None),
        (make_refusal, "PARTIAL", "No draft: BODY_PART_UNKNOWN, SLICE_GAP"),
    ],
)
def test_sr_is_unverified_preliminary_and_in_utf8(make, completion, description, tmp_path):
    sr = dcmread(saved(draft_to_sr(make(), [SOURCE]), tmp_path))
    assert sr.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.11"
    assert sr.VerificationFlag == "UNVERIFIED"
    assert sr.PreliminaryFlag == "PRELIMINARY"
    assert sr.CompletionFlag == completion
    assert sr.get("CompletionFlagDescription") == description
    assert sr.SpecificCharacterSet == "ISO_IR 192"
    assert sr.SeriesDescription == NOTICE
    assert (sr.PatientName, sr.StudyInstanceUID) == (PATIENT_NAME, STUDY_UID)
    assert sr.preamble == bytes(128)
    # 09:30:12 UTC on the clock of the images
    assert (sr.ContentDate, sr.ContentTime, sr.TimezoneOffsetFromUTC) == ("20261105", "043012", "-0500")


@pytest.mark.parametrize("name", ["IM0001.dcm", "000123", "I10", "IMG-00001.dcm", "1.2.840.10008.5.1.4"])
def test_a_file_name_that_tells_nothing_is_kept(name):
    assert told_name(name) == name


@pytest.mark.parametrize(
    "name", ["DOE_JOHN_19500101_0.dcm", "MRN4711082.dcm", "王伟.dcm", "19500101.dcm", "a\udcff"]
)
def test_a_file_name_that_may_be_a_patient_is_told_by_its_digest(name):
    told = told_name(name)
    assert re.fullmatch(r"[0-9a-f]{24}\.file", told)
    assert told_name(told) == told
    assert told_name(f"1{name}") != told


@pytest.mark.parametrize(
    ("offset", "hours"), [("-0500", -5.0), ("+0545", 5.75), ("+2400", None), ("+9900", None), ("+0175", None)]
)
def test_a_zone_that_no_place_has_is_none(offset, hours):
    header = Dataset()
    header.TimezoneOffsetFromUTC = offset
    zone = source_zone(header)
    assert zone == (None if hours is None else timezone(timedelta(hours=hours)))


def test_sr_text_comes_back_equal(draft, tmp_path):
    sr = dcmread(saved(draft_to_sr(draft, SOURCE), tmp_path))
    assert SPECIAL in texts(sr)


@pytest.mark.parametrize("text", ["“a” – µ", "شريحة", "右肺结节。\n约 3 mm", "a\\b^c=d", "x" * 65_536])
def test_sr_keeps_any_text(draft, text, tmp_path):
    sr = dcmread(saved(draft_to_sr(saying(draft, text), SOURCE), tmp_path))
    assert text in texts(sr)


@pytest.mark.parametrize("text", ["broken \ud800", "escape \x1b$B"])
def test_sr_refuses_a_text_that_would_be_lost(draft, text):
    with pytest.raises(OutputError, match="does not survive encoding") as caught:
        draft_to_sr(saying(draft, text), SOURCE)
    assert caught.value.code == "TEXT_LOST"


@pytest.mark.parametrize("name", ["chrX1.dcm", "chrH31.dcm", "chrGreek.dcm"])
def test_sr_keeps_a_name_in_any_character_set(draft, name, tmp_path):
    (image,) = get_charset_files(name)
    source = dcmread(image)
    source.StudyInstanceUID = STUDY_UID
    source.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    sr = dcmread(saved(draft_to_sr(draft, tmp_path / "image.dcm"), tmp_path))
    assert str(sr.PatientName) == str(source.PatientName)


def test_sr_cites_the_evidence_of_each_sentence(draft):
    items = {i.TextValue: i for i in walk(draft_to_sr(draft, SOURCE)) if i.ValueType == "TEXT"}
    images = items[SPECIAL].ContentSequence
    assert [i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in images] == ["2.25.1041", "2.25.1042"]
    assert {i.ConceptNameCodeSequence[0].CodeValue for i in images} == {"121080"}
    assert {i.RelationshipType for i in images} == {"INFERRED FROM"}
    assert "ContentSequence" not in items["No pneumothorax and no consolidation."]


def test_frames_of_several_findings_come_together_and_a_whole_object_stays_whole(draft):
    present = next(f for f in draft.report.findings if f.evidence)

    def seen(uids: tuple[str, ...], *frames: tuple[int, ...]):
        return replace(present, evidence=replace(present.evidence, sop_instance_uids=uids, frames=frames))

    assert cited([seen(("1", "2"), (3, 4), (5,)), seen(("2",), (7, 5))]) == {"1": [3, 4], "2": [5, 7]}
    assert cited([seen(("1",)), seen(("1",), (3,))]) == {"1": None}
    assert cited([seen(("1",), (3,)), seen(("1",))]) == {"1": None}


def test_sr_follows_the_order_of_tid_2000(draft):
    sr = draft_to_sr(draft, SOURCE)
    assert sr.ContentTemplateSequence[0].TemplateIdentifier == "2000"
    names = [i.ConceptNameCodeSequence[0].CodeValue for i in sr.ContentSequence]
    observer = ["121005", "121012", "121013", "121014", "121015", "121016"]
    assert names == ["121049", *observer, "121064", "121070", "121072", "121111"]


def test_sr_lists_every_image_of_the_chosen_series_as_evidence(draft, refusal):
    def evidence(sr):
        (study,) = sr.CurrentRequestedProcedureEvidenceSequence
        assert study.StudyInstanceUID == sr.StudyInstanceUID
        return {s.SeriesInstanceUID: len(s.ReferencedSOPSequence) for s in study.ReferencedSeriesSequence}

    assert evidence(draft_to_sr(draft, SOURCE)) == {"2.25.1": 60}
    assert evidence(draft_to_sr(refusal, SOURCE)) == {"2.25.2": 60, "2.25.3": 60}


def test_sr_of_a_refusal_has_the_reasons_and_no_findings(refusal):
    sr = draft_to_sr(refusal, SOURCE)
    assert "BODY_PART_UNKNOWN: The images are of a foot; this model drafts CT of the chest." in texts(sr)
    assert "121070" not in {i.ConceptNameCodeSequence[0].CodeValue for i in walk(sr)}
    assert not any("odule" in text for text in texts(sr))


def test_a_uid_never_names_two_different_files(draft):
    same, again = draft_to_sr(draft, SOURCE), draft_to_sr(draft, SOURCE)
    other = draft_to_sr(saying(draft, "Another sentence."), SOURCE)
    assert same.SOPInstanceUID == again.SOPInstanceUID != other.SOPInstanceUID
    assert same.SOPInstanceUID.startswith("2.25.")
    assert same.SeriesInstanceUID == other.SeriesInstanceUID


def test_new_weights_are_a_new_device(draft):
    other = replace(draft, provenance=replace(draft.provenance, weights_sha256="0b" * 32))
    uids = [draft_to_sr(d, SOURCE).ContributingEquipmentSequence[0].DeviceUID for d in (draft, other)]
    assert uids[0] != uids[1]


def test_source_image_of_another_study_is_refused(draft):
    with pytest.raises(OutputError, match="could name another patient"):
        draft_to_sr(draft, Path(get_testdata_file("MR_small.dcm")))


def test_bad_and_missing_patient_attributes_are_neither_fatal_nor_printed(
    draft, tmp_path, caplog, capfd, recwarn
):
    source = dcmread(SOURCE)
    del source.AccessionNumber, source.StudyID
    source.PatientBirthDate = "19990101"
    source.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    raw = (tmp_path / "image.dcm").read_bytes()
    (tmp_path / "image.dcm").write_bytes(raw.replace(b"19990101", b"CANARY_1"))
    sr = draft_to_sr(draft, tmp_path / "image.dcm")
    assert not sr.AccessionNumber
    assert not sr.StudyID
    out = capfd.readouterr()
    assert sr.PatientBirthDate == "CANARY_1"
    assert "CANARY" not in out.out + out.err + caplog.text
    assert not [w for w in recwarn if "CANARY" in str(w.message)]


def test_no_code_here_can_sign_a_draft():
    folder = Path(sys.modules[draft_to_sr.__module__].__file__).parent
    files = [*folder.glob("*.py"), *folder.glob("templates/*")]
    assert len(files) >= 6
    for file in files:
        assert not re.search(r"(?<!UN)VERIFIED|FINAL|VerifyingObserver", file.read_text()), file


def test_documents_need_no_torch():
    code = "import sys, mla_med.documents.write; sys.exit(bool({'torch', 'monai'} & set(sys.modules)))"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


# Files

NAMES = ["draft.dcm", "draft.html", "draft.json", "draft.txt"]


@pytest.mark.parametrize("make", [make_draft, make_refusal])
def test_write_draft_makes_four_files_and_leaves_nothing_else(make, volume, tmp_path):
    paths = write_draft(make(), volume, tmp_path / "new" / "out")
    assert sorted(path.name for path in paths) == NAMES
    assert sorted(os.listdir(tmp_path / "new" / "out")) == NAMES
    assert dcmread(tmp_path / "new" / "out" / "draft.dcm").preamble == bytes(128)
    data = json.loads((tmp_path / "new" / "out" / "draft.json").read_text("utf-8"))
    assert draft_from_json(data).gate == make().gate


def test_folder_that_cannot_be_made_is_one_line(draft, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match="Not a directory") as caught:
        write_draft(draft, None, tmp_path / "file" / "out")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


def test_study_that_went_away_is_refused_before_anything_is_written(draft, tmp_path):
    gone = tuple(
        replace(v, series=make_series(n, path=tmp_path / "gone.dcm")) for n, v in enumerate(draft.verdicts)
    )
    with pytest.raises(OutputError, match="No image file of study"):
        write_draft(replace(draft, verdicts=gone), None, tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def tiny_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("folder", ["", "out"])
def test_full_disk_leaves_nothing(draft, volume, tiny_disk, folder):
    with pytest.raises(OutputError, match="No space left on device"):
        write_draft(draft, volume, tiny_disk / folder)
    assert os.listdir(tiny_disk) == []


def test_full_disk_leaves_the_draft_before_as_it_was(draft, refusal, volume, tiny_disk):
    write_draft(refusal, None, tiny_disk)
    before = {name: (tiny_disk / name).read_bytes() for name in os.listdir(tiny_disk)}
    with pytest.raises(OutputError, match="No space left on device"):
        write_draft(draft, volume, tiny_disk)
    assert {name: (tiny_disk / name).read_bytes() for name in os.listdir(tiny_disk)} == before


def test_read_only_folder_is_one_line_and_stays_empty(draft, tiny_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(OutputError, match="Read-only file system"):
        write_draft(draft, None, tiny_disk)
    assert os.listdir(tiny_disk) == []
