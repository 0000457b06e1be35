"""What people copy and machines read: deployments, compose, dashboard, alarms name what there is."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml

from flows import FlowError, stopping, wordless
from mla_med.errors import StudyError
from mla_med.night.schedule import next_time_s
from mla_med.night.settings import NightSettings

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"


def deployments() -> list[dict]:
    return yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def test_every_deployment_names_a_flow_and_its_parameters():
    names = [one["name"] for one in deployments()]
    corpora = ["prepare-corpus", "gather-corpus"]
    assert names == ["nightly", "nightly-held", "drift", "evaluate", *corpora, "pretrain"]
    for one in deployments():
        file, _, function = one["entrypoint"].partition(":")
        found = {
            n.name: n for n in ast.parse((ROOT / file).read_text()).body if isinstance(n, ast.FunctionDef)
        }
        assert function in found, one["entrypoint"]
        assert any("flow" in ast.unparse(decorator) for decorator in found[function].decorator_list)
        assert one.get("parameters", {}).keys() <= {argument.arg for argument in found[function].args.args}
        is_night = "nightly" in one["name"]  # prefect.yaml says why it has none
        limit = None if is_night else {"limit": 1, "collision_strategy": "CANCEL_NEW"}
        assert one.get("concurrency_limit") == limit
        assert one["work_pool"] == {"name": "night"}


def test_every_schedule_comes_in_its_time_zone():
    schedules = [schedule for one in deployments() for schedule in one["schedules"]]
    assert len(schedules) == 4
    for schedule in schedules:
        assert next_time_s(schedule["cron"], schedule["timezone"], 1.8e9) > 1.8e9


def metrics_there_are() -> set[str]:
    sources = [ROOT / "mla_med/pacs/metrics.py", ROOT / "mla_med/night/metrics.py"]
    return set(re.findall(r'"(mla_med_[a-z_]+)"', "".join(path.read_text() for path in sources)))


@pytest.mark.parametrize("file", ["grafana/dashboards/night.json", "alarms.yaml"])
def test_what_is_drawn_and_what_alarms_are_metrics_that_there_are(file):
    used = set(re.findall(r"mla_med_[a-z_]+[a-z]", (DOCKER / file).read_text()))
    bare = {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in used}
    assert len(bare) >= 4
    assert bare <= metrics_there_are()


def test_the_dashboard_is_one_that_grafana_reads():
    board = json.loads((DOCKER / "grafana/dashboards/night.json").read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids)) == 10
    assert all(panel["targets"] and panel["gridPos"]["w"] <= 24 for panel in board["panels"])


def test_compose_publishes_nothing_beyond_this_machine_and_mounts_what_there_is():
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
        for volume in service.get("volumes", ()):
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            if source.startswith("./"):
                assert (DOCKER / source).exists(), source
            elif not source.startswith("${"):
                assert source in compose["volumes"]
        if "build" in service:
            assert service["cap_drop"] == ["ALL"]
            assert service["read_only"]
            assert not str(service["user"]).startswith(("0", "root"))
    assert "password" not in (DOCKER / "compose.yaml").read_text().replace("passwords", "").lower().replace(
        "_password", ""
    )


def test_the_image_is_of_no_root_and_has_a_health_check():
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    assert "USER 10001" in lines
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    assert not [line for line in lines if "EXPOSE" in line or ("http" in line.lower() and "COPY" in line)]


def test_the_page_of_the_night_has_every_key_of_its_settings():
    page = (ROOT / "docs/night.md").read_text()
    assert not [name for name in NightSettings.__dataclass_fields__ if f"`{name}`" not in page]


# What Prefect is told of what goes wrong


def test_an_error_reaches_prefect_as_its_code_alone():
    with pytest.raises(FlowError) as caught, wordless():
        raise StudyError("Study 2.25.4711 of Xanthippe is damaged.", code="DAMAGED_FILE")
    assert str(caught.value) == "DAMAGED_FILE"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    with pytest.raises(FlowError, match=r"^ValueError$"), wordless():
        raise ValueError("could not convert 'Xanthippe'")


def test_a_cancelled_run_is_told_and_the_signal_comes_through_when_its_work_is_done():
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with stopping() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(100):
                if stop.is_set():
                    break
                time.sleep(0.01)
            assert stop.is_set()
            assert came == []
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_of_the_main_thread_no_signal_is_taken():
    answers = []

    def inside() -> None:
        with stopping() as stop:
            answers.append(stop.is_set())

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert answers == [False]


NAMED = "Quercy_Xanthippe"


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("draft_study", "draft_study_flow", (NAMED, "out")),
        ("draft_study", "draft_job_flow", (f"{NAMED}.toml", "a_job")),
        ("nightly", "nightly_flow", (f"{NAMED}.toml",)),
        ("drift", "drift_flow", (f"{NAMED}.toml",)),
        ("pretrain", "pretrain_flow", (NAMED, "work", "out")),
        ("evaluate", "evaluate_flow", ("out", NAMED, 1)),
        ("prepare_corpus", "prepare_corpus_flow", ("out", NAMED, 1)),
        ("prepare_corpus", "gather_corpus_flow", (NAMED, "csv", "out")),
    ],
)
def test_no_flow_tells_prefect_the_words_of_an_error(tmp_path, monkeypatch, module, name, arguments):
    from importlib import import_module

    from prefect.logging import disable_run_logger

    monkeypatch.chdir(tmp_path)
    places = [tmp_path / a if isinstance(a, str) and a != "csv" else a for a in arguments]
    if name == "prepare_corpus_flow":
        places[1] = NAMED
    flow = getattr(import_module(f"flows.{module}"), name)
    with disable_run_logger(), pytest.raises(FlowError) as caught:
        flow.fn(*places)
    assert re.fullmatch("[A-Z_]+|[A-Z][A-Za-z]+", str(caught.value))
    assert NAMED not in str(caught.value)


def test_the_table_of_the_bench_says_what_limits_it():
    from evaluation.night import Row, to_markdown

    rows = [Row("bare", 20, 80.0, 900), Row("1", 20, 72.0, 900), Row("2", 20, 60.0, 900)]
    text = to_markdown([*rows, Row("prefect", 20, 75.6, 950), Row("batch", 20, 60.0, 1200)], cores=2)
    assert "| bare loop over draft_one, one process | 900 (900 to 900) | 1.00 | 4.00 | 900 |" in text
    assert "| night, 2 workers | 1200 (1200 to 1200) | 1.33 | 3.00 | 900 |" in text
    assert "The flow costs +5.0% of a study's time" in text
    assert "Batches of up to 4 draft x1.20 of what one at a time does." in text
    assert "Two workers draft x1.20 of what one does, on 2 cores." in text
    assert "For a hospital of 500 CTs a day, in 10 hours: 1 such machines." in text
    assert "For a network of 50 such hospitals, in 10 hours: 3 such machines." in text


def test_the_bench_compares_the_flow_within_each_round():
    from evaluation.night import Row, to_markdown

    seconds = {"1": (20.0, 40.0, 30.0), "prefect": (21.0, 40.4, 33.0)}  # +5, +1 and +10 %
    rows = [Row(arm, 20, seconds[arm][number], 900) for number in range(3) for arm in seconds]
    text = to_markdown(rows, cores=2)
    assert (
        "The flow costs +5.0% of a study's time (+1.0% to +10.0% in 3 rounds; target: at most 10 %)." in text
    )
    assert "| night, 1 worker | 2400 (1800 to 3600) |" in text
