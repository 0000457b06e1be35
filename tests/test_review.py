"""The radiologist's page: who comes in, what a change does, what a decision sends, what is kept of it."""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

pytest.importorskip("fastapi", reason="fastapi is not installed (the extra review)")
pytest.importorskip("argon2", reason="argon2-cffi is not installed (the extra review)")

from fastapi.routing import APIRoute
from ledgers import rows_in
from pydicom import dcmread
from review_site import PASSWORD, Site, made

from mla_med.documents import parts
from mla_med.documents.write import write_documents
from mla_med.errors import ConfigError, LedgerError, PacsError
from mla_med.ledger.nouns import JobState
from mla_med.logs import start_logging
from mla_med.pacs.peer import SeriesCount
from mla_med.report.schema import schema_of
from mla_med.review import deciding, words
from mla_med.review.deciding import send_unsent
from mla_med.review.desk import Desk, Keeper
from mla_med.review.nouns import Item, StaleVersion
from mla_med.review.settings import ReviewSettings, check_binding, read_review
from mla_med.types import Change, Gate, Presence, Reason, Side

HTML = {"accept": "text/html"}
CHEST = 0
WITHOUT_SIGN_IN = ("/static", "/sign-in", "/sign-in/oidc", "/sign-in/oidc/back")
"""Every other address wants a reader."""


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.book.close()
    made.store.close()


def routes(site):
    """Every (method, path) of the app, images included."""
    from starlette.routing import BaseRoute

    found = []

    def walk(some: list[BaseRoute]):
        for route in some:
            if isinstance(route, APIRoute):
                found.extend((method, route.path) for method in sorted(route.methods))
            elif hasattr(route, "original_router"):
                walk(route.original_router.routes)

    walk(site.app.routes)
    return found


def version_in(text: str) -> int:
    return int(re.search(r'id="version" name="version" value="(\d+)"', text)[1])


def sided(draft):
    """The number and finding of the first one-sided finding that can be on the other side, and that side."""
    findings, schema = draft.report.findings, schema_of(draft.report.examination)
    for number, finding in enumerate(findings, start=1):
        other = {Side.LEFT: Side.RIGHT, Side.RIGHT: Side.LEFT}.get(finding.side)
        there = replace(finding, side=other)
        if other and (other, finding.site) in schema[finding.code].places and there not in findings:
            return number, finding, other
    raise AssertionError("no such phantom")


def as_form(finding, **changes) -> dict[str, str]:
    values = {
        "presence": finding.presence.value,
        "place": words.place_value(finding),
        "size_mm": "" if finding.size_mm is None else f"{finding.size_mm:g}",
        "count": str(finding.count or ""),
        "change": str(finding.change or ""),
    }
    return values | changes


# Who comes in


def test_every_route_without_sign_in_is_401_or_the_sign_in_page(site):
    job, client = site.add(CHEST), site.client()
    paths = routes(site)
    assert len(paths) > 20
    assert any("/slice/" in path for _, path in paths)
    for method, path in paths:
        address = path.replace("{draft_id}", job).replace("{k}", "0").replace("{i}", "0")
        answer = client.request(method, address, headers=HTML)
        if path in WITHOUT_SIGN_IN:
            assert answer.status_code in (200, 401, 403), path
            continue
        assert answer.status_code == 401, (method, path)
        assert "P-00000" not in answer.text
        plain = client.request(method, address)
        assert (plain.status_code, plain.text) == (401, "SIGNED_OUT"), (method, path)


def test_a_reader_cannot_do_what_an_admin_can(site):
    job = site.add(CHEST)
    reader, admin = site.client("reader"), site.client("admin")
    for path in ("/drift", "/audit", "/users"):
        assert reader.get(path).status_code == 403
        assert admin.get(path, headers=HTML).status_code == 200
    assert reader.press("/users/disable", name="other").status_code == 403
    assert reader.press(f"/drafts/{job}/reopen").status_code == 403
    assert not site.store.user("other").disabled
    assert admin.press("/users/disable", name="other").status_code == 303
    assert site.store.user("other").disabled


def test_who_is_shut_out_is_out_at_once(site):
    other = site.client("other")
    site.store.disable_user("other", "admin")
    assert other.get("/").status_code == 401
    answer = other.enter("other")
    assert answer.status_code == 401
    assert "Name or password is wrong" in answer.text


def test_a_wrong_password_says_no_more_than_a_wrong_name_and_is_soon_not_asked(site):
    client = site.client()

    def enter(name: str):
        return client.enter(name, "what is not the password")

    known, unknown = enter("reader"), enter("nobody")
    assert known.status_code == unknown.status_code == 401
    assert known.text == unknown.text
    for _ in range(5):
        enter("reader")
    assert enter("reader").status_code == 429
    site.clock.now += 901
    assert enter("reader").status_code == 401


def test_what_was_typed_as_a_name_is_not_in_the_audit(site):
    site.client().enter("hunter2-my-password", "x" * 12)
    assert b"hunter2" not in rows_in(site.url)
    assert site.store.audit_rows()[0]["action"] == "SIGN_IN_FAILED"


def test_sessions_end_when_idle_and_after_a_day_at_work(site):
    client = site.client("reader")
    site.clock.now += 19 * 60
    assert client.get("/").status_code == 200
    site.clock.now += 21 * 60
    assert client.get("/").status_code == 401
    client = site.client("reader")
    for _ in range(31):
        site.clock.now += 19 * 60
        client.get("/")
    assert client.get("/").status_code == 200
    site.clock.now += 14 * 60
    assert client.get("/").status_code == 401


def test_signing_out_ends_the_session_and_not_only_the_cookie(site):
    client = site.client("reader")
    kept = client.cookies["mla_med"]
    assert client.press("/sign-out").status_code == 303
    assert client.get("/", headers={"cookie": f"mla_med={kept}"}).status_code == 401
    assert kept.encode() not in rows_in(site.url)


