"""The verbs of ledger and PACS: a dropped study drafted, committed, listed, put away; and late slices, to
a real Orthanc and back."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from dicom_series import STUDY_UID, write_series
from ledgers import default_kind, new_ledger_url, stop_postgres
from pydicom import dcmread
from typer.testing import CliRunner

from mla_med.cli_pacs import ledger, pacs
from mla_med.errors import ConfigError

NOBODY = "http://127.0.0.1:9"
"""Nothing listens there."""


@pytest.fixture(scope="module", autouse=True)
def _stop_postgres():
    yield
    stop_postgres()


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    url = new_ledger_url(default_kind(), tmp_path)
    (tmp_path / "mla-med.toml").write_text(
        f'[pacs]\ndicomweb_url = "{NOBODY}"\nledger_url = "{url}"\nkey_file = "site.key"\n'
        'inbox = "inbox"\nsettle_s = 0.0\nmax_used = 1.0\nmin_free_bytes = 0\ncheck_with_dciodvfy = "off"\n'
    )
    write_series(tmp_path / "drop" / "one", range(0, 30, 5), PatientID="PHANTOM-1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(app, *arguments: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    return result.exit_code, result.stdout.splitlines()


def pulled_job() -> str:
    code, (line,) = run(pacs, "pull", "--drop", "drop")
    state, job, folder = line.split()
    assert (code, state, folder) == (0, "READY", f"inbox/{job}")
    return job


def test_what_is_ready_is_drafted_and_committed_with_its_reasons(site):
    job = pulled_job()
    code, (line,) = run(pacs, "draft", "--out", "drafts", "--format", "sr,kos")
    state, drafted, folder, *reasons = line.split()
    assert (code, state, drafted, folder) == (0, "refused", job, f"drafts/{job}")
    assert "COVERAGE" in " ".join(reasons)
    assert {p.name for p in (site / folder).iterdir()} == {"draft.dcm", "draft.kos.dcm", "draft.json"}
    shown = "\n".join(run(ledger, "show", job)[1])
    assert len(re.findall("document .* PENDING after 0 tries", shown)) == 2
    assert run(pacs, "draft", "--out", "drafts") == (0, [])  # nothing is ready any more


def test_what_cannot_be_drafted_stays_ready_and_is_said(site):
    job = pulled_job()
    for image in (site / "inbox" / job).iterdir():
        image.unlink()
    assert run(pacs, "draft", "--out", "drafts") == (1, [f"failed      {job} NO_DICOM"])
    assert f"{job} READY" in run(ledger, "list")[1][1]


def test_a_format_that_is_no_dicom_alone_is_refused_before_anything_is_drafted(site):
    with pytest.raises(ConfigError, match="needs sr"):
        run(pacs, "draft", "--out", "drafts", "--format", "html,json")


def test_the_list_is_not_cut_to_the_width_of_a_terminal(site):
    job = pulled_job()
    header, row = run(ledger, "list")[1]
    assert header.split() == ["job", "state", "changed", "images", "reason"]
    assert row.split()[:2] == [job, "READY"]
    assert row.endswith("QUIET_TIMER")


def test_the_inbox_keeps_what_waits_and_loses_what_a_person_discarded(site):
    job = pulled_job()
    run(pacs, "deliver", "--clear-inbox")
    assert (site / "inbox" / job).is_dir()
    run(ledger, "discard", job[:8], "--reason", "SELF_TEST")
    run(pacs, "deliver", "--clear-inbox")
    assert not (site / "inbox" / job).exists()


def test_a_study_is_named_to_the_pacs_or_dropped_and_not_both(site):
    with pytest.raises(ConfigError, match="--drop does not"):
        run(pacs, "pull", "--drop", "drop", "--study", "1.2.3")


def images_to(server, folder: Path, count: int) -> None:
    """The first slices of a study, 5 mm apart; those that are there already come again."""
    for path in write_series(folder, range(0, 5 * count, 5), PatientID="PHANTOM-1"):
        server.upload(path.read_bytes())


def documents_in(server) -> list:
    """The SRs in the PACS, the oldest revision first."""
    found = [dcmread(io.BytesIO(file)) for file in server.files()]
    return sorted((d for d in found if d.Modality == "SR"), key=lambda d: d.InstanceNumber)


def named_by(document) -> list[str]:
    return [
        instance.ReferencedSOPInstanceUID
        for study in document.get("PredecessorDocumentsSequence", [])
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    ]


def drafted(images: int, server, site: Path) -> str:
    """The job of a study with so many images, drafted and not delivered."""
    images_to(server, site / "images", images)
    code, (line,) = run(pacs, "pull", "--study", STUDY_UID)
    state, job, _ = line.split()
    assert (code, state) == (0, "READY")
    code, (line,) = run(pacs, "draft", "--out", "drafts", "--format", "sr")
    assert (code, line.split()[1]) == (0, job)
    return job


def test_late_slices_make_a_revision_that_names_what_it_takes_the_place_of(site, server):
    settings = site / "mla-med.toml"
    settings.write_text(settings.read_text().replace(NOBODY, server.dicomweb_url))
    first = drafted(6, server, site)
    assert run(pacs, "deliver") == (0, ["1 delivered"])
    second = drafted(7, server, site)
    third = drafted(8, server, site)  # before the second got out
    assert run(pacs, "deliver") == (0, ["1 delivered"])
    rows = [row.split() for row in run(ledger, "list")[1][1:]]
    assert {row[0]: row[1] for row in rows} == {first: "DELIVERED", second: "SUPERSEDED", third: "DELIVERED"}
    old, new = documents_in(server)
    assert (named_by(old), named_by(new)) == ([], [old.SOPInstanceUID])
    assert (old.InstanceNumber, new.InstanceNumber) == (1, 2)
    assert old.SeriesInstanceUID == new.SeriesInstanceUID
    assert {new.VerificationFlag, new.PreliminaryFlag} == {"UNVERIFIED", "PRELIMINARY"}
    assert [o.ObserverType for o in new.AuthorObserverSequence] == ["DEV"]  # no person changed it
    evidence = new.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert len(evidence.ReferencedSOPSequence) == 8
    print("R8: late slices twice: 2 drafts in the PACS, the second names the first; 1 superseded unsent")
