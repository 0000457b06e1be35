import io
import json
import shutil
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_series import COLUMNS, MR_CLASS, ROWS, STUDY_UID, write_series
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from PIL import Image

from mla_med.dicom.study import read_study
from mla_med.dicom.volume import read_volume
from mla_med.documents.json import draft_from_json, draft_to_json
from mla_med.errors import SeriesError
from mla_med.review.images import (
    StudyImages,
    evidence_of,
    key_slice,
    make_router,
    series_of,
    turned,
    whole,
)
from mla_med.types import (
    Comparison,
    Draft,
    Evidence,
    Finding,
    Gate,
    HeatCell,
    Presence,
    Prior,
    Provenance,
    Reason,
    Report,
    Sentence,
    SeriesVerdict,
    Side,
)

HEIGHTS_MM = [3.0 * k for k in range(12)]
BOX = ((20.0, -60.0, -40.0), (50.0, -30.0, -10.0))


def drafted(folder: Path) -> Draft:
    """Of a folder with one series: a mass on the right, an effusion without a place, and no emphysema."""
    (series,) = read_study(folder).series
    volume = read_volume(series)
    cited = volume.series.instances[7].sop_instance_uid
    mass = Finding(
        "lung_mass",
        side=Side.RIGHT,
        size_mm=41.0,
        confidence=0.93,
        evidence=Evidence((cited,), BOX, 1.5, 0.98, (HeatCell(BOX, 1.0),)),
    )
    findings = (
        Finding("pleural_effusion", side=Side.LEFT),
        mass,
        Finding("emphysema", Presence.ABSENT),
    )
    sentences = (
        Sentence("There is a 41 mm mass on the right.", ("lung_mass",)),
        Sentence("There is a left pleural effusion.", ("pleural_effusion",)),
        Sentence("No emphysema.", ("emphysema",)),
    )
    made = Draft(
        report=Report(findings, sentences, sentences[:1], "CT of the chest."),
        gate=Gate(True, (), {"lung_share": 0.2}),
        verdicts=(SeriesVerdict(volume.series, volume.certificate, None, chosen=True),),
        modal_weights={"image": 0.7, "text": 0.3},
        provenance=Provenance(
            "mla", "0.1", "ab" * 32, "2.25.1", (series.series_uid,), "2026-11-05T09:30:12Z"
        ),
    )
    # as it is read back: it knows the names of files and no folder
    return draft_from_json(json.loads(json.dumps(draft_to_json(made))))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """An axial CT of a dozen slices, from the feet to the head."""
    folder = tmp_path_factory.mktemp("ct")
    write_series(folder, HEIGHTS_MM, PatientName="Canary^Ada", PatientID="CANARY-7")
    return folder


@pytest.fixture(scope="module")
def draft(images) -> Draft:
    return drafted(images)


@pytest.fixture(scope="module")
def volume(images):
    return read_volume(read_study(images).series[0])


def client(draft: Draft, folder: Path | None, signed_in: bool = True) -> TestClient:
    def require_reader() -> None:
        if not signed_in:
            raise HTTPException(401)

    def find_draft(draft_id: str) -> Draft:
        if draft_id != "d1":
            raise HTTPException(404)
        return draft

    app = FastAPI()
    app.include_router(make_router(require_reader, lambda draft_id: [folder] if folder else [], find_draft))
    return TestClient(app)


def received(parts) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image.from_bytes(b"".join(parts))


def test_a_sentence_leads_to_its_findings_and_a_finding_to_the_slice_it_cites(draft):
    evidence = evidence_of(draft, "en", "/drafts/d1")
    assert [(s["n"], s["section"], s["findings"]) for s in evidence["sentences"]] == [
        (1, "findings", [2]),
        (2, "findings", [1]),
        (3, "findings", [3]),
        (4, "impression", [2]),
    ]
    effusion, mass, emphysema = evidence["findings"]
    assert (mass["evidence"]["series"], mass["evidence"]["slice"]) == (0, 7)
    assert (mass["term"], mass["window"], mass["presence"]) == ("Mass", "lung", "present")
    assert mass["evidence"]["heat"] == [(*BOX, 1.0)]
    assert effusion["evidence"] is None
    assert emphysema["presence"] == "absent"
    assert evidence["series"][0]["slices"] == "/drafts/d1/slice/0/"
    json.dumps(evidence, allow_nan=False)


def test_the_page_in_chinese_names_windows_and_findings_in_chinese(draft):
    evidence = evidence_of(draft, "zh")
    assert [w["name"] for w in evidence["series"][0]["windows"]] == ["肺窗", "纵隔窗", "骨窗"]
    assert evidence["findings"][0]["term"] == "胸腔积液"


