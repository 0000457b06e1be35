"""When a night begins, and what a site may set."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from night_site import ROOT, write_settings

from mla_med.errors import ConfigError, LedgerError
from mla_med.night.run import UNDER_WAY, was_cut_off
from mla_med.night.schedule import next_time_s, serve
from mla_med.night.settings import NightSettings, read_night
from mla_med.pacs.settings import read_settings


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Berlin")).timestamp()


@pytest.mark.parametrize(("killed_h", "began"), [(1.0, "at once"), (11.0, "at its time")])
def test_a_night_that_was_cut_off_goes_on_at_once(tmp_path, killed_h, began):
    path = write_settings(tmp_path, "http://127.0.0.1:9")
    night = replace(read_night(path), records=str(tmp_path / "records"), window_h=10.0)
    now = [at("2026-11-26T19:00")]
    assert not was_cut_off(night, now[0])
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / UNDER_WAY).write_text(f"{now[0]:.0f}\n")
    now[0] += 3600 * killed_h
    cut_off, stop, nights = was_cut_off(night, now[0]), threading.Event(), []

    def pause(seconds: float) -> None:
        now[0] += seconds

    def do() -> None:
        nights.append(now[0])
        stop.set()

    started = now[0]
    work = [("night", "0 19 * * *", do)]
    serve(work, "Europe/Berlin", stop, lambda: now[0], pause, at_once=("night",) if cut_off else ())
    assert nights == [started if began == "at once" else at("2026-11-27T19:00")]
    (tmp_path / "records" / UNDER_WAY).write_text("nonsense")
    assert not was_cut_off(night, now[0])


@pytest.mark.parametrize(
    ("cron", "after", "then"),
    [
        ("0 19 * * *", "2026-11-26T18:59:59", "2026-11-26T19:00"),
        ("0 19 * * *", "2026-11-26T19:00", "2026-11-27T19:00"),
        ("0 12 * * 0", "2026-11-26T00:00", "2026-11-29T12:00"),
        ("30 2 * * *", "2027-03-27T12:00", "2027-03-28T03:00"),  # 2:30 is not on that day
    ],
)
def test_the_next_night_is_reckoned_in_the_sites_time_zone(cron, after, then):
    assert next_time_s(cron, "Europe/Berlin", at(after)) == at(then)


def test_a_crontab_line_that_never_comes_is_one_line():
    with pytest.raises(ConfigError, match="no crontab line"):
        next_time_s("0 19 31 2 *", "UTC", 0.0)


def test_a_service_begun_while_the_clock_was_ahead_begins_its_nights_when_it_is_set_right():
    now, begun, stop = [at("2027-11-26T18:00")], [], threading.Event()

    def pause(seconds: float) -> None:
        now[0] = at("2026-11-26T18:00") if now[0] > at("2027-01-01T00:00") else now[0] + seconds
        if now[0] > at("2026-11-28T18:00"):
            stop.set()

    work = [("night", "0 19 * * *", lambda: begun.append(now[0]))]
    serve(work, "Europe/Berlin", stop, lambda: now[0], pause)
    assert begun == [at("2026-11-26T19:00"), at("2026-11-27T19:00")]


@pytest.mark.parametrize(
    "error", [LedgerError("The ledger is away."), OSError(28, "No space"), KeyError("x")]
)
def test_nights_begin_by_the_clock_and_one_that_fails_does_not_end_the_service(error):
    now, begun, stop = [at("2026-11-26T18:00")], [], threading.Event()

    def night() -> None:
        begun.append(datetime.fromtimestamp(now[0], ZoneInfo("Europe/Berlin")).isoformat()[:16])
        now[0] += 3600
        if len(begun) == 3:
            stop.set()
        raise error

    def pause(seconds: float) -> None:
        now[0] += seconds

    told = []
    serve(
        [("night", "0 19 * * *", night)],
        "Europe/Berlin",
        stop,
        lambda: now[0],
        pause,
        lambda name, next_s: told.append((name, next_s)),
    )
    assert begun == ["2026-11-26T19:00", "2026-11-27T19:00", "2026-11-28T19:00"]
    assert told == [("night", at(f"2026-11-{day}T19:00")) for day in (26, 27, 28, 29)]


def test_mla_med_serve_begins_a_night_and_ends_on_sigterm(server, tmp_path):
    path = write_settings(tmp_path, server.dicomweb_url, night='cron = "* * * * * *"')
    command = [sys.executable, "-c", "from mla_med.cli import main; main()", "serve", "--settings", str(path)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    for _ in range(600):
        if list((tmp_path / "nights").glob("*/night.html")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    told, logged = process.communicate(timeout=60)
    assert list((tmp_path / "nights").glob("*/night.html")), logged
    assert process.returncode == 0, logged
    assert told.count(b"next night at 20") >= 2
    assert b": nothing to do" in told
    assert b'"event": "night_ended"' in logged


# Settings


def test_a_site_without_the_section_has_every_default(tmp_path):
    path = tmp_path / "mla-med.toml"
    path.write_text("[pacs]\n")
    beside = {"out": str(tmp_path / "out/drafts"), "records": str(tmp_path / "out/nights")}
    assert read_night(path, {}) == replace(NightSettings(), **beside)
    url = {"MLA_MED_WEBHOOK_URL": "https://pager.example.org/x"}
    assert read_night(path, url).webhook_url == "https://pager.example.org/x"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("worker = 2", "no key 'worker'. Did you mean workers"),
        ('workers = "2"', "workers must be of type int"),
        ("workers = 0", "workers is 0"),
        ("batch = 0", "batch is 0"),
        ('timezone = "Europe/Atlantis"', "give a name such as Europe/Berlin"),
        ('formats = "html"', "formats needs sr"),
    ],
)
def test_settings_that_cannot_be_are_one_line(tmp_path, line, words):
    path = tmp_path / "mla-med.toml"
    path.write_text(f"[night]\n{line}\n")
    with pytest.raises(ConfigError, match=words):
        read_night(path, {})


def test_read_settings_leaves_the_section_of_the_night_alone(tmp_path):
    path = write_settings(tmp_path, "http://127.0.0.1:9", night="workers = 2")
    assert read_settings(path).name == "main"
    assert read_night(path).workers == 2
