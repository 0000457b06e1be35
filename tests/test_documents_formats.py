"""Draft -> SR with measurements, PDF, key objects, heat maps, FHIR and HL7: what each says and refuses."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from phantom_drafts import affine, phantom_draft
from pydicom import dcmread
from pydicom.dataset import Dataset

import mla_med.documents as package
from mla_med.documents import codes, hl7
from mla_med.documents.envelope import Revision, libraries_silent, read_header
from mla_med.documents.json import draft_from_json
from mla_med.documents.write import (
    DICOM,
    FORMATS,
    parse_formats,
    revision_of,
    write_documents,
    write_draft,
)
from mla_med.errors import ConfigError, OutputError
from mla_med.report.schema import SCHEMAS
from mla_med.types import Draft, Presence, Sentence

pytest.importorskip("reportlab")
pytest.importorskip("fhir.resources")

CHEST_EN, HEAD_ZH, CHEST_ZH_WITH_PRIOR, REFUSAL = 0, 3, 2, 9
REVISED_UTC = "2026-11-05T10:00:00+00:00"
SPECIAL = "Nodule of ≥ 3 mm ± 0.5 µm – “a” 肺 | ^ & ~ \\ <b>."


class World:
    """Drafts and their documents, each made once."""

    def __init__(self, folder: Path):
        self.folder, self._drafts, self._documents = folder, {}, {}

    def draft(self, seed: int) -> Draft:
        if seed not in self._drafts:
            self._drafts[seed] = phantom_draft(seed, self.folder)
        return self._drafts[seed]

    def documents(self, seed: int, revised: bool = False):
        if (seed, revised) not in self._documents:
            revision = None
            if revised:
                revision = revision_of(self.documents(seed).values(), "Reviewer^Rolf", REVISED_UTC)
            made = write_documents(self.draft(seed), formats=FORMATS, revision=revision)
            self._documents[seed, revised] = {document.format: document for document in made}
        return self._documents[seed, revised]

    def dataset(self, seed: int, form: str, revised: bool = False) -> Dataset:
        return dcmread(io.BytesIO(self.documents(seed, revised)[form].content))

    def bundle(self, seed: int, revised: bool = False) -> dict:
        return json.loads(self.documents(seed, revised)["fhir"].content)

    def message(self, seed: int, revised: bool = False) -> list[list[str]]:
        text = self.documents(seed, revised)["hl7"].content.decode()
        return [line.split("|") for line in text.split("\r") if line]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("images"))


def saying(draft: Draft, text: str) -> Draft:
    """The draft with another first sentence."""
    assert draft.report is not None
    first, *others = draft.report.sentences
    return replace(draft, report=replace(draft.report, sentences=(replace(first, text=text), *others)))


def walk(item: Dataset):
    for child in item.get("ContentSequence", []):
        yield child
        yield from walk(child)


def named(item: Dataset, code: str) -> list[Dataset]:
    return [i for i in walk(item) if value_of(i.get("ConceptNameCodeSequence")) == code]


def code_in(item: Dataset) -> str:
    return value_of(item.ConceptCodeSequence)


def value_of(code_sequence) -> str:
    """Codes of more than 16 characters stand elsewhere (PS3.3 8.1)."""
    code = code_sequence[0] if code_sequence else Dataset()
    return code.get("CodeValue") or code.get("LongCodeValue") or ""


def resources(bundle: dict, kind: str) -> list[dict]:
    return [e["resource"] for e in bundle["entry"] if e["resource"]["resourceType"] == kind]


# Comprehensive 3D SR


def test_each_finding_is_a_measurement_group_with_its_algorithm(world):
    draft, sr = world.draft(CHEST_EN), world.dataset(CHEST_EN, "sr3d")
    groups = named(sr, "125007")
    assert len(groups) == len(draft.report.findings)
    assert sr.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    for group, finding in zip(groups, draft.report.findings, strict=True):
        assert code_in(named(group, "121071")[0]) == codes.finding_code(finding, "chest_ct").value
        assert code_in(named(group, "121052")[0]) == codes.PRESENCES[finding.presence].value
        assert named(group, "111001")[0].TextValue == "mla-phantom"
        assert named(group, "111003")[0].TextValue == "0.1.0"


def test_size_certainty_and_side_are_measured_and_coded(world):
    draft, sr = world.draft(CHEST_EN), world.dataset(CHEST_EN, "sr3d")
    nodule = draft.report.findings[0]
    group = named(sr, "125007")[0]
    (size,) = named(group, "103339001")
    assert float(size.MeasuredValueSequence[0].NumericValue) == nodule.size_mm
    assert size.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue == "mm"
    (certainty,) = named(group, "111012")
    assert float(certainty.MeasuredValueSequence[0].NumericValue) == pytest.approx(100 * nodule.confidence)
    assert code_in(named(group, "272741003")[0]) == {"right": "24028007", "left": "7771000"}[nodule.side]


def test_a_box_stands_in_lps_and_in_the_frame_of_the_images(world):
    draft, sr = world.draft(CHEST_EN), world.dataset(CHEST_EN, "sr3d")
    box = np.array(draft.report.findings[0].evidence.box_mm)
    faces = named(named(sr, "125007")[0], "121231")
    points = np.concatenate([np.reshape(face.GraphicData, (-1, 3)) for face in faces])
    np.testing.assert_allclose(points.min(axis=0), (-box[1, 0], -box[1, 1], box[0, 2]), rtol=1e-5)
    np.testing.assert_allclose(points.max(axis=0), (-box[0, 0], -box[0, 1], box[1, 2]), rtol=1e-5)
    image = dcmread(draft.verdicts[0].series.instances[0].path)
    assert {face.ReferencedFrameOfReferenceUID for face in faces} == {image.FrameOfReferenceUID}


def test_without_the_images_the_groups_have_images_and_no_box(world, tmp_path):
    draft = world.draft(CHEST_EN)
    kept = draft.verdicts[0].series.instances[0].path
    gone = tuple(replace(i, path=tmp_path / "gone") for i in draft.verdicts[0].series.instances)
    verdict = replace(draft.verdicts[0], series=replace(draft.verdicts[0].series, instances=gone))
    other = dcmread(kept)
    other.SeriesInstanceUID = "2.25.4"
    other.save_as(tmp_path / "other.dcm")
    moved = replace(draft, verdicts=(verdict, *draft.verdicts[1:]))
    (document,) = write_documents(moved, formats=["sr3d"], source=tmp_path / "other.dcm")
    sr = dcmread(io.BytesIO(document.content))
    assert not named(sr, "121231")
    assert len(named(named(sr, "125007")[0], "121112")) == len(
        draft.report.findings[0].evidence.sop_instance_uids
    )


def test_changes_since_the_prior_are_coded_and_its_images_pertinent(world):
    draft, sr = world.draft(CHEST_ZH_WITH_PRIOR), world.dataset(CHEST_ZH_WITH_PRIOR, "sr3d")
    changes = [codes.CHANGES[f.change].value for f in draft.report.findings if f.change]
    assert [code_in(item) for item in named(sr, "change")] == changes
    assert sr.PertinentOtherEvidenceSequence[0].StudyInstanceUID == draft.prior.study_uid


def test_a_private_code_names_its_scheme(world):
    sr = world.dataset(CHEST_EN, "sr3d")
    (scheme,) = sr.CodingSchemeIdentificationSequence
    assert (scheme.CodingSchemeDesignator, scheme.CodingSchemeUID) == ("99MLAMED", codes.PRIVATE_SCHEME_UID)


def test_public_codes_are_in_the_dictionary_of_dicom():
    from pydicom.sr._concepts_dict import concepts

    known = {scheme: {v for d in words.values() for v in d} for scheme, words in concepts.items()}
    used = [*codes.PRESENCES.values(), *codes.SIDES.values(), *codes.CHANGES.values(), codes.CERTAINTY]
    used += [codes.LATERALITY, codes.LONG_AXIS, codes.LENGTH, codes.NUMBER_OF_LESIONS, codes.PRESENCE]
    used += [codes.PROCEDURE, *codes.REGIONS.values()]
    assert set(codes.REGIONS) == set(SCHEMAS)
    assert [c for c in used if c.scheme != codes.PRIVATE_SCHEME and c.value not in known[c.scheme]] == []


# PDF


def test_pdf_is_encapsulated_as_a_document_of_the_cited_images(world):
    draft, pdf = world.draft(CHEST_EN), world.dataset(CHEST_EN, "pdf")
    assert (pdf.Modality, pdf.SOPClassUID) == ("DOC", "1.2.840.10008.5.1.4.1.1.104.1")
    assert (pdf.BurnedInAnnotation, pdf.VerificationFlag) == ("YES", "UNVERIFIED")
    assert pdf.DocumentTitle == "AI DRAFT - NOT FOR DIAGNOSIS"
    assert len(pdf.EncapsulatedDocument) % 2 == 0
    pages = pdf.EncapsulatedDocument[: pdf.EncapsulatedDocumentLength]
    assert pages.startswith(b"%PDF")
    assert pages.rstrip().endswith(b"%%EOF")
    cited = {i.ReferencedSOPInstanceUID for i in pdf.SourceInstanceSequence}
    assert cited == {u for f in draft.report.findings if f.evidence for u in f.evidence.sop_instance_uids}


def test_pages_embed_their_fonts_and_say_no_name_outside_the_page(world):
    for seed in (CHEST_EN, CHEST_ZH_WITH_PRIOR, REFUSAL):
        pages = world.dataset(seed, "pdf").EncapsulatedDocument
        assert pages.count(b"/FontFile2") >= 1
        assert b"Phantom" not in pages
        assert b"/Title (AI DRAFT" in pages


def test_words_can_be_copied_from_the_pages_as_they_were(world):
    pypdf = pytest.importorskip("pypdf")
    for draft in (saying(world.draft(CHEST_EN), SPECIAL), world.draft(CHEST_ZH_WITH_PRIOR)):
        (document,) = write_documents(draft, formats=["pdf"])
        pages = io.BytesIO(dcmread(io.BytesIO(document.content)).EncapsulatedDocument)
        copied = "\n".join(page.extract_text() for page in pypdf.PdfReader(pages).pages)
        for sentence in (*draft.report.sentences, *draft.report.impression):
            assert sentence.text in copied
        assert "穆勒 于尔根" in copied or "张 三" in copied


@pytest.mark.parametrize(("text", "code"), [("شريحة", "FONT_MISSING"), ("\U0001fac1", "FONT_MISSING")])
def test_a_character_without_a_glyph_is_refused_not_drawn_as_a_box(world, text, code):
    with pytest.raises(OutputError, match=r"U\+") as caught:
        write_documents(saying(world.draft(CHEST_EN), text), formats=["pdf"])
    assert caught.value.code == code


def test_a_long_draft_has_pages_with_numbers(world):
    draft = saying(world.draft(CHEST_EN), "word " * 4000)
    (document,) = write_documents(draft, formats=["pdf"])
    assert dcmread(io.BytesIO(document.content)).EncapsulatedDocument.count(b"/Type /Page\n") > 3


# Key objects


def test_key_objects_are_the_cited_images_and_of_interest(world):
    draft, kos = world.draft(CHEST_EN), world.dataset(CHEST_EN, "kos")
    assert kos.ConceptNameCodeSequence[0].CodeValue == "113000"  # a title that rejects would hide images
    images = [i for i in walk(kos) if i.ValueType == "IMAGE"]
    assert not any("ConceptNameCodeSequence" in i for i in images)
    cited = [u for f in draft.report.findings if f.evidence for u in f.evidence.sop_instance_uids]
    assert [i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in images] == list(dict.fromkeys(cited))


def test_a_draft_that_cites_nothing_has_no_key_objects_and_no_heat_map(world):
    draft = world.draft(CHEST_EN)
    bare = tuple(replace(f, evidence=None) for f in draft.report.findings)
    plain = replace(draft, report=replace(draft.report, findings=bare))
    documents = write_documents(plain, formats=["sr", "kos", "seg", "pm"])
    assert [d.format for d in documents] == ["sr"]


# Heat maps


def test_segments_lie_where_the_strong_cells_are(world):
    draft, seg = world.draft(CHEST_EN), world.dataset(CHEST_EN, "seg")
    shown = [f for f in draft.report.findings if f.presence is Presence.PRESENT and f.evidence]
    assert len(seg.SegmentSequence) == len(shown)
    for number, finding in enumerate(shown, start=1):
        points = _lps_of_segment(seg, number)
        strong = np.array(finding.evidence.heat[0].box_mm)
        low, high = (-strong[1, 0], -strong[1, 1], strong[0, 2]), (-strong[0, 0], -strong[0, 1], strong[1, 2])
        assert len(points)
        assert (points >= np.array(low) - 1e-3).all()
        assert (points <= np.array(high) + 1e-3).all()
        # 30 mm cells on a grid of 14 x 14 x 16 mm: every centre in the cell is marked, and no other
        assert len(points) == _centres_in(strong)


def _lps_of_segment(seg: Dataset, number: int) -> np.ndarray:
    points = []
    for frame, pixels in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber != number:
            continue
        origin = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.nonzero(pixels)
        spacing = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        points += [
            origin + np.array((c * spacing[1], r * spacing[0], 0)) for r, c in zip(rows, columns, strict=True)
        ]
    return np.array(points)


def _centres_in(box_mm: np.ndarray) -> int:
    matrix = affine()
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (32, 32, 24)), indexing="ij"), -1).reshape(-1, 3)
    centres = index @ matrix[:3, :3].T + matrix[:3, 3]
    return int(((centres >= box_mm[0]) & (centres <= box_mm[1])).all(axis=1).sum())


def test_segments_are_findings_with_their_codes_and_the_source_images(world):
    draft, seg = world.draft(CHEST_EN), world.dataset(CHEST_EN, "seg")
    first = seg.SegmentSequence[0]
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "27925004"
    assert first.SegmentAlgorithmType == "AUTOMATIC"
    assert seg.SegmentationType == "BINARY"
    known = {i.sop_instance_uid for i in draft.verdicts[0].series.instances}
    (series,) = seg.ReferencedSeriesSequence
    assert {i.ReferencedSOPInstanceUID for i in series.ReferencedInstanceSequence} <= known


def test_the_map_keeps_the_weights(world):
    draft, pm = world.draft(CHEST_EN), world.dataset(CHEST_EN, "pm")
    frames = pm.PerFrameFunctionalGroupsSequence
    mapping = frames[0].get("RealWorldValueMappingSequence")[0]
    assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeValue == "130404"
    values = np.unique(np.round(pm.pixel_array * mapping.RealWorldValueSlope, 3))
    np.testing.assert_allclose(values, [0, 0.4, 1], atol=1e-3)
    assert pm.Modality == draft.verdicts[0].series.modality


def test_heat_maps_of_images_that_went_away_are_refused(world, tmp_path):
    draft = world.draft(CHEST_EN)
    source = draft.verdicts[0].series.instances[0].path
    gone = tuple(replace(i, path=tmp_path / "gone") for i in draft.verdicts[0].series.instances)
    verdict = replace(draft.verdicts[0], series=replace(draft.verdicts[0].series, instances=gone))
    with pytest.raises(OutputError, match="is not there"):
        write_documents(replace(draft, verdicts=(verdict,)), formats=["seg"], source=source)


def test_heat_maps_on_images_of_several_frames_of_reference_are_refused(world, tmp_path):
    draft = phantom_draft(CHEST_EN, tmp_path)
    for n, instance in enumerate(draft.verdicts[0].series.instances):
        image = dcmread(instance.path)
        image.FrameOfReferenceUID = f"2.25.{n + 1}"
        image.save_as(instance.path)
    with pytest.raises(OutputError, match="several frames of reference"):
        write_documents(draft, formats=["seg"])
    (document,) = write_documents(draft, formats=["sr3d"])
    faces = named(dcmread(io.BytesIO(document.content)), "121231")
    cited = draft.report.findings[0].evidence.sop_instance_uids[0]
    assert faces[0].ReferencedFrameOfReferenceUID == next(
        f"2.25.{n + 1}"
        for n, i in enumerate(draft.verdicts[0].series.instances)
        if i.sop_instance_uid == cited
    )


def test_heat_maps_on_a_tilted_series_are_refused(world):
    draft = world.draft(CHEST_EN)
    tilted = [list(row) for row in draft.verdicts[0].certificate.affine]
    tilted[1][2] = 4.0
    certificate = replace(draft.verdicts[0].certificate, affine=tuple(tuple(row) for row in tilted))
    with pytest.raises(OutputError, match="tilted gantry"):
        write_documents(
            replace(draft, verdicts=(replace(draft.verdicts[0], certificate=certificate),)), formats=["pm"]
        )


# FHIR


def test_a_bundle_has_a_report_a_study_and_an_observation_for_each_finding(world):
    draft, bundle = world.draft(CHEST_EN), world.bundle(CHEST_EN)
    (report,) = resources(bundle, "DiagnosticReport")
    (study,) = resources(bundle, "ImagingStudy")
    observations = resources(bundle, "Observation")
    assert report["status"] == "preliminary"
    assert {o["status"] for o in observations} == {"preliminary"}
    assert len(observations) == len(draft.report.findings) == len(report["result"])
    assert report["subject"]["identifier"]["value"] == "P-00000"
    sr = world.documents(CHEST_EN)["sr"].reference.sop_instance_uid
    assert report["identifier"] == [{"system": "urn:dicom:uid", "value": f"urn:oid:{sr}"}]
    assert study["identifier"][0]["value"] == f"urn:oid:{draft.provenance.study_uid}"
    assert report["effectiveDateTime"] == "2026-11-05T08:15:00+08:00"


def test_side_size_and_evidence_are_components(world):
    draft = world.draft(CHEST_EN)
    nodule, observation = draft.report.findings[0], resources(world.bundle(CHEST_EN), "Observation")[0]
    parts = {part["code"]["coding"][0]["code"]: part for part in observation["component"]}
    assert parts["103339001"]["valueQuantity"] == {
        "value": nodule.size_mm,
        "unit": "mm",
        "system": "http://unitsofmeasure.org",
        "code": "mm",
    }
    assert parts["272741003"]["valueCodeableConcept"]["coding"][0]["display"].lower() == nodule.side
    for uid in nodule.evidence.sop_instance_uids:
        assert f"urn:oid:{uid}" in parts["evidence"]["valueString"]


def test_a_report_carries_its_pages_and_its_text(world):
    (report,) = resources(world.bundle(CHEST_ZH_WITH_PRIOR), "DiagnosticReport")
    text, pages = report["presentedForm"]
    assert (
        base64.b64decode(text["data"]).decode()
        == world.documents(CHEST_ZH_WITH_PRIOR)["txt"].content.decode()
    )
    assert base64.b64decode(pages["data"]).startswith(b"%PDF")
    assert report["language"] == "zh"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["DiagnosticReport"].update(status="draft"), "has the status 'draft'"),
        (lambda r: r["DiagnosticReport"].update(status="amended"), "has the status 'amended'"),
        (lambda r: r["Observation"]["device"].update(reference="#nobody"), "which is not in the bundle"),
        (
            lambda r: r["DiagnosticReport"].update(performer=[r["Observation"]["device"]]),
            "refers to a Device",
        ),
        (lambda r: r["DiagnosticReport"]["code"]["coding"][0].update(code="banana"), "the code 'banana'"),
        (lambda r: r["Observation"]["subject"].pop("identifier"), "is of no patient"),
    ],
)
def test_what_the_library_lets_pass_is_found(world, change, words):
    from fhir.resources.R4B.bundle import Bundle

    from mla_med.documents.fhir import problems_in

    bundle = world.bundle(CHEST_EN)
    assert problems_in(bundle) == []
    change({kind: resources(bundle, kind)[0] for kind in ("DiagnosticReport", "Observation")})
    Bundle.model_validate(bundle)  # does not mind
    assert any(words in problem for problem in problems_in(bundle))


@pytest.mark.parametrize("form", ["fhir", "hl7"])
def test_a_message_about_nobody_is_refused(world, form, tmp_path):
    draft = world.draft(CHEST_EN)
    image = dcmread(draft.verdicts[0].series.instances[0].path)
    image.PatientID = ""
    image.save_as(tmp_path / "image.dcm")
    with pytest.raises(OutputError, match="belongs to nobody") as caught:
        write_documents(draft, formats=[form], source=tmp_path / "image.dcm")
    assert caught.value.code == "PATIENT_NOT_STATED"


# HL7 v2


def test_every_status_of_a_message_is_preliminary_and_its_key_its_content(world):
    rows = world.message(CHEST_EN)
    head, obr = rows[0], next(r for r in rows if r[0] == "OBR")
    assert (head[8], head[11], head[17]) == ("ORU^R01^ORU_R01", "2.5.1", "UNICODE UTF-8")
    assert obr[25] == "P"
    assert {r[11] for r in rows if r[0] == "OBX"} == {"P"}
    assert head[9] != world.message(CHEST_ZH_WITH_PRIOR)[0][9]
    assert len(head[9]) == 20


def test_names_of_several_scripts_are_repetitions(world):
    pid = next(r for r in world.message(CHEST_EN) if r[0] == "PID")
    assert pid[5] == "Müller^Jürgen^^^^^L^A~穆勒^于尔根^^^^^L^I"
    assert pid[3].split("^")[0] == "P-00000"


def test_text_comes_back_equal_from_every_format_that_carries_it(world):
    parser = pytest.importorskip("hl7")
    draft = saying(world.draft(CHEST_EN), SPECIAL)
    made = {d.format: d.content for d in write_documents(draft, formats=["sr", "fhir", "hl7", "txt", "pdf"])}
    message = parser.parse(made["hl7"].decode())
    sent = [message.unescape(str(row[5])) for row in message.segments("OBX")]
    assert SPECIAL in sent
    assert SPECIAL in [i.get("TextValue") for i in walk(dcmread(io.BytesIO(made["sr"])))]
    (report,) = resources(json.loads(made["fhir"]), "DiagnosticReport")
    assert SPECIAL in base64.b64decode(report["presentedForm"][0]["data"]).decode().splitlines()


def test_two_hundred_strings_of_every_script_come_back_equal_from_sr_fhir_and_hl7(world):
    parser = pytest.importorskip("hl7")
    strings = [f"{n} {SPECIAL} {made_up(n)}" for n in range(199)] + ["肺" * 65_536]
    draft = world.draft(CHEST_EN)
    report = replace(draft.report, sentences=tuple(Sentence(text) for text in strings))
    made = write_documents(replace(draft, report=report), formats=["sr", "fhir", "hl7"])
    content = {d.format: d.content for d in made}
    sr = [i.get("TextValue") for i in walk(dcmread(io.BytesIO(content["sr"])))]
    message = parser.parse(content["hl7"].decode())
    rows = [message.unescape(str(row[5])) for row in message.segments("OBX")]
    (resource,) = resources(json.loads(content["fhir"]), "DiagnosticReport")
    lines = base64.b64decode(resource["presentedForm"][0]["data"]).decode().split("\n")
    for got in (sr, rows, lines):
        assert [text for text in strings if text not in got] == []


SCRIPTS = ((0x00A1, 0x17F), (0x391, 0x3C9), (0x410, 0x44F), (0x5D0, 0x5EA), (0x621, 0x64A), (0x905, 0x939))
SCRIPTS += ((0xE01, 0xE30), (0x3041, 0x3096), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0x2190, 0x22FF))
SCRIPTS += ((0x1F300, 0x1F5FF),)


def made_up(n: int) -> str:
    """Twenty characters of the n-th script."""
    low, high = SCRIPTS[n % len(SCRIPTS)]
    rng = np.random.default_rng(n)
    return "".join(chr(c) for c in rng.integers(low, high, 20)) + "."


@pytest.mark.parametrize("form", ["fhir", "hl7", "sr", "txt"])
@pytest.mark.parametrize("text", ["broken \ud800", "escape \x1b$B"])
def test_a_text_that_would_be_lost_is_refused_in_every_format(world, form, text):
    with pytest.raises(OutputError, match="does not survive encoding") as caught:
        write_documents(saying(world.draft(CHEST_EN), text), formats=[form])
    assert caught.value.code == "TEXT_LOST"


# Refusals and revisions


def test_every_format_of_a_refusal_says_why_and_nothing_of_findings(world):
    documents = world.documents(REFUSAL)
    assert set(documents) == set(FORMATS) - {"seg", "pm"}
    why = "The images are of a foot"
    for form in ("sr", "sr3d", "kos"):
        texts = [i.TextValue for i in walk(world.dataset(REFUSAL, form)) if i.ValueType == "TEXT"]
        assert any(why in text for text in texts), form
        assert any("No draft." in text for text in texts), form
    assert "125007" not in {
        i.ConceptNameCodeSequence[0].CodeValue for i in walk(world.dataset(REFUSAL, "sr3d"))
    }
    (report,) = resources(world.bundle(REFUSAL), "DiagnosticReport")
    assert why in report["conclusion"]
    assert "result" not in report
    assert any(why in row[5] for row in world.message(REFUSAL) if row[0] == "OBX")
    assert world.dataset(REFUSAL, "sr3d").CompletionFlag == "PARTIAL"


@pytest.mark.parametrize("seed", [CHEST_EN, REFUSAL])
@pytest.mark.parametrize("form", ["sr", "sr3d", "pdf"])
def test_a_revision_links_its_predecessor_and_stays_preliminary(world, seed, form):
    before, after = world.dataset(seed, form), world.dataset(seed, form, revised=True)
    (study,) = after.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (document,) = series.ReferencedSOPSequence
    assert study.StudyInstanceUID == before.StudyInstanceUID
    assert series.SeriesInstanceUID == before.SeriesInstanceUID == after.SeriesInstanceUID
    assert document.ReferencedSOPInstanceUID == before.SOPInstanceUID != after.SOPInstanceUID
    assert after.VerificationFlag == "UNVERIFIED"
    assert after.InstanceNumber == 2
    assert (after.ContentTime, after.TimezoneOffsetFromUTC) == ("180000", "+0800")
    if form != "pdf":
        assert after.PreliminaryFlag == "PRELIMINARY"
        assert [str(a.get("PersonName", "")) for a in after.AuthorObserverSequence] == ["Reviewer^Rolf", ""]
        assert str(named(after, "121008")[0].PersonName) == "Reviewer^Rolf"


def test_a_revision_in_fhir_and_hl7_names_reviewer_and_predecessor(world):
    before = world.documents(CHEST_EN)["sr"].reference.sop_instance_uid
    bundle, rows = world.bundle(CHEST_EN, revised=True), world.message(CHEST_EN, revised=True)
    (report,) = resources(bundle, "DiagnosticReport")
    assert report["extension"][0]["url"].endswith("/diagnosticReport-replaces")
    assert report["extension"][0]["valueReference"]["identifier"]["value"] == f"urn:oid:{before}"
    assert report["status"] == "preliminary"
    assert resources(bundle, "Practitioner")[0]["name"] == [{"family": "Reviewer", "given": ["Rolf"]}]
    assert [e["role"] for e in resources(bundle, "Provenance")[0]["entity"]] == ["source", "revision"]
    first = {r[0]: r for r in world.message(CHEST_EN)}
    again = {r[0]: r for r in rows}
    assert again["OBR"][3] == first["OBR"][3]  # the same order
    assert again["MSH"][9] != first["MSH"][9]
    assert again["OBR"][25] == "P"
    assert before in again["NTE"][3]
    assert again["OBX"][16] == "^Reviewer^Rolf^"


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("Doe^Jane", "^Doe^Jane^"),
        ("=王^医生", "^王^医生^"),
        ("Wang^Yi=王^医", "^Wang^Yi^"),
        ("^=", ""),
        ("", ""),
    ],
)
def test_a_physician_without_a_latin_name_keeps_her_own(name, written):
    assert hl7._person(name) == written


def test_a_draft_made_anew_names_what_it_takes_the_place_of_and_no_person_in_any_format(world):
    first = world.documents(CHEST_EN)
    references = tuple(d.reference for d in first.values() if d.reference)
    later = replace(world.draft(CHEST_EN).provenance, created_utc="2026-11-06T10:00:00+00:00")
    draft = replace(world.draft(CHEST_EN), provenance=later)
    made = write_documents(draft, formats=FORMATS, revision=Revision(None, None, references, 2))
    assert {document.format for document in made} == first.keys()
    said = {document.format: document.content for document in made}
    for form in ("sr", "sr3d", "pdf"):
        document = dcmread(io.BytesIO(said[form]))
        (study,) = document.PredecessorDocumentsSequence
        named = study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        assert named == first[form].reference.sop_instance_uid
        assert (document.InstanceNumber, document.ContentTime[:2]) == (2, "18")  # on the clock of the images
    authors = dcmread(io.BytesIO(said["sr"])).AuthorObserverSequence
    assert [author.ObserverType for author in authors] == ["DEV"]
    assert b"Drafted anew from all images of the study; takes the place of" in said["hl7"]
    assert resources(json.loads(said["fhir"]), "Practitioner") == []
    for form in ("txt", "html", "hl7"):
        assert b"Reviewed by" not in said[form]
        assert b"None" not in said[form]


def test_text_page_and_json_of_a_revision_name_the_reviewer_and_no_signature(world):
    made = world.documents(CHEST_EN, revised=True)
    for form in ("txt", "html"):
        assert "Reviewed by Reviewer Rolf, who has not verified it." in made[form].content.decode()
    data = json.loads(made["json"].content)
    assert data["revision"]["reviewer"] == "Reviewer^Rolf"
    assert draft_from_json(data).report == world.draft(CHEST_EN).report


@pytest.mark.parametrize("reviewer", ["", "^", " ^ ", "Bell\x07^Ann"])
def test_a_revision_by_nobody_is_refused(world, reviewer):
    with pytest.raises(OutputError, match="name of its reviewer"):
        revision_of(world.documents(CHEST_EN).values(), reviewer, REVISED_UTC)


def test_a_revision_of_nothing_is_refused(world):
    text = write_documents(world.draft(CHEST_EN), formats=["txt"])
    with pytest.raises(OutputError, match="takes the place of DICOM documents"):
        revision_of(text, "Reviewer^Rolf")


# No code path signs


@pytest.mark.parametrize("revised", [False, True])
@pytest.mark.parametrize("seed", [CHEST_EN, REFUSAL])
def test_no_leaf_of_any_document_is_verified_or_final(world, seed, revised):
    for document in world.documents(seed, revised).values():
        if document.media_type == DICOM:
            dataset = dcmread(io.BytesIO(document.content))
            said = {str(e.value).upper() for e in dataset.iterall() if e.VR == "CS"}
            assert said.isdisjoint({"VERIFIED", "FINAL"}), document.format
            assert not any(e.keyword == "VerifyingObserverSequence" for e in dataset.iterall())
        if document.format == "fhir":
            statuses = set(re.findall(rb'"status": "(\w+)"', document.content))
            assert statuses <= {b"preliminary", b"available"}


def test_no_source_of_this_package_spells_a_final_status():
    folder = Path(package.__file__).parent
    signing = re.compile(
        r"(?<!UN)VERIFIED|VerifyingObserver|FINAL\b|[\"'](?:final|amended|corrected|appended)[\"']|"
        r"attester|ATTEST|OBR.*[\"'][FC][\"']"
    )
    files = [p for p in folder.rglob("*") if p.suffix in (".py", ".jinja")]
    assert len(files) >= 15
    assert [(p.name, m.group()) for p in files if (m := signing.search(p.read_text("utf-8")))] == []


# The set


def test_formats_are_named_or_refused():
    assert parse_formats("sr, PDF,sr") == ("sr", "pdf")
    for words in ("", "sr,docx"):
        with pytest.raises(ConfigError, match="there are: sr, sr3d, pdf, kos, seg, pm, fhir, hl7") as caught:
            parse_formats(words)
        assert caught.value.code == "FORMAT_UNKNOWN"


@pytest.mark.parametrize(("form", "library"), [("pdf", "reportlab"), ("fhir", "fhir.resources")])
def test_a_missing_library_is_named_with_what_installs_it(world, monkeypatch, form, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"needs {library}; pip install 'mla_med\[documents\]'"):
        write_documents(world.draft(CHEST_EN), formats=[form])


def test_a_folder_gets_what_was_asked_for_and_loses_what_is_stale(world, tmp_path):
    draft = world.draft(CHEST_EN)
    write_draft(draft, None, tmp_path, formats=["sr", "sr3d", "hl7"])
    assert {p.name for p in tmp_path.iterdir()} == {"draft.dcm", "draft.sr3d.dcm", "draft.hl7", "draft.json"}
    write_draft(draft, None, tmp_path, formats=["fhir"])
    assert {p.name for p in tmp_path.iterdir()} == {"draft.fhir.json", "draft.json"}


def test_documents_in_dicom_share_patient_study_and_clock(world):
    draft = world.draft(CHEST_EN)
    with libraries_silent():
        header = read_header(draft.verdicts[0].series.instances[0].path, draft.provenance)
    for form in ("sr", "sr3d", "pdf", "kos", "seg", "pm"):
        document = world.dataset(CHEST_EN, form)
        assert (document.PatientName, document.PatientID) == (header.PatientName, "P-00000"), form
        assert (document.ContentDate, document.ContentTime) == ("20261105", "173012"), form
        assert document.SeriesDescription.startswith("AI DRAFT - NOT FOR DIAGNOSIS"), form
        assert document.ContributingEquipmentSequence[0].DeviceUID
        assert document.preamble == bytes(128)
    series = [world.dataset(CHEST_EN, form).SeriesInstanceUID for form in ("sr", "sr3d", "pdf", "kos", "seg")]
    assert len(set(series)) == 5


@pytest.mark.parametrize("seed", [CHEST_EN, HEAD_ZH])
def test_the_same_draft_gives_the_same_bytes(world, seed):
    again = write_documents(world.draft(seed), formats=FORMATS)
    assert {d.format: d for d in again} == world.documents(seed)


def test_the_order_stands_in_the_report(world):
    (request,) = world.dataset(CHEST_EN, "sr").ReferencedRequestSequence
    assert (request.RequestedProcedureID, request.AccessionNumber) == ("R0", "A000000")


def test_a_revision_can_be_made_by_hand(world):
    first = world.documents(CHEST_EN)["sr"].reference
    revision = Revision("Reviewer^Rolf", REVISED_UTC, (first,), number=3)
    (document,) = write_documents(
        saying(world.draft(CHEST_EN), "Changed."), formats=["sr"], revision=revision
    )
    assert dcmread(io.BytesIO(document.content)).InstanceNumber == 3