def test_of_frames_that_share_a_uid_the_one_in_the_middle_of_the_box_is_the_key_slice(draft):
    (shown,) = series_of(draft)
    one = replace(shown.series.instances[0], sop_instance_uid="1.2.3")
    frames = replace(shown, series=replace(shown.series, instances=(one,) * len(shown.series.instances)))
    middle_mm = np.array(shown.certificate.affine) @ [3, 3, 11, 1]
    box = tuple(tuple(middle_mm[:3] + d) for d in (-1.0, 1.0))
    assert key_slice(Evidence(("1.2.3",), box), (frames,)) == (0, 11)


def test_of_two_series_of_one_object_that_with_the_cited_frame_is_shown(draft):
    (shown,) = series_of(draft)
    kind, last = "1.2.840.10008.5.1.4.1.1.4.1", len(shown.series.instances)

    def of_frames(first: int):
        instances = tuple(
            replace(one, sop_instance_uid="1.2.3", sop_class_uid=kind, frame=2 * n + first)
            for n, one in enumerate(shown.series.instances)
        )
        return replace(shown, series=replace(shown.series, instances=instances))

    both = of_frames(0), of_frames(1)
    assert key_slice(Evidence(("1.2.3",), BOX, frames=((6, 4),)), both) == (1, 2)
    assert key_slice(Evidence(("1.2.3",), BOX, frames=((2 * last - 1,),)), both) == (0, last - 1)


def test_what_cites_no_series_that_can_be_shown_has_no_place(draft):
    assert key_slice(Evidence(("9.9.9",), BOX), series_of(draft)) is None


def test_a_refused_study_is_shown_without_a_slice_by_itself_as_its_slices_are_in_no_order(draft):
    refused = replace(draft, report=None, gate=Gate(False, (Reason("NO_CONTEXT", "Nothing was asked."),)))
    evidence = evidence_of(refused)
    assert evidence["series"][0]["slices"] is None
    assert evidence["sentences"] == []
    assert evidence["gate"]["reasons"] == [{"code": "NO_CONTEXT", "words": "Nothing was asked."}]


