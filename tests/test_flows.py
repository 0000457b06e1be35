"""Flows: real Prefect. A study with no server set up; then a server, a work pool and a worker on loopback,
whose schedule drafts what lies in a real Orthanc.

    MLA_MED_SLOW=1 python -m pytest tests/test_flows.py        # 20 studies instead of 2
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import drafts
import pytest
from night_site import documents, write_settings
from orthanc import free_port
from pydicom import dcmread

from mla_med.ledger.nouns import JobState
from mla_med.model.checkpoint import load_checkpoint
from mla_med.night.loop import open_site

ROOT = Path(__file__).parents[1]
SLOW = bool(os.environ.get("MLA_MED_SLOW"))
STUDIES = 20 if SLOW else 2
PLANTED = {
    "PatientName": "Xanthippe^Quercy",
    "PatientID": "MRN-8843-117",
    "PatientBirthDate": "19370214",
    "PatientAddress": "Zwetschgengasse 9",
    "PatientTelephoneNumbers": "0049-551-9921",
    "OtherPatientNames": "Quercy^Pelagia",
    "PatientComments": "Komplikationslos bei Frieda",
    "EthnicGroup": "Ubychian",
    "Occupation": "Glockengiesserin",
    "AccessionNumber": "ACC77120934",
    "ReferringPhysicianName": "Doktor^Wunibald",
    "RequestingPhysician": "Doktor^Notburga",
    "PerformingPhysicianName": "Doktor^Kunigunde",
    "InstitutionName": "Spital Niemandshausen",
    "StationName": "SCANROOM-QX",
    "StudyID": "STUDY-5561",
    "StudyDescription": "Thorax Frau Quercy",
    "RequestedProcedureDescription": "Kontrolle Xanthippe",
    "AdditionalPatientHistory": "Sturz in Absurdistan",
    "DeviceSerialNumber": "SER-QQ-90210",
}
"""Twenty identifiers, of which nothing may be found where Prefect writes."""


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return clean | {"PREFECT_HOME": str(home), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | more


@pytest.mark.skipif(
    not SLOW, reason="Prefect starts a server of its own, which takes a minute: MLA_MED_SLOW=1"
)
@pytest.mark.parametrize("flow", ["draft_study"])
def test_a_study_is_drafted_by_a_flow_with_no_server_set_up(flow, phantom_series, tmp_path):
    code = (
        "from pathlib import Path\n"
        f"from flows.{flow} import {flow}_flow\n"
        f"print('DRAFTED', {flow}_flow(Path({str(phantom_series)!r}), Path({str(tmp_path / 'out')!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=clean_environment(tmp_path / "prefect"),
        timeout=600,
    )
    assert "DRAFTED True" in done.stdout, done.stderr[-2000:]
    assert (tmp_path / "out" / "draft.dcm").is_file()
    assert "Completed" in done.stderr


# With a server


class Prefect:
    """A server, and what runs beside it; asked by its REST API."""

    def __init__(self, home: Path):
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.environment = clean_environment(
            home,
            PREFECT_API_URL=self.url,
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            DO_NOT_TRACK="1",
            PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="1",
            # two runs ahead: on a slow machine no more pile up
            PREFECT_SERVER_SERVICES_SCHEDULER_MIN_RUNS="1",
            PREFECT_SERVER_SERVICES_SCHEDULER_MAX_RUNS="2",
            PREFECT_WORKER_QUERY_SECONDS="1",
            PREFECT_WORKER_PREFETCH_SECONDS="1",
            PREFECT_LOGGING_LEVEL="DEBUG",
        )
        self.processes: list[subprocess.Popen] = []

    def start(self, name: str, *arguments: str) -> subprocess.Popen:
        log = (self.home / f"{name}.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self.environment,
            cwd=ROOT,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def ask(self, place: str, **body: Any) -> Any:
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + place, data=data, headers=headers)
        for wait_s in (1, 2, 4, 8, 16, 0):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                if error.code != 503 or not wait_s:  # its database is busy: Prefect's own client asks again
                    raise
                time.sleep(wait_s)
        return None

    def wait_until(self, is_so, seconds: float = 600):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if found := is_so():
                    return found
            except OSError:
                pass
            time.sleep(0.3)
        raise AssertionError("\n".join(p.read_text()[-3000:] for p in self.home.glob("*.log")))

    def run(self, code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=ROOT,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def stop(self) -> None:
        """Nothing that they would still write is looked at."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        end = time.monotonic() + 3
        for process in self.processes:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(5)


