"""What is read of a patient while a page shows it: search, request, images of the prior."""

from __future__ import annotations

import re
import shutil
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed (the extra review)")
pytest.importorskip("argon2", reason="argon2-cffi is not installed (the extra review)")

from dicom_series import write_series
from ledgers import rows_in
from pydicom import dcmread
from review_site import Site, made

from mla_med.dicom.quiet import libraries_silent, quiet_pydicom
from mla_med.review import worklist
from mla_med.review.patients import Patient, first_image, is_meant
from mla_med.review.settings import ReviewSettings
from mla_med.types import Comparison, Prior


def test_a_document_borrows_from_an_image_of_the_drafted_series(tmp_path):
    """A localizer, which comes first, has another frame of reference."""
    write_series(tmp_path / "a", [0], series=1)
    write_series(tmp_path / "b", [0, 1], series=2)
    drafted = dcmread(next((tmp_path / "b").iterdir()))
    study, series = drafted.StudyInstanceUID, drafted.SeriesInstanceUID
    assert first_image(tmp_path, study).parent.name == "a"
    assert first_image(tmp_path, study, [series]).parent.name == "b"
    assert first_image(tmp_path, study, ["1.2.3"]).parent.name == "a"
    assert first_image(tmp_path, "1.2.3", [series]) is None


HTML = {"accept": "text/html"}
CHEST = 0


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def found(answer) -> list[str]:
    assert answer.status_code == 200
    return re.findall(r'id="row-([0-9a-f]{32})"', answer.text)


def of_study(number: int, **changes):
    """The chest's draft as if it were of another study."""
    draft = made(CHEST)[1]
    return replace(draft, provenance=replace(draft.provenance, study_uid=f"2.25.77{number}"), **changes)


def add(site: Site, number: int, **header: str) -> str:
    return site.add(CHEST, of_study(number), StudyInstanceUID=f"2.25.77{number}", **header)


# Search


def test_a_patient_is_found_by_number_or_by_words_of_the_name(site):
    first = add(site, 1, PatientName="Müller^Jürgen", PatientID="K-4711")
    second = add(site, 2, PatientName="Zhang^San=张^三", PatientID="K-47", AccessionNumber="A9")
    client = site.client("reader")

    def find(who: str, **fields):
        return found(client.press("/find", who=who, **fields))

    assert find("K-4711") == [first]
    assert find("k-47") == [second]  # a number is the whole of it
    assert find("a9") == [second]
    assert find("jurgen MULL") == [first]
    assert find("Müller, Jürgen") == [first]
    assert find("张三") == [second]
    assert find("nobody") == []
    assert find("K-4711", state="decided") == []
    assert find("K-4711", examination="brain_mr") == []
    assert client.press("/find", who=" ").status_code == 422


def test_whom_a_reader_looks_for_is_in_no_row_no_audit_and_no_address(site):
    add(site, 1, PatientName="Canaryname^Zoe", PatientID="CANARYID7")
    client = site.client("reader")
    answer = client.press("/find", who="canaryname")
    assert "Canaryname, Zoe" in answer.text
    assert not re.search(r'(href|hx-\w+)="[^"]*anary', answer.text)
    assert b"anary" not in rows_in(site.url).replace(b"CANARY", b"canary")
    (row,) = (r for r in site.store.audit_rows() if r["action"] == "SEARCHED")
    assert row["detail"] == "1 rows, 1 found"
    assert client.get("/find", params={"who": "canaryname"}).status_code in (404, 405)


def test_a_search_that_takes_too_long_says_how_far_it_came_and_goes_on_from_there(site, monkeypatch):
    monkeypatch.setattr(worklist, "LOOK_S", 0.0)
    jobs = [add(site, n, PatientName="Doe^Jo", PatientID=f"K{n}") for n in range(3)]
    client = site.client("reader")
    seen, after = [], ""
    for number in range(3):
        answer = client.press("/find", who="doe", after=after)
        seen += found(answer)
        assert "images of 1 drafts; found: 1" in answer.text
        if number < 2:
            after = re.search(r'name="after" value="([^"]+)"', answer.text)[1]
    assert sorted(seen) == sorted(jobs)


def test_where_names_are_not_shown_they_are_not_looked_for(tmp_path):
    site = Site(tmp_path, ReviewSettings(names_on_worklist=False))
    add(site, 1, PatientName="Doe^Jo")
    client = site.client("reader")
    assert client.press("/find", who="doe").status_code == 403
    assert 'hx-post="/find"' not in client.get("/", headers=HTML).text


def test_a_name_of_nothing_but_accents_is_nobody():
    assert not is_meant(Patient(name="Doe, Jo"), "\u0301")
    assert not is_meant(Patient(), "  ")


def test_a_prior_beside_the_study_hides_neither_patient_nor_scanner(site):
    job = add(site, 1, PatientName="Doe^Jo")
    inbox = Path(site.pacs.inbox) / job
    (inbox / "study").mkdir()
    for path in list(inbox.glob("*.dcm")):
        path.rename(inbox / "study" / path.name)
    image = dcmread(next((inbox / "study").iterdir()))
    image.StudyInstanceUID, image.PatientName = "2.25.4711", "Other^Somebody"
    (inbox / "prior").mkdir()
    for number in range(40):
        image.save_as(inbox / "prior" / f"{number:03d}.dcm")
    assert site.desk.patient(job).name == "Doe, Jo"


# The request


def rules(answer) -> list[str]:
    return re.findall(r'data-rule="(\w+)"', answer.text)


