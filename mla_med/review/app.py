"""The page: sign-in, worklist, draft, decision, and for administrators drift, readers and audit.

Thin: each route asks the desk or the store, and a template shows what it said. Whoever is not signed in sees
the sign-in page with 401, whatever the address. Every view of a draft and every change is in the audit
before it is answered.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import jinja2
from fastapi import Depends, FastAPI, Form, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from itsdangerous import BadSignature, URLSafeTimedSerializer
from markupsafe import Markup
from starlette.exceptions import HTTPException

from mla_med.documents.text import sentence_findings
from mla_med.errors import MlaMedError, ReportError
from mla_med.ledger.ledger import Ledger
from mla_med.logs import log
from mla_med.pacs.settings import PacsSettings
from mla_med.report.schema import SCHEMAS, schema_of
from mla_med.review import editing, words
from mla_med.review.deciding import REASONS, decide, send_unsent
from mla_med.review.desk import JOB_ID, Desk, Keeper, NoDraft, Sheet
from mla_med.review.guard import Guard
from mla_med.review.learning import account_of
from mla_med.review.patients import inert
from mla_med.review.settings import ReviewSettings
from mla_med.review.sign_in import ADMIN, OpenId, Person, SignInError, by_password, by_proxy
from mla_med.review.store import DECIDED_STATES, OPEN_STATES, Filter, Item, Session, StaleVersion, Store
from mla_med.types import Change, Draft, Presence

HERE = Path(__file__).parent
PAGE = 50
"""Rows of the worklist."""
ROWS_S, KNOWN_PAGES = 10, 64
"""How long rows are shown again to others as they are (their ages are minutes old at best), and how many."""
OIDC_S = 600
"""How long a sign-in elsewhere may take."""
WITHOUT_SIGN_IN = ("/static", "/sign-in", "/sign-in/oidc", "/sign-in/oidc/back")
"""Every other address wants a reader."""
STATE_CHOICES = {
    "open": OPEN_STATES,
    "new": ("NEW",),
    "decided": DECIDED_STATES,
    "accepted": ("ACCEPTED",),
    "changed": ("CHANGED",),
    "rejected": ("REJECTED",),
    "all": (),
}
RANKS = ("Critical", "Findings", "No findings", "Refused")
CRITICAL_CODES = {code for schema in SCHEMAS.values() for code, kind in schema.items() if kind.critical}
AGES = {"day": (0.0, 86_400.0), "days": (86_400.0, 3 * 86_400.0), "old": (3 * 86_400.0, 0.0)}


TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that turn what follows them (Unicode UAX 9): on no page, wherever they came from."""


class NotSignedIn(Exception):
    pass


class NotAllowed(Exception):
    """Signed in, and may not; or a form that is not ours."""

    def __init__(self, code: str):
        super().__init__(code)
        self.code = code


def app_of(settings_file: Path) -> FastAPI:
    """From a site's settings."""
    from mla_med.night.settings import read_night
    from mla_med.pacs.settings import read_ledger_secret, read_settings
    from mla_med.review.settings import read_oidc_secret, read_review

    pacs, review = read_settings(settings_file), read_review(settings_file)
    secret = read_ledger_secret(pacs)
    book = Ledger.open(pacs.ledger_url, secret)
    store = Store.open(pacs.ledger_url, secret)
    openid = OpenId(review, read_oidc_secret(review)) if review.oidc_issuer else None
    return create_app(review, pacs, Path(read_night(settings_file).out), book, store, openid)