@contextmanager
def prefect(home: Path) -> Iterator[Prefect]:
    home.mkdir(parents=True)
    server = Prefect(home)
    try:
        address = ("--host", "127.0.0.1", "--port", str(server.port))
        server.start("server", "prefect", "server", "start", "--no-ui", *address)
        health = f"{server.url}/health"
        server.wait_until(lambda: urllib.request.urlopen(health, timeout=5).read() == b"true")
        yield server
    finally:
        server.stop()


@dataclass
class Shift:
    server: Prefect
    settings_file: Path
    deployment: str
    runs: list[dict[str, Any]]
    uids: list[str]


def send_phantoms(orthanc, series: Path, count: int) -> list[str]:
    """Copies of one phantom as studies of today of patients with the planted names."""
    images = [dcmread(path) for path in sorted(series.iterdir())]
    uids = []
    for number in range(1, count + 1):
        uids.append(f"2.25.90210{number}")
        for k, image in enumerate(images):
            image.StudyInstanceUID = uids[-1]
            image.SeriesInstanceUID = f"{uids[-1]}.1"
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{uids[-1]}.1.{k + 1}"
            image.FrameOfReferenceUID = f"{uids[-1]}.2"
            image.StudyDate = image.SeriesDate = time.strftime("%Y%m%d")
            for keyword, value in PLANTED.items():
                setattr(image, keyword, value)
            orthanc.upload(drafts.to_bytes(image))
    return uids