def test_the_session_cookie_is_for_this_page_alone(tmp_path):
    site = Site(tmp_path, ReviewSettings(public_url="https://review.example.org"))
    client = site.client()
    client.base_url = "https://review.example.org"
    answer = client.enter("reader")
    assert answer.status_code == 303
    cookie = next(c for c in answer.headers.get_list("set-cookie") if c.startswith("__Host-mla_med="))
    for word in ("HttpOnly", "SameSite=strict", "Secure", "Path=/"):
        assert word in cookie
    assert "max-age" in answer.headers["strict-transport-security"]


def test_forged_requests_change_nothing(site):
    job, client = site.add(CHEST), site.client("reader")
    posts = [path for method, path in routes(site) if method == "POST" and path not in WITHOUT_SIGN_IN]
    assert len(posts) > 10
    fields = {"version": "0", "number": "1", "code": "x", "text": "x", "verb": "accept", "name": "other"}
    for path in posts:
        address = path.replace("{draft_id}", job)
        assert client.post(address, data=fields | {"language": "zh"}).status_code == 403, path
        wrong = {"X-CSRF-Token": "wrong"}
        assert client.post(address, data=fields | {"language": "zh"}, headers=wrong).status_code == 403
    right = {"X-CSRF-Token": client.csrf}
    for header in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert client.post(f"/drafts/{job}/decide", data=fields, headers=right | header).status_code == 403
    assert site.store.item(job).state == "NEW"
    assert site.store.history(job) == []
    assert "FORGED" in {row["action"] for row in site.store.audit_rows()}


def test_a_page_elsewhere_cannot_sign_somebody_in(site):
    answer = site.client().post("/sign-in", data={"name": "reader", "password": PASSWORD, "csrf": "0" * 64})
    assert answer.status_code == 403
    assert "mla_med" not in answer.cookies


def test_another_host_name_and_a_large_form_are_refused(site):
    client = site.client("reader")
    assert client.get("/", headers={"host": "evil.example"}).status_code == 421
    assert client.press("/language", language="x" * 70_000).status_code == 413
    assert client.put("/").status_code == 405


def test_every_answer_forbids_what_the_page_does_not_need(site):
    client = site.client("reader")
    for path in ("/", "/static/page.js", "/sign-in", "/nowhere"):
        headers = client.get(path, headers=HTML).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
    assert client.get("/", headers=HTML).headers["cache-control"] == "no-store"


def test_no_page_names_another_host_or_holds_a_script(site):
    job, client = site.add(CHEST), site.client("admin")
    for path in ("/", f"/drafts/{job}", "/drift", "/audit", "/users", f"/drafts/{job}/versions", "/sign-in"):
        text = client.get(path, headers=HTML).text
        assert not re.search(r"https?://", text), path
        assert not re.search(r"<script(?![^>]*\bsrc=\"/static/)", text), path
        assert not re.search(r"\son\w+=|\sstyle=|javascript:", text), path


def test_only_the_named_proxy_says_who_somebody_is(tmp_path):
    settings = ReviewSettings(
        proxy_addresses=("10.9.0.0/16",),
        proxy_user_header="X-Forwarded-User",
        proxy_role_header="X-Forwarded-Groups",
        reader_group="radiology",
    )
    site = Site(tmp_path, settings)
    named = {"X-Forwarded-User": "lee@example.org", "X-Forwarded-Groups": "staff, radiology"}

    def ask(address: str, headers: dict[str, str]):
        return site.client(client=(address, 4000)).get("/", headers=headers)

    assert ask("10.9.1.1", named).status_code == 200
    assert ask("10.8.1.1", named).status_code == 401
    assert ask("10.9.1.1", named | {"X-Forwarded-Groups": "staff"}).status_code == 401
    assert ask("10.9.1.1", {}).status_code == 401
    site.store.add_user("lee@example.org", "Lee^Ann", "reader", "")
    site.store.disable_user("lee@example.org", "admin")
    assert ask("10.9.1.1", named).status_code == 401


def test_a_proxy_that_names_somebody_else_ends_the_session(tmp_path):
    settings = ReviewSettings(proxy_addresses=("10.9.0.1",), proxy_user_header="X-Forwarded-User")
    site = Site(tmp_path, settings)
    client = site.client(client=("10.9.0.1", 4000))
    assert "lee" in client.get("/", headers=HTML | {"X-Forwarded-User": "lee"}).text
    assert "kim" in client.get("/", headers=HTML | {"X-Forwarded-User": "kim"}).text
    assert client.get("/").status_code == 401


def test_settings_that_would_be_unsafe_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="in the clear"):
        check_binding(ReviewSettings(host="0.0.0.0"))
    check_binding(ReviewSettings())
    check_binding(ReviewSettings(host="0.0.0.0", cert_file="c", key_pem_file="k"))
    with pytest.raises(ConfigError, match="belong together"):
        ReviewSettings(proxy_user_header="X-User")
    with pytest.raises(ConfigError, match="needs sr"):
        ReviewSettings(formats="html")
    path = tmp_path / "mla-med.toml"
    path.write_text("[review]\nprot = 1\n")
    with pytest.raises(ConfigError, match="Did you mean port"):
        read_review(path)
    path.write_text('[review]\nport = 9000\nproxy_addresses = []\n[pacs]\nname = "x"\n')
    assert read_review(path).port == 9000


# The worklist


def put(site: Site, number: int, **values) -> str:
    """A row without a draft behind it."""
    job_id = f"{number:032x}"
    stated = values.pop("stated", {"lung_nodule": "present"})
    item = Item(
        job_id, "NEW", 1, "chest_ct", "en", "Maker Model", "F 60-79", "ab" * 32, "", site.clock.now, 0.0
    )
    site.store.put(replace(item, **values), stated)
    return job_id