def create_app(
    settings: ReviewSettings,
    pacs: PacsSettings,
    drafts: Path,
    book: Ledger,
    store: Store,
    openid: OpenId | None = None,
    *,
    keep: bool = True,
) -> FastAPI:
    """`keep`: new drafts come onto the worklist by themselves, and unsent decisions go out."""
    desk = Desk(settings, pacs, drafts, book, store)
    pages = Pages(settings, desk, store, openid)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        keeper = Keeper(desk, lambda: send_unsent(desk))
        desk.scan()
        if keep:
            keeper.start()
        yield
        if keep:
            keeper.stop()

    # no documentation pages: they load scripts from another host
    app = FastAPI(title="mla_med", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.desk, app.state.store = desk, store
    app.add_middleware(Guard, settings=settings)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    pages.mount(app)
    return app


class Pages:
    def __init__(self, settings: ReviewSettings, desk: Desk, store: Store, openid: OpenId | None):
        self.settings = settings
        self.desk = desk
        self.store = store
        self.openid = openid
        self.cookie = "__Host-mla_med" if settings.is_encrypted else "mla_med"
        self._signer = URLSafeTimedSerializer(store.derive("cookies"), salt="review")
        self._form_secret = store.derive("forms")
        self._templates = _templates()
        self._seen: dict[tuple[str, str], None] = {}
        self._known_rows: dict[tuple[str, str, str, int], Markup] = {}

    # Who asks

    def reader(self, request: Request) -> Session:
        """Whoever is signed in; a proxy that is named signs in by itself."""
        secret = request.cookies.get(self.cookie, "")
        session = self._session(secret) if secret else None
        if self.settings.proxy_user_header:
            person = by_proxy(self.settings, _address(request), request.headers)
            if session is not None and session.method == "proxy" and _is_other(person, session):
                session = None  # somebody else sits there now, or has other rights
            if session is None and person is not None and (person := self._known(person)) is not None:
                secret = self._begin(person, _language(request))
                request.state.new_session = secret
                session = self._session(secret)
        if session is None:
            raise NotSignedIn
        request.state.session = session
        return session

    def _session(self, secret: str) -> Session | None:
        return self.store.session(secret, self.settings.idle_min * 60, self.settings.session_h * 3600)

    def _known(self, person: Person) -> Person | None:
        """What the site's own list says of somebody who signed in elsewhere: how he is named, and that he may
        not come in."""
        user = self.store.user(person.name)
        if user is None:
            return person
        if user.disabled:
            self.store.log(person.name, "SIGN_IN_FAILED", detail="disabled")
            return None
        return Person(person.name, user.display or person.display, person.role, person.method)

    def _begin(self, person: Person, language: str) -> str:
        return self.store.begin_session(person.name, person.display, person.role, person.method, language)

    def admin(self, request: Request) -> Session:
        session = self.reader(request)
        if session.role != ADMIN:
            self.store.log(session.name, "FORBIDDEN", detail=request.url.path[:64])
            raise NotAllowed("ROLE")
        return session

    def changing(
        self,
        request: Request,
        csrf: Annotated[str, Form()] = "",
        x_csrf_token: Annotated[str, Header()] = "",
    ) -> Session:
        """A form of ours, sent by whoever it was made for."""
        session = self.reader(request)
        if not hmac.compare_digest((x_csrf_token or csrf).encode(), session.csrf.encode()):
            self.store.log(session.name, "FORGED", detail=request.url.path[:64])
            raise NotAllowed("CSRF")
        return session

    def admin_changing(
        self,
        request: Request,
        csrf: Annotated[str, Form()] = "",
        x_csrf_token: Annotated[str, Header()] = "",
    ) -> Session:
        session = self.changing(request, csrf, x_csrf_token)
        return self.admin(request) if session.role != ADMIN else session

    # Pages

    def show(self, name: str, request: Request, status: int = 200, **values: Any) -> HTMLResponse:
        session: Session | None = getattr(request.state, "session", None)
        language = session.language if session else _language(request)
        text = self._templates.get_template(name).render(session=session, **self._around(language), **values)
        response = HTMLResponse(text if text.isascii() else TURNING.sub("", text), status)
        if secret := getattr(request.state, "new_session", ""):
            self._keep(response, secret)
        return response

    def _around(self, language: str) -> dict[str, Any]:
        """What every template needs."""
        return {
            "t": lambda english: words.say(english, language),
            "language": language,
            "settings": self.settings,
            "words": words,
            "now": self.store.clock(),
        }

    def _keep(self, response: Response, secret: str) -> None:
        response.set_cookie(
            self.cookie,
            secret,
            path="/",
            httponly=True,
            samesite="strict",
            secure=self.settings.is_encrypted,
        )

    # Signing in

    def sign_in_page(self, request: Request, status: int = 200, problem: str = "") -> HTMLResponse:
        """Its form belongs to this browser: somebody else's name must not be signed in here unseen."""
        form = request.cookies.get("mla_med_form") or secrets.token_urlsafe(24)
        response = self.show(
            "sign_in.html",
            request,
            status,
            problem=problem,
            form=self._form_token(form),
            has_oidc=self.openid is not None,
        )
        response.set_cookie(
            "mla_med_form",
            form,
            path="/",
            httponly=True,
            samesite="strict",
            secure=self.settings.is_encrypted,
        )
        return response

    def _form_token(self, form: str) -> str:
        return hmac.new(self._form_secret, form.encode(), hashlib.sha256).hexdigest()

    def sign_in(
        self,
        request: Request,
        name: Annotated[str, Form(max_length=256)] = "",
        password: Annotated[str, Form(max_length=4096)] = "",
        csrf: Annotated[str, Form()] = "",
    ) -> Response:
        form = request.cookies.get("mla_med_form", "")
        if not form or not hmac.compare_digest(csrf.encode(), self._form_token(form).encode()):
            return self.sign_in_page(request, 403, "The form has expired; sign in again.")
        try:
            person = by_password(self.store, name.strip(), password)
        except SignInError as error:
            return self.sign_in_page(request, 429 if error.code == "SIGN_IN_WAIT" else 401, str(error))
        response = RedirectResponse("/", 303)
        self._keep(response, self._begin(person, _language(request)))
        response.delete_cookie("mla_med_form", path="/")
        return response

    def oidc_start(self, request: Request) -> Response:
        if self.openid is None:
            raise HTTPException(404)
        try:
            address, kept = self.openid.start()
        except SignInError as error:
            return self.sign_in_page(request, 502, str(error))
        response = RedirectResponse(address, 303)
        # lax: it has to come along when the provider sends the browser back
        response.set_cookie(
            "mla_med_oidc",
            self._signer.dumps(kept),
            max_age=OIDC_S,
            path="/sign-in/oidc",
            httponly=True,
            samesite="lax",
            secure=self.settings.is_encrypted,
        )
        return response

    def oidc_back(self, request: Request) -> Response:
        if self.openid is None:
            raise HTTPException(404)
        try:
            kept = self._signer.loads(request.cookies.get("mla_med_oidc", ""), max_age=OIDC_S)
            person = self._known(self.openid.finish(request.query_params, kept))
            if person is None:
                raise SignInError("You are not among the readers of this page.")
        except BadSignature:
            return self.sign_in_page(request, 403, "The form has expired; sign in again.")
        except SignInError as error:
            self.store.log("?", "SIGN_IN_FAILED", detail="oidc")
            return self.sign_in_page(request, 401, str(error))
        # a page and no redirect: after one from elsewhere the browser would not send the strict cookie along
        response = self.show("signed_in.html", request)
        self._keep(response, self._begin(person, _language(request)))
        response.delete_cookie("mla_med_oidc", path="/sign-in/oidc")
        return response

    def sign_out(self, request: Request, session: Session) -> Response:
        self.store.end_session(session)
        response = RedirectResponse("/sign-in", 303)
        response.delete_cookie(self.cookie, path="/")
        return response

    # Worklist

    def worklist(self, request: Request, session: Session, seen: str = "") -> Response:
        """The page, or its rows alone for htmx; 204 where nothing has changed since `seen`."""
        stamp = self.store.stamp()
        is_part = request.headers.get("HX-Request") == "true"
        if is_part and seen == stamp:
            return Response(status_code=204)
        query = dict(request.query_params)
        wanted, after = filter_of(query), _after(query.get("after", ""))
        items = self.store.page(wanted, after, PAGE + 1)
        more, items = len(items) > PAGE, items[:PAGE]
        kept = {k: query[k] for k in ("state", "examination", "rank", "age", "q") if query.get(k)}
        values: dict[str, Any] = {
            "items": items,
            "stamp": stamp,
            "ranks": RANKS,
            "query": kept,
            "here": urlencode(kept | ({"after": query["after"]} if after else {})),
            "start": urlencode(kept),
            "later": urlencode(kept | {"after": _key(items[-1])}) if more else "",
            "is_first": after is None,
            "schemas": SCHEMAS,
            "critical": CRITICAL_CODES,
        }
        values["rows"] = self._rows(session.language, values)
        if is_part:
            return self.show("part.html", request, **values)
        self.store.log(session.name, "WORKLIST", detail=",".join(kept)[:64])
        counts = self.store.counts()
        return self.show(
            "worklist.html", request, counts=counts, states=list(STATE_CHOICES), ages=list(AGES), **values
        )

    def _rows(self, language: str, values: dict[str, Any]) -> Markup:
        """The same for everybody who looks at the same page within a few seconds; whose the rows are is not
        in them."""
        key = (language, values["here"], values["stamp"], int(self.store.clock() // ROWS_S))
        if (text := self._known_rows.get(key)) is None:
            template = self._templates.get_template("rows.html")
            present = self.store.present_codes([item.job_id for item in values["items"]])
            text = Markup(template.render(present=present, **self._around(language), **values))
            if len(self._known_rows) >= KNOWN_PAGES:
                self._known_rows.clear()
            self._known_rows[key] = text
        return text

    def names(self, request: Request, session: Session, ids: str) -> Response:
        """Whose the rows are, read now."""
        asked = [one for one in ids.split(",") if JOB_ID.fullmatch(one)][:PAGE]
        if not self.settings.names_on_worklist:
            asked = []
        patients = {one: self.desk.patient(one) for one in asked if self.store.item(one)}
        self.store.log(session.name, "NAMES", detail=f"{len(patients)} rows")
        return self.show("names.html", request, patients=patients)

    # A draft

    def draft(self, request: Request, session: Session, draft_id: str) -> Response:
        self.desk.sheet(draft_id)
        self.store.open_draft(draft_id, session.name)
        return self._draft_page(request, session, draft_id)

    def _draft_page(
        self, request: Request, session: Session, draft_id: str, status: int = 200, problem: str = ""
    ) -> Response:
        sheet = self.desk.sheet(draft_id)
        made = self.store.decisions_of(draft_id)
        return self.show(
            "draft.html",
            request,
            status,
            patient=self.desk.patient(draft_id),
            has_images=self.desk.images_of(draft_id) is not None,
            decisions=[d for d in made if not d.revoked_at_s],
            reasons=REASONS,
            problem=problem,
            is_admin=session.role == ADMIN,
            **self._report(sheet),
        )

    def _report(self, sheet: Sheet) -> dict[str, Any]:
        """What the report's part of a page needs."""
        now = sheet.now
        report = now.report
        numbered = list(enumerate(report.findings, start=1)) if report else []
        return {
            "sheet": sheet,
            "draft": sheet.draft,
            "report": report,
            "schema": schema_of(report.examination) if report else {},
            "complaints": now.complaints,
            **_stated(now),
            "Presence": Presence,
            "changes": list(Change),
            "is_open": sheet.item.state in OPEN_STATES,
            "became": _became(sheet),
            "shown": [(n, f) for n, f in numbered if f.presence is not Presence.ABSENT],
            "absent": [(n, f) for n, f in numbered if f.presence is Presence.ABSENT],
            "stated": {f.code for _, f in numbered},
        }

    def evidence(self, request: Request, session: Session, draft_id: str) -> Response:
        from mla_med.review.images import evidence_of

        sheet = self.desk.sheet(draft_id)
        self._log_images(session, draft_id)
        data = evidence_of(sheet.now, session.language, f"/drafts/{draft_id}")
        content = json.dumps(data, ensure_ascii=False, allow_nan=False)
        return Response(TURNING.sub("", content), media_type="application/json")

    def image_reader(self, request: Request) -> Session:
        """Of the addresses of images: one line of the audit a session and draft, not one a slice."""
        session = self.reader(request)
        draft_id = str(request.path_params.get("draft_id", ""))
        if not JOB_ID.fullmatch(draft_id) or self.store.item(draft_id) is None:
            raise NoDraft("There is no such draft.")
        self._log_images(session, draft_id)
        return session

    def _log_images(self, session: Session, draft_id: str) -> None:
        key = (session.token, draft_id)
        if key not in self._seen:
            self.store.log(session.name, "IMAGES", draft_id)
            if len(self._seen) > 10_000:
                self._seen.clear()
            self._seen[key] = None

    # Changes of it

    def _changed(self, request: Request, sheet: Sheet, part: str = "report.html", what: str = "") -> Response:
        response = self.show(part, request, what=what, **self._report(sheet))
        response.headers["HX-Trigger-After-Settle"] = "review:changed"
        return response

    def finding(
        self,
        request: Request,
        session: Session,
        draft_id: str,
        version: int,
        number: int,
        code: str,
        fields: dict,
    ) -> Response:
        def do(edited: editing.Edited) -> editing.Edited:
            editing.check_line(edited, number, code)
            new = editing.finding_from(code, fields, edited.report.examination)
            return editing.change_finding(edited, number, new)

        return self._changed(
            request, self.desk.change(draft_id, version, session.name, f"finding {number} {code}", do)
        )

    def add(
        self, request: Request, session: Session, draft_id: str, version: int, code: str, fields: dict
    ) -> Response:
        def do(edited: editing.Edited) -> editing.Edited:
            new = editing.finding_from(code, fields, edited.report.examination)
            return editing.add_finding(edited, new)

        return self._changed(request, self.desk.change(draft_id, version, session.name, f"add {code}", do))

    def remove(
        self, request: Request, session: Session, draft_id: str, version: int, number: int, code: str
    ) -> Response:
        def do(edited: editing.Edited) -> editing.Edited:
            editing.check_line(edited, number, code)
            return editing.remove_finding(edited, number)

        sheet = self.desk.change(draft_id, version, session.name, f"remove {code}", do)
        return self._changed(request, sheet)

    def sentence(
        self, request: Request, session: Session, draft_id: str, version: int, number: int, text: str
    ) -> Response:
        """0: a new sentence; -1: a new one of the impression. A sentence under her hands is not put anew:
        what it changes elsewhere is."""

        def do(edited: editing.Edited) -> editing.Edited:
            if number <= 0:
                return editing.add_sentence(edited, text, impression=number < 0)
            return editing.change_sentence(edited, number, text)

        before = self.desk.sheet(draft_id).now.report
        sheet = self.desk.change(draft_id, version, session.name, f"sentence {number}", do)
        after = sheet.now.report
        assert before is not None
        assert after is not None
        in_findings = 0 < number <= len(before.sentences)
        same = number > 0 and len(before.sentences) == len(after.sentences)
        if not same or not (in_findings or len(before.impression) == len(after.impression)):
            response = self._changed(request, sheet)
            response.headers["HX-Retarget"], response.headers["HX-Reswap"] = "#report", "outerHTML"
            return response
        what = "sentences" if in_findings else "impression"
        return self._changed(request, sheet, part="around.html", what=what)

    def undo(self, request: Request, session: Session, draft_id: str, version: int) -> Response:
        return self._changed(request, self.desk.undo(draft_id, version, session.name))

    def report_language(
        self, request: Request, session: Session, draft_id: str, version: int, language: str
    ) -> Response:
        if language not in words.LANGUAGES:
            raise HTTPException(422)
        return self._changed(
            request,
            self.desk.change(
                draft_id,
                version,
                session.name,
                f"language {language}",
                lambda edited: editing.change_language(edited, language),
            ),
        )

    def decide(
        self,
        request: Request,
        session: Session,
        draft_id: str,
        version: int,
        verb: str,
        reason: str,
        remark: str,
    ) -> Response:
        remark = editing.clean_text(remark)
        decide(self.desk, draft_id, version, session.name, session.display, verb, reason, remark)
        item = self.store.item(draft_id)
        following = self.store.next_after(item, Filter()) if item else None
        address = f"/drafts/{following}" if following else "/"
        if request.headers.get("HX-Request") == "true":
            return Response(status_code=204, headers={"HX-Redirect": address})
        return RedirectResponse(address, 303)

    def reopen(self, request: Request, session: Session, draft_id: str) -> Response:
        self.desk.sheet(draft_id)
        self.store.reopen(draft_id, session.name)
        return RedirectResponse(f"/drafts/{draft_id}", 303)

    def fetch(self, request: Request, session: Session, draft_id: str) -> Response:
        self.desk.sheet(draft_id)
        self.store.log(session.name, "FETCHED", draft_id)
        self.desk.fetch_images(draft_id)
        return RedirectResponse(f"/drafts/{draft_id}", 303)

    def versions(self, request: Request, session: Session, draft_id: str) -> Response:
        """Who changed what."""
        self.desk.sheet(draft_id)
        rows = self.store.history(draft_id)
        return self.show("versions.html", request, rows=list(reversed(rows)), draft_id=draft_id)

    # Administrators

    def drift(self, request: Request, session: Session, days: int = 90) -> Response:
        since = self.store.clock() - max(1, min(days, 3650)) * 86_400.0
        account = account_of(self.store.decided(since), self.store.outcomes_of(since_s=since))
        self.store.log(session.name, "DRIFT")
        return self.show(
            "drift.html",
            request,
            account=account,
            days=days,
            named=[(_any_term(s.name, session.language), s) for s in account.by_code],
            weeks=[(week.start, week.share) for week in account.weeks],
            scanners=[(s.name, s) for s in account.by_scanner],
            subgroups=[(s.name, s) for s in account.by_subgroup],
            by_week_and_code=[
                (_any_term(code, session.language), [(week.start, week.share) for week in weeks])
                for code, weeks in account.by_week_and_code.items()
            ],
        )

    def audit(self, request: Request, session: Session, who: str = "", job: str = "", before: int = 0):
        rows = self.store.audit_rows(job[:32], who[:64], before, 200)
        self.store.log(session.name, "AUDIT")
        return self.show("audit.html", request, rows=rows, who=who, job=job)

    def users(self, request: Request, session: Session) -> Response:
        return self.show("users.html", request, users=self.store.users())

    def disable(self, request: Request, session: Session, name: str) -> Response:
        self.store.disable_user(name, session.name)
        return RedirectResponse("/users", 303)

    # Putting together

    def mount(self, app: FastAPI) -> None:
        reader, admin = Depends(self.reader), Depends(self.admin)
        changing, admin_changing = Depends(self.changing), Depends(self.admin_changing)

        @app.get("/sign-in")
        def sign_in_page(request: Request) -> Response:
            return self.sign_in_page(request)

        app.post("/sign-in")(self.sign_in)
        app.get("/sign-in/oidc")(self.oidc_start)
        app.get("/sign-in/oidc/back")(self.oidc_back)

        @app.post("/sign-out")
        def sign_out(request: Request, session: Session = changing) -> Response:
            return self.sign_out(request, session)

        @app.post("/language")
        def language(
            request: Request,
            session: Session = changing,
            language: Annotated[str, Form()] = "en",
            back: Annotated[str, Form()] = "/",
        ) -> Response:
            if language in words.LANGUAGES:
                self.store.set_language(session.token, language)
            # a path of ours and no other host
            safe = back.startswith("/") and not back.startswith(("//", "/\\")) and back.isprintable()
            return RedirectResponse(back if safe else "/", 303)

        @app.get("/")
        def worklist(request: Request, session: Session = reader, seen: str = "") -> Response:
            return self.worklist(request, session, seen)

        @app.post("/names")
        def names(
            request: Request, session: Session = changing, ids: Annotated[str, Form()] = ""
        ) -> Response:
            return self.names(request, session, ids)

        @app.get("/drafts/{draft_id}")
        def draft(request: Request, draft_id: str, session: Session = reader) -> Response:
            return self.draft(request, session, draft_id)

        @app.get("/drafts/{draft_id}/report")
        def report(request: Request, draft_id: str, session: Session = reader) -> Response:
            return self._changed(request, self.desk.sheet(draft_id))

        @app.get("/drafts/{draft_id}/evidence.json")
        def evidence(request: Request, draft_id: str, session: Session = reader) -> Response:
            return self.evidence(request, session, draft_id)

        @app.get("/drafts/{draft_id}/versions")
        def versions(request: Request, draft_id: str, session: Session = reader) -> Response:
            return self.versions(request, session, draft_id)

        @app.post("/drafts/{draft_id}/finding")
        def finding(
            request: Request,
            draft_id: str,
            version: Annotated[int, Form()],
            number: Annotated[int, Form()],
            code: Annotated[str, Form()],
            fields: dict = Depends(_fields),
            session: Session = changing,
        ) -> Response:
            return self.finding(request, session, draft_id, version, number, code, fields)

        @app.post("/drafts/{draft_id}/add")
        def add(
            request: Request,
            draft_id: str,
            version: Annotated[int, Form()],
            code: Annotated[str, Form()],
            fields: dict = Depends(_fields),
            session: Session = changing,
        ) -> Response:
            return self.add(request, session, draft_id, version, code, fields)

        @app.post("/drafts/{draft_id}/remove")
        def remove(
            request: Request,
            draft_id: str,
            version: Annotated[int, Form()],
            number: Annotated[int, Form()],
            code: Annotated[str, Form()],
            session: Session = changing,
        ) -> Response:
            return self.remove(request, session, draft_id, version, number, code)

        @app.post("/drafts/{draft_id}/sentence")
        def sentence(
            request: Request,
            draft_id: str,
            version: Annotated[int, Form()],
            number: Annotated[int, Form()],
            text: Annotated[str, Form()] = "",
            gone: Annotated[str, Form()] = "",
            session: Session = changing,
        ) -> Response:
            if not text.strip() and not gone:  # she may be about to type another one
                raise ReportError("An empty sentence is not saved; × removes it.", code="SENTENCE_EMPTY")
            return self.sentence(request, session, draft_id, version, number, text)

        @app.post("/drafts/{draft_id}/undo")
        def undo(
            request: Request, draft_id: str, version: Annotated[int, Form()], session: Session = changing
        ) -> Response:
            return self.undo(request, session, draft_id, version)

        @app.post("/drafts/{draft_id}/language")
        def report_language(
            request: Request,
            draft_id: str,
            version: Annotated[int, Form()],
            language: Annotated[str, Form()],
            session: Session = changing,
        ) -> Response:
            return self.report_language(request, session, draft_id, version, language)

        @app.post("/drafts/{draft_id}/decide")
        def decide_(
            request: Request,
            draft_id: str,
            version: Annotated[int, Form()],
            verb: Annotated[str, Form()],
            reason: Annotated[str, Form()] = "",
            remark: Annotated[str, Form()] = "",
            session: Session = changing,
        ) -> Response:
            return self.decide(request, session, draft_id, version, verb, reason, remark)

        @app.post("/drafts/{draft_id}/reopen")
        def reopen(request: Request, draft_id: str, session: Session = admin_changing) -> Response:
            return self.reopen(request, session, draft_id)

        @app.post("/drafts/{draft_id}/fetch")
        def fetch(request: Request, draft_id: str, session: Session = changing) -> Response:
            return self.fetch(request, session, draft_id)

        @app.get("/drift")
        def drift(request: Request, session: Session = admin, days: int = 90) -> Response:
            return self.drift(request, session, days)

        @app.get("/audit")
        def audit(
            request: Request, session: Session = admin, who: str = "", job: str = "", before: int = 0
        ) -> Response:
            return self.audit(request, session, who, job, before)

        @app.get("/users")
        def users(request: Request, session: Session = admin) -> Response:
            return self.users(request, session)

        @app.post("/users/disable")
        def disable(
            request: Request, name: Annotated[str, Form()], session: Session = admin_changing
        ) -> Response:
            return self.disable(request, session, name)

        self._mount_images(app)
        self._mount_errors(app)

    def _mount_images(self, app: FastAPI) -> None:
        from mla_med.review.images import make_router

        # as it was made: what is changed of a report moves no image, and the linter takes its time
        app.include_router(make_router(self.image_reader, self.desk.images_of, self.desk.draft))

    def _mount_errors(self, app: FastAPI) -> None:
        @app.exception_handler(NotSignedIn)
        def not_signed_in(request: Request, _: Exception) -> Response:
            if request.headers.get("HX-Request") == "true":
                return Response("SIGNED_OUT", 401, headers={"HX-Redirect": "/sign-in"})
            if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
                return self.sign_in_page(request, 401)
            return Response("SIGNED_OUT", 401)

        @app.exception_handler(NotAllowed)
        def not_allowed(request: Request, error: NotAllowed) -> Response:
            return self._problem(request, 403, "You may not do this.", error.code)

        @app.exception_handler(StaleVersion)
        def stale(request: Request, error: StaleVersion) -> Response:
            return self._conflict(request, error)

        @app.exception_handler(NoDraft)
        def no_draft(request: Request, error: NoDraft) -> Response:
            return self._problem(request, 404, str(error), error.code)

        @app.exception_handler(MlaMedError)
        def our_error(request: Request, error: MlaMedError) -> Response:
            log("review_error", level="warning", code=error.code)
            return self._problem(request, 422, str(error), error.code)

        @app.exception_handler(RequestValidationError)
        def invalid(request: Request, _: Exception) -> Response:
            return self._problem(request, 422, "The form is not filled in as it must be.", "FORM")

        @app.exception_handler(HTTPException)
        def http(request: Request, error: HTTPException) -> Response:
            return self._problem(request, error.status_code, "There is nothing here.", "HTTP")

    def _problem(self, request: Request, status: int, said: str, code: str) -> Response:
        """In words, where a person reads it. Which addresses there are is for readers only."""
        if request.headers.get("HX-Request") == "true":
            headers = {"HX-Retarget": "#message", "HX-Reswap": "innerHTML"}
            response = self.show("message.html", request, status, problem=said, code=code)
            response.headers.update(headers)
            return response
        if "text/html" in request.headers.get("accept", ""):
            if getattr(request.state, "session", None) is None:
                try:
                    self.reader(request)
                except NotSignedIn:
                    return self.sign_in_page(request, 401)
            return self.show("problem.html", request, status, problem=said, code=code)
        return JSONResponse({"code": code, "words": said}, status)

    def _conflict(self, request: Request, error: StaleVersion) -> Response:
        draft_id = str(request.path_params["draft_id"])
        last, changes = self.desk.conflict(draft_id, error.base)
        response = self.show(
            "conflict.html", request, 409, last=last, changes=changes, head=error.head, draft_id=draft_id
        )
        response.headers.update({"HX-Retarget": "#conflict", "HX-Reswap": "innerHTML"})
        return response


def filter_of(query: Mapping[str, str]) -> Filter:
    """What is asked for in an address; what makes no sense there is left out."""
    said = query.get("q", "").strip()[:64]
    least, most = AGES.get(query.get("age", ""), (0.0, 0.0))
    rank = _as_number(query.get("rank", ""), -1)
    job_id, scanner = "", ""
    codes: tuple[str, ...] = ()
    if len(said) >= 6 and all(c in "0123456789abcdef" for c in said):
        job_id = said[:32]
    elif said:
        codes = words.codes_named(said)
        scanner = "" if codes else said
    return Filter(
        states=STATE_CHOICES.get(query.get("state", "open"), OPEN_STATES),
        examination=query["examination"] if query.get("examination") in SCHEMAS else "",
        rank=rank if 0 <= rank < len(RANKS) else None,
        min_age_s=least,
        max_age_s=most,
        job_id=job_id,
        scanner=scanner,
        codes=codes,
    )


def _fields(
    presence: Annotated[str, Form()] = "",
    place: Annotated[str, Form()] = "",
    size_mm: Annotated[str, Form()] = "",
    count: Annotated[str, Form()] = "",
    change: Annotated[str, Form()] = "",
) -> dict[str, str]:
    """Of a finding, as a form says them."""
    return {"presence": presence, "place": place, "size_mm": size_mm, "count": count, "change": change}


def _stated(draft: Draft) -> dict[str, list[str]]:
    """For each sentence the numbers of the findings that it states ("1 3"), and how it is shown."""
    links, tones = [], []
    report = draft.report
    if report is not None:
        numbers = {id(f): n for n, f in enumerate(report.findings, start=1)}
        for part in (report.sentences, report.impression):
            for found in sentence_findings(part, report):
                links.append(" ".join(str(n) for n in sorted({numbers[id(f)] for f in found})))
                said = {f.presence for f in found}
                tones.append("absent" if said == {Presence.ABSENT} else "")
                if Presence.PRESENT in said and part is report.sentences:
                    tones[-1] = "present"
    return {"links": links, "tones": tones}


def _became(sheet: Sheet) -> dict[str, str]:
    """Code -> the gravest of what became of it so far."""
    if sheet.draft.report is None or sheet.edited is None:
        return {}
    order = ("kept", "changed", "removed", "added")
    found: dict[str, str] = {}
    for row in editing.became(sheet.draft.report, sheet.edited.report):
        found[row.code] = max(found.get(row.code, "kept"), row.outcome, key=order.index)
    return found


def _any_term(code: str, language: str) -> str:
    examination = next((key for key, schema in SCHEMAS.items() if code in schema), "")
    return words.term(examination, code, language) if examination else code


def _is_other(person: Person | None, session: Session) -> bool:
    return person is None or (person.name, person.role) != (session.name, session.role)


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _language(request: Request) -> str:
    """Of a browser that has not signed in."""
    first = request.headers.get("accept-language", "")[:2].lower()
    return first if first in words.LANGUAGES else "en"


def _after(text: str) -> tuple[int, float, str] | None:
    rank, _, rest = text.partition("_")
    arrived, _, job_id = rest.partition("_")
    try:
        return (int(rank), float(arrived), job_id) if JOB_ID.fullmatch(job_id) else None
    except ValueError:
        return None


def _key(item: Item) -> str:
    return f"{item.rank}_{item.arrived_at_s!r}_{item.job_id}"


def _as_number(text: str, otherwise: int) -> int:
    return int(text) if text.isdecimal() and len(text) < 10 else otherwise


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters["when"] = _when
    environment.filters["inert"] = inert
    return environment


def _when(at_s: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%MZ")
