"""The verbs of ledger and PACS without a PACS: a dropped study drafted, committed, listed, put away."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from dicom_series import write_series
from typer.testing import CliRunner

from mla_med.cli_pacs import ledger, pacs
from mla_med.errors import ConfigError

NOBODY = "http://127.0.0.1:9"
"""Nothing listens there."""


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    (tmp_path / "mla-med.toml").write_text(
        f'[pacs]\ndicomweb_url = "{NOBODY}"\nledger_url = "sqlite:///ledger.db"\nkey_file = "site.key"\n'
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