@pytest.fixture(scope="module")
def shift(running, phantom_series, tmp_path_factory) -> Iterator[Shift]:
    """The schedule has fired twice, and both runs are over."""
    folder = tmp_path_factory.mktemp("shift")
    running.empty()
    uids = send_phantoms(running, phantom_series, STUDIES)
    settings_file = write_settings(folder, running.dicomweb_url)
    with prefect(folder / "prefect") as server:
        made = server.run(f"""
import flows
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from flows.nightly import nightly_flow
with get_client(sync_client=True) as client:
    client.create_work_pool(WorkPoolCreate(name="night", type="process"))
deployed = nightly_flow.from_source({str(ROOT)!r}, "flows/nightly.py:nightly_flow").deploy(
    "nightly", work_pool_name="night", interval=15, parameters={{"settings_file": {str(settings_file)!r}}},
    concurrency_limit=1, print_next_steps=False)
print("ID", deployed)
""")
        deployment = re.findall(r"ID (\S+)", made)[0]
        server.start(
            "worker", "prefect", "worker", "start", "--pool", "night", "--type", "process", "--limit", "1"
        )

        def two_over():
            runs = server.ask("/flow_runs/filter", sort="EXPECTED_START_TIME_ASC")
            over = [run for run in runs if run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED")]
            return len(over) >= 2 and over

        runs = server.wait_until(two_over, 600 + 60 * STUDIES)
        yield Shift(server, settings_file, deployment, runs, uids)


def test_the_schedule_fires_and_drafts_and_delivers_what_lies_in_the_pacs(shift, running):
    assert shift.runs[0]["state"]["type"] == "COMPLETED", shift.runs[0]["state"]
    assert shift.runs[0]["auto_scheduled"]
    assert shift.runs[0]["deployment_id"] == shift.deployment
    assert documents(running) == sorted(shift.uids)
    with open_site(shift.settings_file) as site:
        assert {job.state for job in site.book.list_jobs()} == {JobState.DELIVERED}
        outcomes = {standing.code for standing in site.claims.standing()}
    assert outcomes == {"DRAFTED"}


def test_a_second_run_finds_nothing_to_do(shift, running):
    assert shift.runs[1]["state"]["type"] == "COMPLETED"
    tasks = shift.server.ask("/task_runs/filter", flow_runs={"id": {"any_": [shift.runs[1]["id"]]}})
    assert tasks == []
    assert len(documents(running)) == STUDIES


def test_the_page_shows_the_night_by_job_and_state(shift):
    found = shift.server.ask("/artifacts/filter", artifacts={"key": {"any_": ["night"]}})
    tables = [json.loads(artifact["data"]) for artifact in found]
    (table,) = [table for table in tables if len(table) == STUDIES and table[0]["job"]]
    with open_site(shift.settings_file) as site:
        assert {row["job"] for row in table} == {job.id for job in site.book.list_jobs()}
    assert {(row["state"], row["draft"]) for row in table} == {("DELIVERED", "DRAFTED")}


def test_nothing_of_a_patient_is_in_prefects_database_logs_or_artifacts(shift):
    logs = shift.server.ask("/logs/filter", limit=200)
    artifacts = shift.server.ask("/artifacts/filter")
    assert len(logs) > STUDIES
    places = {path: path.read_bytes() for path in shift.server.home.rglob("*") if path.is_file()}
    assert any(path.name == "prefect.db" and b"nightly" in content for path, content in places.items())
    everything = b"\0".join([*places.values(), json.dumps([logs, artifacts]).encode()])
    everything += b"".join(p.read_bytes() for p in (shift.settings_file.parent / "nights").rglob("night.*"))
    assert b"DELIVERED" in everything
    words = [w for value in PLANTED.values() for w in value.split("^")] + shift.uids
    hits = [word for word in words if word.encode() in everything]
    print(f"{len(PLANTED)} identifiers and {len(shift.uids)} UIDs in {len(everything)} bytes: {hits}")
    assert hits == []


# By hand: prefect.yaml as it is, a pause, a cancellation


class ByHand:
    """prefect.yaml deployed on a server of its own, with a worker of its own."""

    def __init__(self, server: Prefect):
        self.server = server

    def deployments(self) -> dict[str, str]:
        return {one["name"]: one["id"] for one in self.server.ask("/deployments/filter")}

    def begin(self, name: str, **parameters: Any) -> str:
        place = f"/deployments/{self.deployments()[name]}/create_flow_run"
        return self.server.ask(place, parameters=parameters)["id"]

    def state(self, run: str) -> str:
        (found,) = self.server.ask("/flow_runs/filter", flow_runs={"id": {"any_": [run]}})
        return found["state"]["type"]

    def complete(self, name: str, **parameters: Any) -> None:
        self.wait_for(self.begin(name, **parameters), "COMPLETED")

    def wait_for(self, run: str, state: str) -> None:
        """Not until the first that is an end: a cancelled run is CRASHED for a moment."""
        self.server.wait_until(lambda: self.state(run) == state)


@pytest.fixture(scope="module")
def by_hand(running, tmp_path_factory) -> Iterator[ByHand]:
    if not SLOW:
        pytest.skip("a server of its own, and four nights: MLA_MED_SLOW=1")
    with prefect(tmp_path_factory.mktemp("by_hand") / "prefect") as server:
        server.environment["MLA_MED_HOME"] = str(ROOT)
        pool = ("work-pool", "create", "night", "--type", "process")
        for arguments in (pool, ("--no-prompt", "deploy", "--all")):
            command = [sys.executable, "-m", "prefect", *arguments]
            subprocess.run(command, check=True, env=server.environment, cwd=ROOT, capture_output=True)
        server.start("worker", "prefect", "worker", "start", "--pool", "night", "--limit", "2")
        yield ByHand(server)


def test_prefect_takes_every_deployment(by_hand):
    names = {"nightly", "nightly-held", "drift", "evaluate", "prepare-corpus", "gather-corpus", "pretrain"}
    assert by_hand.deployments().keys() == names


def test_a_worker_makes_a_corpus_trains_on_it_gathers_an_archive_and_evaluates(by_hand, tmp_path):
    made, archive = tmp_path / "made", tmp_path / "reports.csv"
    archive.write_text("patient,report\nA,The heart is enlarged.\nB,No pleural effusion.\n")
    by_hand.complete("prepare-corpus", out=str(made), n=24)
    texts = tmp_path / "texts"
    by_hand.complete("gather-corpus", source=str(archive), kind="csv", out=str(texts))
    assert len(list(read_lines(texts))) == 2
    work, checkpoint = tmp_path / "training", tmp_path / "checkpoint"
    where = {"corpus": str(made / "corpus"), "work": str(work), "out": str(checkpoint)}
    by_hand.complete("pretrain", **where, rounds=0, epochs=1)
    assert load_checkpoint(checkpoint).scope.examination == "chest_ct"
    by_hand.complete("evaluate", out=str(tmp_path / "scores"), checkpoint=str(checkpoint), count=2)
    assert "BLEU-4" in (tmp_path / "scores" / "page.html").read_text()


def read_lines(corpus: Path) -> Iterator[str]:
    for path in corpus.glob("*.jsonl"):
        yield from path.read_text().splitlines()


def test_a_held_night_pauses_and_resume_releases_its_drafts_alone(by_hand, server, phantom_series, tmp_path):
    sent = send_phantoms(server, phantom_series, 2)
    path = write_settings(tmp_path, server.dicomweb_url)
    with open_site(path) as site:
        earlier = site.book.see("2.25.4710", 1)  # of another night, and somebody left it so
        site.book.ready(earlier.id, 1)
        site.claims.end(site.claims.take(earlier.id, "another"), "HELD", "DRAFTED")
    run = by_hand.begin("nightly-held", settings_file=str(path))
    by_hand.wait_for(run, "PAUSED")
    assert documents(server) == []
    with open_site(path) as site:
        later = site.book.see("2.25.4711", 1)  # another night holds it, while nobody has answered yet
        site.book.ready(later.id, 1)
        site.claims.end(site.claims.take(later.id, "another"), "HELD", "DRAFTED")
    by_hand.server.ask(f"/flow_runs/{run}/resume")
    by_hand.wait_for(run, "COMPLETED")
    assert documents(server) == sorted(sent)
    with open_site(path) as site:
        assert {one.job_id for one in site.claims.standing("HELD")} == {earlier.id, later.id}


def test_a_cancelled_night_stops_after_its_studies_and_the_next_loses_nothing(
    by_hand, server, phantom_series, tmp_path
):
    sent = send_phantoms(server, phantom_series, 8)
    path = write_settings(tmp_path, server.dicomweb_url)
    run = by_hand.begin("nightly", settings_file=str(path))

    def drafted() -> int:
        with open_site(path) as site:
            found = site.book.job_counts()
        return found[JobState.DRAFTED] + found[JobState.DELIVERED]

    by_hand.server.wait_until(lambda: path.with_name("ledger.db").exists() and drafted() >= 1)
    by_hand.server.ask(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING"})
    by_hand.wait_for(run, "CANCELLED")
    time.sleep(2)  # whoever went on all the same would draft now
    after = drafted()
    time.sleep(5)
    assert 1 <= drafted() == after < 8
    again = by_hand.begin("nightly", settings_file=str(path))
    by_hand.wait_for(again, "COMPLETED")
    print(f"cancelled after {after} of 8; the next night drafted the others")
    with open_site(path) as site:
        left = [
            d for job in site.book.list_jobs() for d in site.book.documents(job.id) if d.state != "DELIVERED"
        ]
        assert left == []
        assert site.book.job_counts() == {JobState.DELIVERED: 8}
    assert documents(server) == sorted(sent)