def listed(client, **query) -> list[str]:
    text = client.get("/", params=query, headers=HTML).text
    return [int(job, 16) for job in re.findall(r'href="/drafts/([0-9a-f]{32})"', text)]


def test_the_worklist_has_the_urgent_and_then_the_old_first(site):
    client = site.client("reader")
    put(site, 1, rank=2)
    put(site, 2, rank=0, arrived_at_s=site.clock.now - 60)
    put(site, 3, rank=0, arrived_at_s=site.clock.now - 7200)
    put(site, 4, rank=3, refusal="NO_SERIES", stated={})
    assert listed(client) == [3, 2, 1, 4]
    assert listed(client, rank=0) == [3, 2]


def test_the_worklist_is_filtered_and_searched(site):
    client = site.client("reader")
    put(site, 1, examination="brain_mr", stated={"acute_infarct": "present"})
    put(site, 2, state="ACCEPTED", decided_by="reader")
    put(site, 3, scanner="Other Scanner", stated={"lung_mass": "present"})
    put(site, 4, arrived_at_s=site.clock.now - 5 * 86_400, stated={"lung_mass": "absent"})
    assert listed(client) == [4, 1, 3]
    assert listed(client, examination="brain_mr") == [1]
    assert listed(client, state="decided") == [2]
    assert listed(client, age="old") == [4]
    assert listed(client, q="infarct") == [1]
    assert listed(client, q="梗死") == [1]
    assert listed(client, q="mass") == [3]
    assert listed(client, q="other sc") == [3]
    assert listed(client, q=f"{4:032x}") == [4]
    assert listed(client, q="%_") == []
    assert listed(client, state="nonsense", rank="x", age="y") == [4, 1, 3]


