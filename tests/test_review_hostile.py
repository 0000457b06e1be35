"""The page under attack and in a hurry, and its store on PostgreSQL."""

from __future__ import annotations

import asyncio
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

pytest.importorskip("fastapi", reason="fastapi is not installed (the extra review)")
pytest.importorskip("argon2", reason="argon2-cffi is not installed (the extra review)")

from ledgers import new_ledger_url
from review_site import SECRET, Clock, Site

from mla_med.errors import LedgerError
from mla_med.review.guard import Guard
from mla_med.review.nouns import Filter, Item, StaleVersion
from mla_med.review.settings import ReviewSettings
from mla_med.review.store import Store

HTML = {"accept": "text/html"}
CHEST = 0


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


# What nobody asked for


def test_numbers_that_no_database_holds_are_no_error_of_the_server(site):
    job = site.add(CHEST)
    reader, admin = site.client("reader"), site.client("admin")
    large = "9" * 30
    for path in (
        f"/?after={large}_1_{job}",
        f"/?after=1_{large}_{job}",
        f"/?after=1_nan_{job}",
        f"/?rank={large}",
        f"/drafts/{job}/slice/0/{large}.png",
        f"/drafts/{job}/slice/-1/0.png",
        f"/drafts/{job}/volume/{large}.nii",
        "/?q=%00",
        "/?q=%F0%9F%92%A9%ED%A0%80",
    ):
        assert reader.get(path, headers=HTML).status_code < 500, path
    for path in (f"/audit?before={large}", "/audit?before=-1", "/audit?who=%00", f"/drift?days={large}"):
        assert admin.get(path, headers=HTML).status_code < 500, path
    assert admin.press("/users/disable", name="\0").status_code == 422


def test_versions_that_never_were_are_a_conflict_and_no_error_of_the_server(site):
    job, client = site.add(CHEST), site.client("reader")
    refusing = {"verb": "reject", "reason": "OTHER"}
    posts = (("sentence", {"number": 1, "text": "x"}), ("undo", {}), ("decide", refusing))
    for version in ("-5", "7", "9" * 30):
        for path, fields in posts:
            answer = client.press(f"/drafts/{job}/{path}", version=version, **fields)
            assert answer.status_code == 409, (version, path)
    assert site.desk.sheet(job).head == 0


def test_sizes_and_counts_that_nobody_has_are_not_saved(site):
    job, client = site.add(CHEST), site.client("reader")
    for size in ("nan", "inf", "-5", "1e400", "1e300", "0", "0.01", "９" * 400):
        fields = {"code": "thyroid_nodule", "presence": "present", "place": "left -", "size_mm": size}
        answer = client.press(f"/drafts/{job}/add", version=0, **fields)
        assert answer.status_code == 422, size
    assert site.desk.sheet(job).head == 0


def test_a_body_in_chunks_is_refused_before_it_is_read(site):
    read = []

    async def app(scope, receive, send):
        read.append(await receive())

    async def ask() -> int:
        said = []

        async def send(message):
            said.append(message)

        async def receive():
            return {"type": "http.request", "body": b"x" * 10**6, "more_body": True}

        headers = [(b"host", b"127.0.0.1"), (b"content-length", b"1"), (b"transfer-encoding", b"chunked")]
        scope = {"type": "http", "method": "POST", "path": "/sign-in", "headers": headers}
        await Guard(app, ReviewSettings())(scope, receive, send)
        return said[0]["status"]

    assert asyncio.run(ask()) == 411
    assert read == []


# What must be noted


def test_a_report_that_is_read_by_its_pieces_is_in_the_audit_too(site):
    job, client = site.add(CHEST), site.client("reader")
    for _ in range(2):
        client.get(f"/drafts/{job}/report")
        client.get(f"/drafts/{job}/versions", headers=HTML)
    assert [row["action"] for row in site.store.audit_rows(job)] == ["READ"]
    other = site.client("other")
    other.get(f"/drafts/{job}", headers=HTML)
    other.get(f"/drafts/{job}/report")
    assert [row["action"] for row in site.store.audit_rows(job)] == ["OPENED", "READ"]


def test_who_was_found_by_a_name_is_in_the_audit_by_job(site):
    job = site.add(CHEST)
    name = site.desk.patient(job).name.split(",")[0]
    site.client("reader").press("/find", who=name)
    assert [row["action"] for row in site.store.audit_rows(job)] == ["FOUND"]


def test_a_worklist_that_nobody_sits_before_signs_out(site):
    client = site.client("reader")
    text = client.get("/", headers=HTML).text
    address = re.search(r'hx-get="([^"]+)"', text)[1].replace("&amp;", "&")
    for _ in range(19):
        site.clock.now += 60
        assert client.get(address, headers={"HX-Request": "true"}).status_code in (200, 204)
    site.clock.now += 120
    answer = client.get(address, headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["HX-Redirect"]) == (401, "/sign-in")