def test_the_linter_knows_the_sex_of_the_patient_and_what_was_asked(site):
    job = add(site, 1, PatientSex="M", ReasonForTheRequestedProcedure="Fever and productive cough")
    client = site.client("reader")
    assert site.desk.sheet(job).request.indication == "Fever and productive cough"
    answer = client.press(f"/drafts/{job}/sentence", version=0, number=0, text="The uterus is unremarkable.")
    assert "ORGAN_OF_OTHER_SEX" in rules(answer)
    shutil.rmtree(Path(site.pacs.inbox) / job)
    assert "ORGAN_OF_OTHER_SEX" not in rules(client.get(f"/drafts/{job}/report"))


def test_what_the_request_says_is_kept_nowhere_and_on_no_page(site):
    job = add(site, 1, ReasonForTheRequestedProcedure="Canaryreason of Doe", PatientName="Doe^Jo")
    client = site.client("reader")
    page = client.get(f"/drafts/{job}", headers=HTML).text
    client.press(f"/drafts/{job}/sentence", version=0, number=1, text="One.")
    assert site.desk.sheet(job).request.indication.startswith("Canaryreason")
    assert "Doe" not in site.desk.sheet(job).request.indication
    assert "anaryreason" not in repr(site.desk.sheet(job))
    assert "anaryreason" not in page
    assert b"anaryreason" not in rows_in(site.url)


# The prior


def with_prior(number: int):
    """Compared with a study whose images are those of the chest under other UIDs."""
    series = made(CHEST)[1].verdicts[0].series
    instances = tuple(
        replace(one, sop_instance_uid=f"2.25.88{n}") for n, one in enumerate(series.instances, start=1)
    )
    earlier = replace(series, series_uid="2.25.888", instances=instances)
    words = (Comparison("pleural_effusion", None, "present then and now; its extent is not measured"),)
    return of_study(number, prior=Prior("2.25.8", "20250708", (earlier,), words))


def add_prior_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    series = made(CHEST)[1].verdicts[0].series
    for number, instance in enumerate(series.instances, start=1):
        image = dcmread(made(CHEST)[0] / instance.path.name)
        image.StudyInstanceUID, image.SeriesInstanceUID = "2.25.8", "2.25.888"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"2.25.88{number}"
        image.save_as(folder / instance.path.name)


NOT_AT_HAND = "The images of the prior are not at hand"


def test_the_prior_is_shown_from_its_own_job(site):
    job, client = site.add(CHEST, with_prior(1), StudyInstanceUID="2.25.771"), site.client("reader")
    assert NOT_AT_HAND in client.get(f"/drafts/{job}", headers=HTML).text
    assert client.get(f"/drafts/{job}/evidence.json").json()["prior"]["at_hand"] is False
    earlier = site.book.see("2.25.8", 1)
    add_prior_images(Path(site.pacs.inbox) / earlier.id)
    assert NOT_AT_HAND not in client.get(f"/drafts/{job}", headers=HTML).text
    evidence = client.get(f"/drafts/{job}/evidence.json").json()
    assert evidence["prior"]["at_hand"] is True
    (number,) = (one["k"] for one in evidence["series"] if one["kind"] == "prior")
    assert client.get(f"/drafts/{job}/volume/{number}.nii").status_code == 200


def test_other_images_of_the_same_file_names_are_no_prior(site):
    job = site.add(CHEST, with_prior(1), StudyInstanceUID="2.25.771")
    earlier = site.book.see("2.25.8", 1)
    shutil.copytree(made(CHEST)[0], Path(site.pacs.inbox) / earlier.id)  # of another patient
    assert NOT_AT_HAND in site.client("reader").get(f"/drafts/{job}", headers=HTML).text


class Archive:
    """A PACS with two studies, which sends images in an order of its own."""

    def __init__(self, studies: dict[str, list[Path]]):
        self.studies = studies

    def count(self, study_uid: str):
        from mla_med.pacs.peer import SeriesCount

        return [SeriesCount("2.25.1", "CT", len(self.studies[study_uid]))]

    def retrieve(self, study_uid: str, series_uid: str, write) -> None:
        for path in reversed(self.studies[study_uid]):
            write(path.read_bytes())


def test_images_that_come_back_from_the_pacs_are_found_again_and_the_prior_with_them(tmp_path):
    site = Site(tmp_path, ReviewSettings(images=str(tmp_path / "kept")))
    job, client = site.add(CHEST, replace(made(CHEST)[1], prior=with_prior(1).prior)), site.client("reader")
    shutil.rmtree(Path(site.pacs.inbox) / job)
    shutil.rmtree(tmp_path / "kept" / job)
    add_prior_images(tmp_path / "then")
    study = sorted(p for p in made(CHEST)[0].iterdir() if p.is_file())
    there = {site.book.study_uid(job): study, "2.25.8": sorted((tmp_path / "then").iterdir())}
    site.desk._connect = lambda: Archive(there)
    assert client.press(f"/drafts/{job}/fetch").status_code == 303
    assert client.get(f"/drafts/{job}/volume/0.nii").status_code == 200
    evidence = client.get(f"/drafts/{job}/evidence.json").json()
    assert evidence["prior"]["at_hand"] is True


# Reading in several threads


def test_whoever_is_last_lets_the_libraries_speak_again_and_nobody_waits():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        inside, leave = threading.Event(), threading.Event()

        def other():
            with libraries_silent():
                inside.set()
                leave.wait(10)

        thread = threading.Thread(target=other)
        with quiet_pydicom():
            thread.start()
            assert inside.wait(10)
        warnings.warn("Doe^Jo is no name", stacklevel=1)  # the other still reads
        leave.set()
        thread.join(10)
        assert said == []
        warnings.warn("now", stacklevel=1)
        assert len(said) == 1