ORIENTATIONS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_right_or_front_is_at_the_left_of_a_picture_and_front_or_head_at_its_top(order, signs):
    affine = np.eye(4)
    affine[:3, :3] = 0
    for voxel_axis, (patient_axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[patient_axis, voxel_axis] = sign * 2.0
    slice_IJ = np.zeros((4, 3))
    across, up = sorted(order[:2])
    far = {a: (-1 if signs[order.index(a)] > 0 else 0) for a in (across, up)}  # x right, y front, z head
    slice_IJ[far[order[0]], far[order[1]]] = 1
    picture = turned(slice_IJ, affine)
    assert picture[0, 0] == 1
    assert picture.shape == ((3, 4) if order[0] < order[1] else (4, 3))


def test_a_picture_is_the_slice_in_its_window(draft, images, volume):
    picture = Image.open(io.BytesIO(StudyImages(draft, [images]).slice_png(0, 7, -1350, 150)))
    grey = np.clip((volume.voxels[:, :, 7].T + 1350) / 1500, 0, 1) * 255  # rows from front to back, as stored
    assert np.abs(np.asarray(picture).astype(float) - np.floor(grey)).max() <= 1
    assert picture.mode == "L"


def test_a_volume_comes_over_voxel_by_voxel_in_its_place(draft, images, volume):
    image = received(StudyImages(draft, [images]).volume(0))
    assert np.array_equal(np.asarray(image.dataobj), np.rint(volume.voxels))
    assert np.allclose(image.affine, volume.affine, atol=1e-3)
    assert image.header["descrip"].tobytes().strip(b"\0") == b""


def test_values_that_are_no_whole_numbers_come_over_within_half_a_step(volume):
    voxels = (volume.voxels * 0.37 - 5.1).astype(np.float32)
    image = received(whole(replace(volume, voxels=voxels, series=replace(volume.series, modality="MR"))))
    step = (float(voxels.max()) - float(voxels.min())) / 65535
    assert np.abs(image.get_fdata() - voxels).max() <= 0.51 * step
    assert image.header["cal_min"] < image.header["cal_max"]


def test_a_sequence_of_an_mr_gets_its_window_from_its_own_voxels(tmp_path):
    def noise(k: int) -> np.ndarray:
        return np.random.default_rng(k).integers(0, 900, (ROWS, COLUMNS)).astype(np.int16)

    write_series(
        tmp_path, HEIGHTS_MM, stored=noise, Modality="MR", SOPClassUID=MR_CLASS, RescaleIntercept="0"
    )
    draft = drafted(tmp_path)
    picture = np.asarray(Image.open(io.BytesIO(StudyImages(draft, [tmp_path]).slice_png(0, 8))))
    assert picture.min() < 20 < 235 < picture.max()
    assert 90 < picture.mean() < 165
    image = received(StudyImages(draft, [tmp_path]).volume(0))
    assert np.array_equal(image.get_fdata(), read_volume(read_study(tmp_path).series[0]).voxels)
    assert 0 <= image.header["cal_min"] < 40
    assert 850 < image.header["cal_max"] < 900


def test_images_are_found_in_whatever_folder_they_lie_now(draft, images, tmp_path):
    shutil.copytree(images, tmp_path / "elsewhere" / "b")
    (tmp_path / "elsewhere" / "a").mkdir()
    for path in images.iterdir():  # of the same names, and something else
        (tmp_path / "elsewhere" / "a" / path.name).write_bytes(b"not an image")
    assert StudyImages(draft, [tmp_path]).slice_png(0, 7) == StudyImages(draft, [images]).slice_png(0, 7)


def test_another_study_with_the_same_file_names_is_not_shown_for_it(draft, tmp_path):
    write_series(tmp_path, HEIGHTS_MM, SOPInstanceUID=lambda k: f"2.25.99{k}")
    with pytest.raises(SeriesError, match="not at hand") as refused:
        StudyImages(draft, [tmp_path]).slice_png(0, 7)
    assert refused.value.code == "IMAGES_NOT_AT_HAND"


def test_the_prior_is_read_from_the_same_folder(draft, images, volume):
    (series,) = (v.series for v in draft.verdicts)
    shuffled = replace(series, instances=series.instances[::-1])
    mass, shown = draft.report.findings[1], draft.report.findings[1].code
    words = (
        Comparison(shown, None, "41 mm now", mass.side, mass.site, mass.size_mm),
        Comparison(shown, None, "another one", mass.side, mass.site, 99.0),
    )
    with_prior = replace(draft, prior=Prior("2.25.2", "20250708", (shuffled,), words))
    evidence = evidence_of(with_prior)
    assert [one["kind"] for one in evidence["series"]] == ["current", "prior"]
    assert evidence["findings"][1]["compared"] == "41 mm now"
    image = received(StudyImages(with_prior, [images]).volume(1))
    assert np.array_equal(np.asarray(image.dataobj), np.rint(volume.voxels))


@pytest.mark.parametrize("path", ["slice/0/7.png", "volume/0.nii"])
def test_nobody_sees_an_image_without_signing_in(draft, images, path):
    assert client(draft, images, signed_in=False).get(f"/drafts/d1/{path}").status_code == 401


def test_an_image_is_kept_by_no_cache_and_holds_no_word_of_the_patient(draft, images):
    words = ["Canary", "Ada", "CANARY-7", STUDY_UID]
    for path in ("slice/0/7.png", "volume/0.nii"):
        answer = client(draft, images).get(f"/drafts/d1/{path}")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        assert not [w for w in words if w.encode() in answer.content or w in str(answer.headers)]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("slice/0/9999.png", "NO_SUCH_SLICE"),
        ("slice/0/-1.png", "NO_SUCH_SLICE"),
        ("slice/5/0.png", "NO_SUCH_SERIES"),
        ("slice/-1/0.png", "NO_SUCH_SERIES"),
        ("volume/5.nii", "NO_SUCH_SERIES"),
        ("volume/-1.nii", "NO_SUCH_SERIES"),
    ],
)
def test_what_is_not_there_is_said_with_its_reason(draft, images, path, says):
    answer = client(draft, images).get(f"/drafts/d1/{path}")
    assert answer.status_code == 404
    assert answer.json()["code"] == says


@pytest.mark.parametrize("query", ["low=nan&high=3", "low=inf&high=3", "low=a&high=3"])
def test_a_window_of_no_numbers_is_refused(draft, images, query):
    assert client(draft, images).get(f"/drafts/d1/slice/0/7.png?{query}").status_code == 422


def test_a_study_that_is_not_kept_here_says_where_to_read_it(draft, tmp_path):
    answer = client(draft, None).get("/drafts/d1/slice/0/7.png")
    assert answer.status_code == 404
    assert answer.json()["code"] == "IMAGES_NOT_AT_HAND"
    assert "PACS" in answer.json()["words"]
    assert client(draft, tmp_path).get("/drafts/d1/volume/0.nii").json()["code"] == "IMAGES_NOT_AT_HAND"
    assert client(draft, tmp_path).get("/drafts/d2/volume/0.nii").status_code == 404