def test_pages_of_the_worklist_follow_each_other_while_drafts_come_in(site):
    client = site.client("reader")
    for number in range(120):
        put(site, number, arrived_at_s=site.clock.now + number // 3)
    first = client.get("/", headers=HTML).text
    put(site, 500, rank=0)
    later = re.search(r'rel="next" href="([^"]+)"', first)[1].replace("&amp;", "&")
    second = client.get(later, headers=HTML).text
    seen = [job for text in (first, second) for job in re.findall(r'href="/drafts/([0-9a-f]{32})"', text)]
    assert [int(job, 16) for job in seen] == sorted(range(100), key=lambda n: (n // 3, f"{n:032x}"))


def test_the_worklist_is_asked_again_and_answers_only_what_is_new(site):
    client = site.client("reader")
    put(site, 1)
    text = client.get("/", headers=HTML).text
    address = re.search(r'hx-get="([^"]+)"', text)[1].replace("&amp;", "&")
    part = {"HX-Request": "true"}
    assert client.get(address, headers=part).status_code == 204
    site.clock.now += 1
    put(site, 2)
    answer = client.get(address, headers=part)
    assert answer.status_code == 200
    assert f"{2:032x}" in answer.text
    assert "<html" not in answer.text


# Whose it is


@pytest.fixture
def logged(monkeypatch):
    """What every logger of the process says, at every level."""
    root, said = logging.getLogger(), io.StringIO()
    for owner, name in (
        *((sys, hook) for hook in ("excepthook", "unraisablehook")),
        *((threading, "excepthook"), (warnings, "showwarning"), (root, "level")),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    start_logging(said, "debug")
    return said


def test_names_and_numbers_of_patients_are_shown_and_nowhere_kept(site, tmp_path, logged):
    canary = {"PatientName": "Canaryname^Zoe", "PatientID": "CANARYID7", "AccessionNumber": "CANARYACC"}
    job, client = site.add(CHEST, **canary), site.client("reader")
    page = client.get(f"/drafts/{job}", headers=HTML).text
    assert "Canaryname, Zoe" in page
    assert "CANARYID7" in page
    assert "Canaryname, Zoe" in client.press("/names", ids=job).text
    assert "anaryname" not in client.get("/", headers=HTML).text
    number, finding, other = sided(made(CHEST)[1])
    place = f"{other} {finding.site or '-'}"
    fields = as_form(finding, place=place)
    assert (
        client.press(
            f"/drafts/{job}/finding", version=0, number=number, code=finding.code, **fields
        ).status_code
        == 200
    )
    client.press(f"/drafts/{job}/decide", version=1, verb="accept", despite="yes")
    assert '"event": "committed"' in logged.getvalue()
    kept = rows_in(site.url) + logged.getvalue().encode()
    kept += b"".join(p.read_bytes() for p in tmp_path.rglob("ledger*"))
    assert b"anary" not in kept.replace(b"CANARY", b"canary")
    assert client.cookies["mla_med"] not in page


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }} {% raw %}",
    "=HYPERLINK(1)",
    "\u202eevil\u202c\u2066x",
    "' OR 1=1 --",
    "</title><svg onload=alert(1)>",
]


def test_hostile_words_in_every_text_of_the_images_are_inert(site):
    fields = (
        *("PatientName", "PatientID", "AccessionNumber", "StudyDescription", "SeriesDescription"),
        *("Manufacturer", "ManufacturerModelName", "ReferringPhysicianName", "InstitutionName"),
    )
    client = site.client("admin")
    draft = made(CHEST)[1]
    for number, words_ in enumerate(HOSTILE):
        hurt = replace(
            draft,
            verdicts=tuple(
                replace(v, series=replace(v.series, description=words_), why=words_) for v in draft.verdicts
            ),
            provenance=replace(draft.provenance, study_uid=f"2.25.99{number}", model_name=words_),
            modal_weights={words_: 1.0},
        )
        header = dict.fromkeys(fields, words_) | {"StudyInstanceUID": f"2.25.99{number}"}
        job = site.add(CHEST, hurt, **header)
        pages = [client.get(path, headers=HTML).text for path in (f"/drafts/{job}", "/", "/drift")]
        pages.append(client.press("/names", ids=job).text)
        for text in pages:
            assert "<script>" not in text
            assert not re.search(r"<(img|svg)", text)
            assert "49" not in re.findall(r"<bdi>([^<]*)</bdi>", text)
            assert not re.search("[\u202a-\u202e\u2066-\u2069]", text)


def test_hostile_words_of_a_reader_are_inert(site):
    job, client = site.add(CHEST), site.client("reader")
    for number, words_ in enumerate(HOSTILE):
        answer = client.press(f"/drafts/{job}/sentence", version=number, number=0, text=words_)
        assert answer.status_code == 200
        assert "<script>" not in answer.text
        assert not re.search(r"<(img|svg)", answer.text)
        assert not re.search("[\u202a-\u202e\u2066-\u2069]", answer.text)


def test_a_study_of_somebody_else_in_the_folder_lends_no_name(site):
    job, client = site.add(CHEST), site.client("reader")
    for path in (Path(site.pacs.inbox) / job).iterdir():
        image = dcmread(path)
        image.PatientName, image.StudyInstanceUID = "Other^Somebody", "2.25.4711"
        image.save_as(path)
    page = client.get(f"/drafts/{job}", headers=HTML).text
    assert "Somebody" not in page
    assert "Müller, Jürgen" in page  # from the draft's own document


# Changing


def test_a_changed_field_changes_its_sentence_and_the_linter_objects_to_the_side(site):
    job, client = site.add(CHEST), site.client("reader")
    number, finding, other = sided(made(CHEST)[1])
    page = client.get(f"/drafts/{job}", headers=HTML).text
    before = page.count('data-rule="SIDE_OF_EVIDENCE"')
    fields = as_form(finding, place=f"{other} {finding.site or '-'}")
    answer = client.press(f"/drafts/{job}/finding", version=0, number=number, code=finding.code, **fields)
    assert answer.status_code == 200
    assert version_in(answer.text) == 1
    assert answer.text.count('data-rule="SIDE_OF_EVIDENCE"') == before + 1
    now = site.desk.sheet(job).now.report
    assert now.findings[number - 1].side is other
    was = made(CHEST)[1].report
    (said,) = [new.text for new, old in zip(now.sentences, was.sentences, strict=True) if new != old]
    assert f" {other} " in said
    assert f" {finding.side} " not in said
    assert answer.headers["HX-Trigger-After-Settle"] == "review:changed"


def test_a_changed_sentence_changes_its_fields_and_the_rest_of_the_page(site):
    job, client = site.add(CHEST), site.client("reader")
    report = made(CHEST)[1].report
    number = next(n for n, s in enumerate(report.sentences, 1) if s.codes == ("hiatal_hernia",))
    from mla_med.report.render import sentence_choices
    from mla_med.report.style import load_style
    from mla_med.types import Finding

    was = next(f for f in report.findings if f.code == "hiatal_hernia")
    presence = Presence.ABSENT if was.presence is Presence.PRESENT else Presence.PRESENT
    text = sentence_choices(Finding("hiatal_hernia", presence), load_style())[0]
    answer = client.press(f"/drafts/{job}/sentence", version=0, number=number, text=text)
    assert answer.status_code == 200
    assert 'id="findings" class="card" hx-swap-oob="true"' in answer.text
    assert f'id="s{number}"' not in answer.text  # what she types in is left alone
    now = site.desk.sheet(job).now.report
    assert next(f for f in now.findings if f.code == "hiatal_hernia").presence is presence
    assert any("hiatal" in s.text.lower() for s in now.impression) is (presence is Presence.PRESENT)


def test_words_that_no_style_has_are_kept_and_the_linter_says_so(site):
    job, client = site.add(CHEST), site.client("reader")
    answer = client.press(f"/drafts/{job}/sentence", version=0, number=2, text="Looks odd  to me.")
    assert "Looks odd to me." in site.desk.sheet(job).now.report.sentences[1].text
    assert 'data-rule="UNKNOWN_SENTENCE"' in answer.text
    assert site.desk.sheet(job).now.report.findings == made(CHEST)[1].report.findings


def test_what_cannot_be_said_is_not_saved(site):
    job, client = site.add(CHEST), site.client("reader")
    report = made(CHEST)[1].report
    number = next(n for n, f in enumerate(report.findings, 1) if f.code == "pneumothorax")
    for fields in (
        {"presence": "present", "place": ""},
        {"presence": "present", "place": "up down"},
        {"presence": "final"},
        {},
    ):
        answer = client.press(
            f"/drafts/{job}/finding", version=0, number=number, code="pneumothorax", **fields
        )
        assert answer.status_code == 422
        assert answer.headers["HX-Retarget"] == "#message"
    wrong = client.press(
        f"/drafts/{job}/finding", version=0, number=1, code="pneumothorax", presence="absent"
    )
    assert "LINE_GONE" in wrong.text
    assert "SENTENCE_EMPTY" in client.press(f"/drafts/{job}/sentence", version=0, number=1, text=" ").text
    assert site.desk.sheet(job).head == 0


def test_findings_are_added_and_removed_with_their_sentences(site):
    job, client = site.add(CHEST), site.client("reader")
    was = site.desk.sheet(job).now.report
    client.press(f"/drafts/{job}/add", version=0, code="thyroid_nodule", presence="present", place="left -",
                 size_mm="12,5")  # fmt: skip
    now = site.desk.sheet(job).now.report
    assert len(now.sentences) == len(was.sentences) + (
        not any(f.code == "thyroid_nodule" for f in was.findings)
    )
    number = next(n for n, f in enumerate(now.findings, 1) if f.code == "thyroid_nodule")
    assert now.findings[number - 1].size_mm == 12.5
    assert any("thyroid" in s.text.lower() for s in now.impression)
    client.press(f"/drafts/{job}/remove", version=1, number=number, code="thyroid_nodule")
    assert site.desk.sheet(job).now.report == was


def test_undo_gives_back_what_was_before_step_by_step(site):
    job, client = site.add(CHEST), site.client("reader")
    first = site.desk.sheet(job).now.report
    client.press(f"/drafts/{job}/sentence", version=0, number=1, text="One.")
    client.press(f"/drafts/{job}/sentence", version=1, number=2, text="Two.")
    assert client.press(f"/drafts/{job}/undo", version=2).status_code == 200
    assert site.desk.sheet(job).now.report.sentences[0].text == "One."
    assert site.desk.sheet(job).now.report.sentences[1] == first.sentences[1]
    client.press(f"/drafts/{job}/undo", version=3)
    assert site.desk.sheet(job).now.report == first
    client.press(f"/drafts/{job}/undo", version=4)
    assert site.desk.sheet(job).now.report == first


def test_typing_on_is_one_step_of_undo(site):
    job, client = site.add(CHEST), site.client("reader")
    first = site.desk.sheet(job).now.report
    for version, text in enumerate(("A", "A b", "A bc.")):
        site.clock.now += 1
        client.press(f"/drafts/{job}/sentence", version=version, number=1, text=text)
    client.press(f"/drafts/{job}/undo", version=3)
    assert site.desk.sheet(job).now.report == first


def test_two_readers_never_overwrite_each_other(site):
    job = site.add(CHEST)
    jane, kim = site.client("reader"), site.client("other")
    assert jane.press(f"/drafts/{job}/sentence", version=0, number=1, text="By Jane.").status_code == 200
    answer = kim.press(f"/drafts/{job}/sentence", version=0, number=1, text="By Kim.")
    assert answer.status_code == 409
    assert answer.headers["HX-Retarget"] == "#conflict"
    assert "By Jane." in answer.text
    assert "<bdi>reader</bdi>" in answer.text
    assert kim.press(f"/drafts/{job}/decide", version=0, verb="accept").status_code == 409
    assert site.desk.sheet(job).now.report.sentences[0].text == "By Jane."
    assert kim.press(f"/drafts/{job}/sentence", version=1, number=1, text="By Kim.").status_code == 200
    with pytest.raises(StaleVersion):
        site.store.change(job, 1, "reader", "x", b"{}")


def test_the_report_changes_its_language_and_back(site):
    job, client = site.add(CHEST), site.client("reader")
    first = site.desk.sheet(job).now.report
    client.press(f"/drafts/{job}/language", version=0, language="zh")
    now = site.desk.sheet(job).now.report
    assert now.language == "zh"
    assert now.findings == first.findings
    assert all(re.search("[\u4e00-\u9fff]", s.text) for s in (*now.sentences, *now.impression))
    client.press(f"/drafts/{job}/language", version=1, language="en")
    assert site.desk.sheet(job).now.report.findings == first.findings


def test_the_page_speaks_the_readers_language(site):
    job, client = site.add(CHEST), site.client("reader")
    answer = client.press("/language", language="zh", back="//evil.example")
    assert answer.headers["location"] == "/"
    page = client.get(f"/drafts/{job}", headers=HTML).text
    assert '<html lang="zh">' in page
    assert "诊断印象" in page
    assert "肺结节" in page or "结节" in page


def test_every_word_of_the_page_has_its_chinese():
    folder = Path(words.__file__).parent / "templates"
    said = set()
    for path in (*folder.glob("*.html"), parts.TEMPLATES / "shared.html.jinja"):
        said |= set(re.findall(r'\bt\("([^"]+)"\)', path.read_text()))
        said |= set(re.findall(r't\("([^"]+)"\) if', path.read_text()))
    chinese = words.table("zh")
    assert len(said) > 80
    assert [key for key in sorted(said | words.table("en").keys()) if key not in chinese] == []
    others = (*parts.RULES.values(), *words.EXAMINATIONS.values(), *Presence, *Change)
    assert [w for w in others if w not in chinese] == []


def test_a_refusal_is_shown_with_its_reasons_and_has_nothing_to_change(site):
    draft = made(CHEST)[1]
    gate = Gate(False, (Reason("NO_SERIES", "No series can be read."),), {})
    refused = replace(draft, report=None, gate=gate, complaints=(), prior=None)
    job, client = site.add(CHEST, refused), site.client("reader")
    page = client.get(f"/drafts/{job}", headers=HTML).text
    assert "NO_SERIES" in page
    assert "The refusal stands" in page
    assert client.press(f"/drafts/{job}/sentence", version=0, number=1, text="x").status_code == 422
    sent = len(site.committed())
    assert client.press(f"/drafts/{job}/decide", version=0, verb="accept").status_code == 204
    assert site.store.item(job).state == "ACCEPTED"
    assert len(site.committed()) == sent


# Deciding


def read(content: bytes):
    return dcmread(io.BytesIO(content))


def test_accepting_sends_a_revision_that_names_the_reviewer_and_is_no_signature(site):
    job, client = site.add(CHEST), site.client("reader")
    first = read(site.committed()[-1])
    assert client.press(f"/drafts/{job}/decide", version=0, verb="accept").status_code == 204
    (decision,) = site.store.decisions_of(job)
    assert (decision.decision, decision.by) == ("ACCEPTED", "reader")
    revision = site.book.job(decision.revision_job)
    assert (revision.state, revision.revises) == (JobState.DRAFTED, job)
    document = read(site.book.content(site.book.documents(revision.id)[0].id))
    assert (document.VerificationFlag, document.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert "VerifyingObserverSequence" not in document
    assert str(document.AuthorObserverSequence[0].PersonName) == "Doe^Jane"
    named = document.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert named.ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert document.PatientID == first.PatientID
    assert (site.drafts / revision.id / "draft.json").exists()
    site.desk.scan()
    assert site.store.item(revision.id) is None  # what the page made is no new draft


def test_accepting_with_changes_sends_the_changed_words(site):
    job, client = site.add(CHEST), site.client("reader")
    client.press(f"/drafts/{job}/sentence", version=0, number=1, text="By hand.")
    client.press(f"/drafts/{job}/decide", version=1, verb="accept", despite="yes")
    assert site.store.item(job).state == "CHANGED"
    assert b"By hand." in site.committed()[-1]
    assert client.press(f"/drafts/{job}/sentence", version=1, number=1, text="Late.").status_code == 422


def test_rejecting_sends_a_document_without_findings_that_says_why(site):
    job, client = site.add(CHEST), site.client("reader")
    assert client.press(f"/drafts/{job}/decide", version=0, verb="reject").status_code == 422
    fields = {"verb": "reject", "reason": "INVENTED", "remark": "No mass there."}
    assert client.press(f"/drafts/{job}/decide", version=0, **fields).status_code == 204
    document = read(site.committed()[-1])
    assert document.CompletionFlag == "PARTIAL"
    assert "REJECTED_INVENTED" in document.CompletionFlagDescription
    assert document.PreliminaryFlag == "PRELIMINARY"
    assert b"No mass there." in site.committed()[-1]
    assert all(s.text.encode() not in site.committed()[-1] for s in made(CHEST)[1].report.impression)
    assert b"No mass" not in rows_in(site.url)


def test_what_the_settings_ask_for_lies_beside_the_revision(tmp_path):
    site = Site(tmp_path, ReviewSettings(formats="sr,hl7,txt"))
    job, client = site.add(CHEST), site.client("reader")
    client.press(f"/drafts/{job}/decide", version=0, verb="accept")
    folder = site.drafts / site.store.decisions_of(job)[0].revision_job
    assert sorted(path.name for path in folder.iterdir()) == [
        "draft.dcm",
        "draft.hl7",
        "draft.json",
        "draft.txt",
    ]
    message = (folder / "draft.hl7").read_bytes()
    assert b"|P" in message
    assert not re.search(rb"OBX\|[^\r]*\|F\r", message)


def test_a_decision_of_a_server_that_was_killed_goes_out_at_the_next_start(site, monkeypatch):
    job, client = site.add(CHEST), site.client("reader")

    def gone(*_, **__):
        raise PacsError("gone", code="CONNECT")

    with monkeypatch.context() as patched:
        patched.setattr(deciding, "commit_documents", gone)
        assert client.press(f"/drafts/{job}/decide", version=0, verb="accept").status_code == 204
    assert site.store.decisions_of(job)[0].sent_at_s == 0
    assert "tried again" in client.get(f"/drafts/{job}", headers=HTML).text
    site.clock.now += 3600
    assert send_unsent(site.desk) == 1
    (decision,) = site.store.decisions_of(job)
    sent = site.committed()
    # killed after the commit and before it was noted: the same bytes, and so the same document
    deciding.send(site.desk, decision)
    assert site.committed() == sent
    assert send_unsent(site.desk) == 0


def held(site, job: str) -> str:
    """Another study's draft, as `night --hold` leaves it: in its folder, and nothing committed."""
    draft = replace(made(CHEST)[1], provenance=replace(made(CHEST)[1].provenance, study_uid="2.25.5150"))
    fresh = site.book.see("2.25.5150", 1)
    site.book.ready(fresh.id, 1)
    inbox = Path(site.pacs.inbox) / fresh.id
    inbox.mkdir()
    image = dcmread(next((Path(site.pacs.inbox) / job).iterdir()))
    image.StudyInstanceUID = "2.25.5150"
    image.save_as(inbox / "a.dcm")
    folder = site.drafts / fresh.id
    folder.mkdir()
    for document in write_documents(draft, formats=("sr", "json"), source=inbox / "a.dcm"):
        (folder / document.file_name).write_bytes(document.content)
    site.desk.scan()
    return fresh.id


class Killed(BaseException):
    """The server, at this place."""


def killed(*_, **__):
    raise Killed


def test_a_draft_that_was_held_for_a_person_goes_out_by_the_decision(site):
    client = site.client("reader")
    job = held(site, site.add(CHEST))
    assert client.press(f"/drafts/{job}/decide", version=0, verb="accept").status_code == 204
    (decision,) = site.store.decisions_of(job)
    assert site.book.job(job).state is JobState.SUPERSEDED
    assert site.book.job(decision.revision_job).state is JobState.DRAFTED


def test_a_held_draft_that_was_rejected_is_not_sent_whenever_the_server_is_killed(site, monkeypatch):
    job = held(site, site.add(CHEST))
    site.book.lease("main", "another's", 9)
    real, commits = deciding.commit_documents, []

    def commit(*args, **options):
        commits.append(1)
        return real(*args, **options) if len(commits) == 1 else killed()

    with monkeypatch.context() as patched:
        patched.setattr(deciding, "commit_documents", commit)
        with pytest.raises(Killed):
            deciding.decide(site.desk, job, 0, "reader", "Doe^Jane", "reject", "INVENTED")
    assert site.store.item(job).state == "REJECTED"
    assert not site.book.lease("main", "night")
    assert send_unsent(site.desk) == 1
    (lease,) = site.book.lease("main", "night", 9)
    assert read(lease.content).CompletionFlag == "PARTIAL"


@pytest.mark.parametrize("place", ["revised", "sent"])
def test_a_revision_whose_server_was_killed_before_it_was_noted_is_no_new_draft(site, monkeypatch, place):
    job = site.add(CHEST)
    with monkeypatch.context() as patched:
        patched.setattr(site.store, place, killed)
        with pytest.raises(Killed):
            deciding.decide(site.desk, job, 0, "reader", "Doe^Jane", "accept")
    before = site.store.counts()
    desk = Desk(site.settings, site.pacs, site.drafts, site.book, site.store)  # of the next server
    assert desk.scan() == 0
    assert send_unsent(desk) == 1
    assert desk.scan() == 0
    assert site.store.counts() == before
    assert len(site.committed()) == 1


def test_one_decision_that_cannot_be_sent_keeps_no_other(site, monkeypatch):
    jobs = [site.add(CHEST), site.add(CHEST + 1)]
    real = deciding.commit_documents

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(deciding, "commit_documents", full)
        for job in jobs:
            deciding.decide(
                site.desk, job, 0, "reader", "Doe^Jane", "accept"
            )  # it is on the disk all the same
        failures = iter((full, real))
        patched.setattr(deciding, "commit_documents", lambda *a, **o: next(failures)(*a, **o))
        assert send_unsent(site.desk) == 1
    assert send_unsent(site.desk) == 1


def test_the_keeper_goes_on_whatever_hinders_it(site, monkeypatch):
    monkeypatch.setattr("mla_med.review.desk.SCAN_S", 0.01)
    sent, scans = threading.Event(), []

    def scan():
        scans.append(1)
        raise ValueError("a page that cannot be read")

    monkeypatch.setattr(site.desk, "scan", scan)
    keeper = Keeper(site.desk, lambda: sent.set() if len(scans) > 2 else None)
    keeper.start()
    assert sent.wait(20)
    keeper.stop()


def test_a_draft_that_was_looked_at_at_the_wrong_moment_is_put_on_the_worklist_later(site, monkeypatch):
    job = site.add(CHEST)
    site.store.take_off(job)
    file = site.drafts / job / "draft.json"
    content = file.read_bytes()
    file.unlink()  # the last one to be written
    assert site.desk.scan() == 0
    file.write_bytes(content)

    def unreachable(job_id: str):
        raise LedgerError("not now", code="LEDGER_UNREACHABLE")

    with monkeypatch.context() as patched:
        patched.setattr(site.book, "job", unreachable)
        assert site.desk.scan() == 0
    assert site.desk.scan() == 1
    assert site.store.item(job).state == "NEW"


def test_a_draft_of_half_the_images_is_not_decided_once_the_others_came(site):
    job, client = site.add(CHEST), site.client("reader")
    site.clock.now += 60
    more = site.book.see(made(CHEST)[1].provenance.study_uid, 500)
    assert more.id != job
    answer = client.press(f"/drafts/{job}/decide", version=0, verb="accept")
    assert (answer.status_code, "NEWER_DRAFT" in answer.text) == (422, True)
    assert site.store.item(job).state == "NEW"


def test_what_was_discarded_or_drafted_anew_leaves_the_worklist(site):
    job, client = site.add(CHEST), site.client("reader")
    assert listed(client) == [int(job, 16)]
    site.book.discard(job, "NOT_WANTED")
    site.desk.scan()
    assert listed(client) == []
    assert client.get(f"/drafts/{job}", headers=HTML).status_code == 404


def test_an_administrator_opens_a_decided_draft_again_and_the_next_revision_follows_the_last(site):
    job, client, admin = site.add(CHEST), site.client("reader"), site.client("admin")
    client.press(f"/drafts/{job}/decide", version=0, verb="accept")
    first = read(site.committed()[-1])
    assert admin.press(f"/drafts/{job}/reopen").status_code == 303
    client.press(f"/drafts/{job}/sentence", version=0, number=1, text="Looked again.")
    assert client.press(f"/drafts/{job}/decide", version=1, verb="accept", despite="yes").status_code == 204
    second = read(site.committed()[-1])
    named = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert named.ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert second.InstanceNumber > first.InstanceNumber
    assert [d.decision for d in site.store.decisions_of(job) if not d.revoked_at_s] == ["CHANGED"]


def test_without_images_the_revision_takes_the_patient_from_the_draft_itself(site):
    job, client = site.add(CHEST), site.client("reader")
    shutil.rmtree(Path(site.pacs.inbox) / job)
    page = client.get(f"/drafts/{job}", headers=HTML).text
    assert "Get them from the PACS" in page
    assert client.press(f"/drafts/{job}/decide", version=0, verb="accept").status_code == 204
    assert read(site.committed()[-1]).PatientID == "P-00000"


class Archive:
    """A PACS that has one study."""

    def __init__(self, files: list[Path]):
        self.files = files

    def count(self, study_uid: str):
        return [SeriesCount("2.25.1", "CT", len(self.files)), SeriesCount("2.25.2", "SR", 1)]

    def retrieve(self, study_uid: str, series_uid: str, write) -> None:
        assert series_uid == "2.25.1"
        for path in self.files:
            write(path.read_bytes())


def test_images_stay_until_the_decision_and_come_back_from_the_pacs(tmp_path):
    site = Site(tmp_path, ReviewSettings(images=str(tmp_path / "kept")))
    job, client = site.add(CHEST), site.client("reader")
    shutil.rmtree(Path(site.pacs.inbox) / job)  # as `pacs deliver --clear-inbox` does
    site.desk.clear_images()
    assert "not here any more" not in client.get(f"/drafts/{job}", headers=HTML).text
    client.press(f"/drafts/{job}/decide", version=0, verb="accept")
    site.desk.clear_images()
    assert list((tmp_path / "kept").iterdir()) == []
    site.desk._connect = lambda: Archive(sorted(made(CHEST)[0].iterdir())[:2])
    assert client.press(f"/drafts/{job}/fetch").status_code == 303
    assert sum(path.is_file() for path in (tmp_path / "kept" / job).rglob("*")) == 2
    assert "FETCHED" in {row["action"] for row in site.store.audit_rows(job)}


def test_images_of_which_the_fetch_was_killed_are_gone_after_a_day(tmp_path):
    site = Site(tmp_path, ReviewSettings(images=str(tmp_path / "kept")))
    left, arriving = (tmp_path / "kept" / f".{32 * digit}-1" for digit in "ab")
    for folder in (left, arriving):
        folder.mkdir(parents=True)
        (folder / "1.dcm").write_bytes(b"a patient's")
    os.utime(left, (time.time() - 90_000,) * 2)
    site.desk.clear_images()
    assert list((tmp_path / "kept").iterdir()) == [arriving]


def test_no_code_of_the_review_can_write_verified_or_final():
    folder = Path(words.__file__).parent
    source = "".join(p.read_text() for p in folder.glob("*.py"))
    assert not re.search(r"[\"'](VERIFIED|FINAL|final|COMPLETED)[\"']", source)
    assert "VerificationFlag" not in source
    assert "VerifyingObserver" not in source


# The audit


def test_every_view_and_change_is_in_the_audit_and_cannot_be_taken_out(site):
    job, client = site.add(CHEST), site.client("reader")
    client.get("/", headers=HTML)
    client.get(f"/drafts/{job}", headers=HTML)
    for _ in range(3):
        client.get(f"/drafts/{job}/evidence.json")
    client.press(f"/drafts/{job}/sentence", version=0, number=1, text="One.")
    client.press(f"/drafts/{job}/undo", version=1)
    client.press(f"/drafts/{job}/decide", version=2, verb="accept")
    rows = [(r["who"], r["action"]) for r in reversed(site.store.audit_rows(job))]
    assert rows == [("reader", action) for action in ("OPENED", "IMAGES", "CHANGED", "CHANGED", "ACCEPTED")]
    assert ("reader", "WORKLIST") in [(r["who"], r["action"]) for r in site.store.audit_rows()]
    engine = sa.create_engine(site.url)
    for statement in ("UPDATE review_audit SET who = 'x'", "DELETE FROM review_audit"):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), engine.begin() as c:
            c.execute(sa.text(statement))
    engine.dispose()


def test_a_line_that_somebody_else_failed_to_write_is_written_or_said_to_be_lost(site, monkeypatch):
    real, told = site.store._write, {}
    failures = iter([RuntimeError("whatever it is")])

    def write():
        for failure in failures:
            raise failure
        return real()

    def log(who: str) -> None:
        try:
            site.store.log(who, "WORKLIST")
            told[who] = True
        except RuntimeError:
            told[who] = False

    monkeypatch.setattr(site.store, "_write", write)
    threads = [threading.Thread(target=log, args=(who,)) for who in ("reader", "other", "admin")]
    with site.store._flushing:  # all of them wait for one
        for thread in threads:
            thread.start()
        while len(site.store._waiting) < len(threads):
            time.sleep(0.01)
    for thread in threads:
        thread.join(30)
    assert sorted(told.values()) == [False, True, True]
    written = [row["who"] for row in site.store.audit_rows() if row["action"] == "WORKLIST"]
    assert sorted(written) == sorted(who for who, is_written in told.items() if is_written)


def test_reports_and_remarks_stand_sealed_in_the_database(site):
    job, client = site.add(CHEST), site.client("reader")
    client.press(f"/drafts/{job}/sentence", version=0, number=1, text="Words of a report.")
    assert b"Words of a report" not in rows_in(site.url)
    assert site.store.version(job, 1).content.find(b"Words of a report") > 0


# Killed


def test_a_server_that_is_killed_loses_no_saved_change(tmp_path):
    """A real uvicorn, killed with SIGKILL right after it answered."""
    site = Site(tmp_path, url=f"sqlite:///{tmp_path / 'ledger.db'}")
    job = site.add(CHEST)
    (tmp_path / "site.key").write_bytes(b"x" * 32)
    (tmp_path / "site.key").chmod(0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = tmp_path / "mla-med.toml"
    settings.write_text(
        f'[pacs]\nname = "main"\ndicomweb_url = "http://127.0.0.1:9/d"\nledger_url = "{site.url}"\n'
        f'key_file = "{tmp_path / "site.key"}"\ninbox = "{site.pacs.inbox}"\n'
        f'[night]\nout = "{site.drafts}"\n[review]\nport = {port}\n'
    )
    import httpx

    server = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from mla_med.review.run import serve; "
            "serve(Path(sys.argv[1]))",
            str(settings),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20)
        for _ in range(900):  # at once, but on a machine that does much else
            try:
                page = client.get("/sign-in").text
                break
            except httpx.TransportError:
                time.sleep(0.1)
        token = page.split('name="csrf" value="')[1].split('"')[0]
        client.post("/sign-in", data={"name": "reader", "password": PASSWORD, "csrf": token})
        csrf = client.get("/", headers=HTML).text.split('"X-CSRF-Token": "')[1].split('"')[0]
        for version in range(3):
            answer = client.post(
                f"/drafts/{job}/sentence",
                data={"version": version, "number": version + 1, "text": f"Saved {version}."},
                headers={"X-CSRF-Token": csrf},
            )
            assert answer.status_code == 200
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait(10)
    now = site.desk.sheet(job).now.report
    assert [s.text for s in now.sentences[:3]] == ["Saved 0.", "Saved 1.", "Saved 2."]
