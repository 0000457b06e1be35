"""Finding studies in a PACS that tells only so many at once."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

import drafts
import pytest
from fake_pacs import http_pacs
from orthanc import orthanc

from mla_med.errors import PacsError
from mla_med.pacs.find import MANY, Told, find_since
from mla_med.pacs.run import make_peer
from mla_med.pacs.settings import Credentials, PacsSettings

FIRST, TODAY = date(2026, 11, 1), date(2026, 11, 7)


class Pacs:
    """Answers by date and time, and stops at `most`: without a word, or it `says` so."""

    def __init__(self, times: list[datetime], most: int, says: bool = False):
        self.studies = {str(n): at for n, at in enumerate(times)}
        self.most, self.says, self.asked = most, says, 0

    def ask(self, keys: dict[str, str]) -> Told:
        self.asked += 1
        day = keys["StudyDate"].split("-") * (1 if "-" in keys["StudyDate"] else 2)
        hours = keys.get("StudyTime", "000000-235959").split("-")
        told = {
            uid: None
            for uid, at in self.studies.items()
            if day[0] <= f"{at:%Y%m%d}" <= (day[1] or "9") and hours[0] <= f"{at:%H%M%S}" <= hours[1]
        }
        return Told(dict(list(told.items())[: self.most]), self.says and len(told) > self.most)


def days(count: int, step: timedelta) -> list[datetime]:
    return [datetime(2026, 11, 1) + n * step for n in range(count)]


@pytest.mark.parametrize("most", [MANY, 100, 200, 10**6])
@pytest.mark.parametrize(
    "times",
    [
        days(1000, timedelta(minutes=10)),
        [datetime(2026, 11, 7, 8) + n * timedelta(minutes=1, seconds=20) for n in range(500)],
        [datetime(2026, 11, 9, 8)] * 3,  # of a clock that is ahead
        [],
    ],
)
def test_every_study_is_found_whatever_a_pacs_tells_at_once(times, most):
    pacs = Pacs(times, most)
    assert sorted(find_since(FIRST, TODAY, pacs.ask)) == sorted(pacs.studies)
    assert pacs.asked <= 1 + len(times) // 3


def test_what_was_not_kept_back_is_asked_for_three_times_at_most():
    pacs = Pacs(days(1000, timedelta(minutes=10)), 10**6)
    find_since(FIRST, TODAY, pacs.ask)
    assert pacs.asked == 3


def test_a_pacs_that_says_that_it_tells_few_is_asked_for_shorter_times():
    pacs = Pacs(days(100, timedelta(hours=1)), most=3, says=True)
    assert sorted(find_since(FIRST, TODAY, pacs.ask)) == sorted(pacs.studies)


def test_more_studies_in_an_hour_than_a_pacs_tells_are_an_error():
    pacs = Pacs(days(100, timedelta(seconds=10)), most=99, says=True)
    with pytest.raises(PacsError) as caught:
        find_since(FIRST, TODAY, pacs.ask)
    assert caught.value.code == "ENDED_EARLY"


@pytest.mark.parametrize("knows_offset", [False, True])
@pytest.mark.parametrize("most", [100, 200, 300])
def test_every_study_is_found_by_dicomweb_whatever_a_server_makes_of_limit_and_offset(most, knows_offset):
    pacs = Pacs(days(1000, timedelta(minutes=10)), 10**6)

    def answer(method, path, body):
        asked = dict(parse_qsl(urlsplit(path).query))
        told = list(pacs.ask(asked).found)
        start = int(asked["offset"]) if knows_offset else 0
        items = [{"0020000D": {"vr": "UI", "Value": [f"2.25.{uid}"]}} for uid in told[start : start + most]]
        return 200, json.dumps(items).encode()

    with http_pacs(answer) as url:
        settings = PacsSettings(dicomweb_url=url)
        found = make_peer(settings, Credentials()).find_studies(FIRST, ["CT"])
    assert len(found) == 1000


@pytest.mark.parametrize("knows_offset", [False, True])
def test_who_does_not_count_the_images_of_a_series_is_asked_for_them(knows_offset):
    def answer(method, path, body):
        if path.split("?")[0].endswith("/series"):
            series = {"0020000E": {"vr": "UI", "Value": ["1.2.3"]}, "00080060": {"vr": "CS", "Value": ["CT"]}}
            return 200, json.dumps([series]).encode()
        asked = dict(parse_qsl(urlsplit(path).query))
        start, most = (int(asked["offset"]), int(asked["limit"])) if knows_offset else (0, 10**6)
        uids = [f"1.2.4.{n}" for n in range(1, 451)][start : start + most]
        return 200, json.dumps([{"00080018": {"vr": "UI", "Value": [uid]}} for uid in uids]).encode()

    with http_pacs(answer) as url:
        (counted,) = make_peer(PacsSettings(dicomweb_url=url), Credentials()).count("1.2")
    assert (counted.series_uid, counted.modality, counted.instances) == ("1.2.3", "CT", 450)


def test_all_studies_of_one_hour_are_found_page_by_page_and_those_of_another_modality_are_not():
    with orthanc() as server:
        for number in range(1, 451):
            image = drafts.image(number, 1)
            image.Modality = "CT" if number <= 430 else "CR"
            server.upload(drafts.to_bytes(image))
        settings = PacsSettings(dicomweb_url=server.dicomweb_url)
        peer = make_peer(settings, Credentials())
        found = peer.find_studies(date(2020, 1, 1), ["CT"])
    assert sorted(found) == sorted(drafts.study_uid(number) for number in range(1, 431))


@pytest.mark.parametrize("protocol", ["dicomweb", "dimse"])
def test_every_study_of_a_real_pacs_that_tells_sixty_at_once_is_found(protocol):
    count = 150
    with orthanc(LimitFindResults=60) as server:
        for number in range(1, count + 1):
            image = drafts.image(number, 1)
            image.StudyDate = f"202611{1 + number % 3:02d}"
            image.StudyTime = f"{number % 24:02d}3000"
            server.upload(drafts.to_bytes(image))
        settings = PacsSettings(
            protocol=protocol,
            dicomweb_url=server.dicomweb_url if protocol == "dicomweb" else "",
            host="127.0.0.1",
            port=server.dicom_port,
            called_ae_title="ORTHANC",
        )
        found = make_peer(settings, Credentials()).find_studies(FIRST, ["CT"])
    assert sorted(found) == sorted(drafts.study_uid(number) for number in range(1, count + 1))