# In a hurry


def test_what_was_typed_last_is_not_accepted_before_the_objections_to_it_were_seen(site):
    job, client = site.add(CHEST), site.client("reader")
    client.press(f"/drafts/{job}/sentence", version=0, number=1, text="Something odd.")
    answer = client.press(f"/drafts/{job}/decide", version=1, verb="accept")
    assert (answer.status_code, "OBJECTIONS" in answer.text) == (422, True)
    assert site.store.item(job).state == "OPEN"
    assert client.press(f"/drafts/{job}/decide", version=1, verb="accept", despite="yes").status_code == 204


def test_a_draft_is_decided_once_however_often_it_is_pressed(site):
    job = site.add(CHEST)
    clients = [site.client("reader"), site.client("other")]
    answers: list[int] = []

    def press(client):
        answers.append(
            client.press(f"/drafts/{job}/decide", version=0, verb="accept", despite="yes").status_code
        )

    threads = [threading.Thread(target=press, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == [204, 422]
    assert len(site.store.decisions_of(job)) == 1


def test_images_that_are_here_are_not_asked_for_again(site):
    job, client = site.add(CHEST), site.client("reader")
    site.desk._connect = lambda: pytest.fail("the PACS was asked")
    assert client.press(f"/drafts/{job}/fetch").status_code == 303
    assert "FETCHED" not in [row["action"] for row in site.store.audit_rows(job)]


# On PostgreSQL


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path: Path) -> Store:
    made = Store.open(new_ledger_url(request.param, tmp_path), SECRET, Clock())
    item = Item("a" * 32, "NEW", 1, "chest_ct", "en", "Maker", "F 60-79", "ab" * 32, "", 1.0, 2.0)
    made.put(item, {"lung_nodule": "present"})
    yield made
    made.close()


def at_once(*calls) -> list[object]:
    """What each gave, or the error that it raised."""
    gave: list[object] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def run(n: int) -> None:
        start.wait(20)
        try:
            gave[n] = calls[n]()
        except (StaleVersion, LedgerError) as error:
            gave[n] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return gave


def test_of_changes_made_at_once_one_is_kept_and_the_others_hear_of_it(store):
    job = "a" * 32
    calls = [lambda n=n: store.change(job, 0, f"r{n}", "sentence 1", b"%d" % n) for n in range(6)]
    gave = at_once(*calls)
    assert gave.count(1) == 1
    assert sum(isinstance(one, StaleVersion) and one.head == 1 for one in gave) == 5
    assert store.version(job, 1).content == b"%d" % gave.index(1)
    assert store.item(job).head == 1


def test_of_decisions_made_at_once_one_stands(store):
    job = "a" * 32
    calls = [lambda n=n: store.decide(job, 0, f"r{n}", "ACCEPTED", "", b"{}", []) for n in range(4)]
    gave = at_once(*calls)
    assert sum(isinstance(one, str) for one in gave) == 1
    assert {one.code for one in gave if isinstance(one, LedgerError)} == {"DECIDED"}
    assert len(store.decisions_of(job)) == 1


def test_the_audit_can_only_be_added_to(store):
    store.log("reader", "OPENED", "a" * 32)
    for statement in (
        "UPDATE review_audit SET who = 'x'",
        "DELETE FROM review_audit",
        *(["TRUNCATE review_audit"] if store._engine.dialect.name == "postgresql" else []),
    ):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), store._engine.begin() as c:
            c.execute(sa.text(statement))
    assert [row["action"] for row in store.audit_rows()][:1] == ["OPENED"]


def test_what_many_readers_do_at_once_is_all_in_the_audit(store):
    at_once(*[lambda n=n: store.log(f"r{n}", "NAMES") for n in range(12)])
    names = {row["who"] for row in store.audit_rows() if row["action"] == "NAMES"}
    assert names == {f"r{n}" for n in range(12)}


def test_filters_and_pages_are_the_same_on_every_database(store):
    first = store.item("a" * 32)
    for n in range(5):
        store.put(replace(first, job_id=f"{n:032x}", rank=n % 2, scanner="Ödman 100%_x"), {})
    seen, after = [], None
    while page := store.page(Filter(), after, 2):
        seen += [item.job_id for item in page]
        after = page[-1].key
    assert len(seen) == len(set(seen)) == 6
    assert [item.rank for item in map(store.item, seen)] == sorted(
        item.rank for item in map(store.item, seen)
    )
    assert len(store.page(Filter(scanner="100%_"), None, 10)) == 5
    assert len(store.page(Filter(codes=("lung_nodule",)), None, 10)) == 1
