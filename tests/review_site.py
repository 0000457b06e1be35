"""A site for tests of the review: drafts of phantoms in its folders, committed to its ledger; no network, no
PACS, no model."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import phantom_drafts
import uvicorn
from fastapi import FastAPI
from ledgers import default_kind, new_ledger_url
from orthanc import free_port
from pydicom import dcmread
from starlette.testclient import TestClient

from mla_med.documents.write import Document, write_documents
from mla_med.ledger.ledger import Ledger
from mla_med.ledger.nouns import DocumentState
from mla_med.pacs.deliver import commit_documents
from mla_med.pacs.settings import PacsSettings
from mla_med.review.app import create_app
from mla_med.review.settings import ReviewSettings
from mla_med.review.sign_in import check_new_user
from mla_med.review.store import Store
from mla_med.types import Draft

SECRET = b"x" * 32
PASSWORD = "a long one for tests"
BASE = "http://127.0.0.1:8471"


@dataclass
class Clock:
    now: float = 1_780_000_000.0

    def __call__(self) -> float:
        self.now += 1e-3  # no two things happen at once
        return self.now


_FOLDERS: list[TemporaryDirectory] = []
"""Removed when the process ends."""


@cache
def _secret() -> str:
    return check_new_user("reader", "Doe^Jane", "reader", PASSWORD)


@cache
def made(seed: int) -> tuple[Path, Draft]:
    """A phantom's draft beside its images; written once."""
    _FOLDERS.append(TemporaryDirectory(prefix="review-"))
    folder = Path(_FOLDERS[-1].name)
    return folder, phantom_drafts.phantom_draft(seed, folder)


_WRITTEN: dict[int, tuple[Document, ...]] = {}


def _documents(draft: Draft, source: Path, seed: int, other: bool) -> tuple[Document, ...]:
    """Written once of each phantom as it is."""
    if other or draft is not made(seed)[1]:
        return write_documents(draft, formats=("sr", "json"), source=source)
    if seed not in _WRITTEN:
        _WRITTEN[seed] = write_documents(draft, formats=("sr", "json"), source=source)
    return _WRITTEN[seed]


@dataclass
class Site:
    folder: Path
    settings: ReviewSettings = field(default_factory=ReviewSettings)
    clock: Clock = field(default_factory=Clock)
    url: str = ""

    def __post_init__(self):
        self.url = self.url or new_ledger_url(default_kind(), self.folder)
        self.pacs = PacsSettings(
            name="main",
            dicomweb_url="http://127.0.0.1:9/dicom-web",
            ledger_url=self.url,
            key_file=str(self.folder / "site.key"),
            inbox=str(self.folder / "inbox"),
            check_with_dciodvfy="off",
        )
        self.drafts = self.folder / "drafts"
        self.book = Ledger.open(self.url, SECRET, self.clock)
        self.store = Store.open(self.url, SECRET, self.clock)
        for name, display, role in (("reader", "Doe^Jane", "reader"), ("admin", "Roe^Ann", "admin")):
            self.store.add_user(name, display, role, _secret())
        self.store.add_user("other", "Poe^Kim", "reader", _secret())
        self.app: FastAPI = create_app(
            self.settings, self.pacs, self.drafts, self.book, self.store, keep=False
        )
        self.desk = self.app.state.front.desk

    def add(self, seed: int, draft: Draft | None = None, **header: str) -> str:
        """A drafted study: the job's id. `header`: what its images say instead."""
        images, known = made(seed)
        draft = draft or known
        job = self.book.see(draft.provenance.study_uid, 1)
        self.book.ready(job.id, 1)
        inbox = Path(self.pacs.inbox) / job.id
        inbox.mkdir(parents=True)
        for path in sorted(p for p in images.iterdir() if p.is_file())[:2]:
            image = dcmread(path)
            for keyword, value in header.items():
                setattr(image, keyword, value)
            image.save_as(inbox / path.name, enforce_file_format=True)
        documents = _documents(draft, next(iter(sorted(inbox.iterdir()))), seed, bool(header))
        folder = self.drafts / job.id
        folder.mkdir(parents=True)
        for document in documents:
            (folder / document.file_name).write_bytes(document.content)
        commit_documents(
            self.book,
            [d.content for d in documents if d.reference],
            "main",
            job_id=job.id,
            validate="off",
        )
        self.desk.scan()
        return job.id

    def client(self, name: str = "", **options) -> Client:
        """Of a reader who has signed in, or of nobody."""
        client = Client(self.app, base_url=BASE, follow_redirects=False, **options)
        if name:
            user = self.store.user(name)
            secret = self.store.begin_session(name, user.display, user.role, "password", "en")
            client.cookies.set("mla_med", secret)
            client.csrf = self.store.session(secret, 60, 60).csrf
        return client

    def committed(self) -> list[bytes]:
        """Every document that is delivered or will be, the oldest first."""
        jobs = reversed(self.book.list_jobs(limit=100))
        entries = [entry for job in jobs for entry in self.book.documents(job.id)]
        return [self.book.content(one.id) for one in entries if one.state != DocumentState.SUPERSEDED]


class Client(TestClient):
    """A reader's browser."""

    csrf = ""

    def enter(self, name: str, password: str = PASSWORD, **headers: str):
        """By the form."""
        token = self.get("/sign-in").text.split('name="csrf" value="')[1].split('"')[0]
        fields = {"name": name, "password": password, "csrf": token}
        return self.post("/sign-in", data=fields, headers=headers)

    def press(self, path: str, **fields):
        """As htmx does."""
        return self.post(path, data=fields, headers={"X-CSRF-Token": self.csrf, "HX-Request": "true"})


@contextmanager
def served(site: Site) -> Iterator[str]:
    """The page behind a real server on loopback; its address."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(site.app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
