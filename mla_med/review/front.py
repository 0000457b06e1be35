"""Who asks, and how a page is shown to them: sessions, roles, forms of ours, templates.

What every room of the page needs; the rooms themselves are entering, worklist, drafts and office. Whoever is
not signed in gets no further than the names below `Reader`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
from fastapi import Depends, Form, Header, Request
from fastapi.responses import HTMLResponse, Response
from itsdangerous import URLSafeTimedSerializer
from markupsafe import Markup

from mla_med.documents.parts import environment
from mla_med.review import words
from mla_med.review.desk import Desk
from mla_med.review.nouns import Session
from mla_med.review.patients import inert
from mla_med.review.settings import ReviewSettings
from mla_med.review.sign_in import ADMIN, OpenId, Person, by_proxy
from mla_med.review.store import Store

TEMPLATES = Path(__file__).parent / "templates"
TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that turn what follows them (Unicode UAX 9): on no page, wherever they came from."""


class NotSignedIn(Exception):
    pass


class NotAllowed(Exception):
    """Signed in, and may not; or a form that is not ours."""

    def __init__(self, code: str):
        super().__init__(code)
        self.code = code


class Front:
    """One of an app; `app.state.front`."""

    def __init__(self, settings: ReviewSettings, desk: Desk, store: Store, openid: OpenId | None):
        self.settings = settings
        self.desk = desk
        self.store = store
        self.openid = openid
        self.cookie = "__Host-mla_med" if settings.is_encrypted else "mla_med"
        self.signer = URLSafeTimedSerializer(store.derive("cookies"), salt="review")
        self._form_secret = store.derive("forms")
        self._templates = _templates()
        self.seen: dict[tuple[str, str, str], None] = {}
        """Session, draft and what was looked at of it, of which the audit says so already."""
        self.known_rows: dict[tuple[str, str, str, int], Markup] = {}
        """Of the worklist, as they were shown a moment ago."""

    # Who asks

    def reader(self, request: Request) -> Session:
        """Whoever is signed in; a proxy that is named signs in by itself."""
        secret = request.cookies.get(self.cookie, "")
        session = self._session(secret, not _is_clockwork(request)) if secret else None
        if self.settings.proxy_user_header:
            person = by_proxy(self.settings, _address(request), request.headers)
            if session is not None and session.method == "proxy" and _is_other(person, session):
                session = None  # somebody else sits there now, or has other rights
            if session is None and person is not None and (person := self.known(person)) is not None:
                secret = self.begin(person, language_of(request))
                request.state.new_session = secret
                session = self._session(secret)
        if session is None:
            raise NotSignedIn
        request.state.session = session
        return session

    def _session(self, secret: str, is_awake: bool = True) -> Session | None:
        idle_s, longest_s = self.settings.idle_min * 60, self.settings.session_h * 3600
        return self.store.session(secret, idle_s, longest_s, is_awake)

    def known(self, person: Person) -> Person | None:
        """What the site's own list says of somebody who signed in elsewhere: how he is named, and that he may
        not come in."""
        user = self.store.user(person.name)
        if user is None:
            return person
        if user.disabled:
            self.store.log(person.name, "SIGN_IN_FAILED", detail="disabled")
            return None
        return Person(person.name, user.display or person.display, person.role, person.method)

    def begin(self, person: Person, language: str) -> str:
        return self.store.begin_session(person.name, person.display, person.role, person.method, language)

    # Pages

    def show(self, name: str, request: Request, status: int = 200, **values: Any) -> HTMLResponse:
        session: Session | None = getattr(request.state, "session", None)
        language = session.language if session else language_of(request)
        text = self.render(name, language, session=session, **values)
        response = HTMLResponse(text if text.isascii() else TURNING.sub("", text), status)
        if secret := getattr(request.state, "new_session", ""):
            self.keep(response, secret)
        return response

    def render(self, name: str, language: str, **values: Any) -> Markup:
        """A template, with what each of them needs."""
        around = {
            "t": lambda english: words.say(english, language),
            "said": lambda code, english: words.said(code, english, language),
            "term": lambda examination, code: words.term(examination, code, language),
            "compared_term": lambda examination, one: words.compared_term(examination, one, language),
            "score_name": lambda name: words.score_name(name, language),
            "language": language,
            "settings": self.settings,
            "words": words,
            "now": self.store.clock(),
        }
        return Markup(self._templates.get_template(name).render(**around, **values))

    def keep(self, response: Response, secret: str) -> None:
        self.set_cookie(response, self.cookie, secret)

    def set_cookie(
        self,
        response: Response,
        name: str,
        value: str,
        path: str = "/",
        samesite: Literal["lax", "strict"] = "strict",
        max_age: int | None = None,
    ) -> None:
        """One that no script reads."""
        response.set_cookie(
            name,
            value,
            path=path,
            max_age=max_age,
            httponly=True,
            samesite=samesite,
            secure=self.settings.is_encrypted,
        )

    def sign_in_page(self, request: Request, status: int = 200, problem: str = "") -> HTMLResponse:
        """Its form belongs to this browser: somebody else's name must not be signed in here unseen."""
        form = request.cookies.get("mla_med_form") or secrets.token_urlsafe(24)
        response = self.show(
            "sign_in.html",
            request,
            status,
            problem=problem,
            form=self.form_token(form),
            has_oidc=self.openid is not None,
        )
        self.set_cookie(response, "mla_med_form", form)
        return response

    def form_token(self, form: str) -> str:
        return hmac.new(self._form_secret, form.encode(), hashlib.sha256).hexdigest()


def front_of(request: Request) -> Front:
    return request.app.state.front


def reader(request: Request) -> Session:
    return front_of(request).reader(request)


def admin(request: Request) -> Session:
    session = reader(request)
    if session.role != ADMIN:
        front_of(request).store.log(session.name, "FORBIDDEN", detail=request.url.path[:64])
        raise NotAllowed("ROLE")
    return session


def changing(
    request: Request, csrf: Annotated[str, Form()] = "", x_csrf_token: Annotated[str, Header()] = ""
) -> Session:
    """A form of ours, sent by whoever it was made for."""
    session = reader(request)
    if not hmac.compare_digest((x_csrf_token or csrf).encode(), session.csrf.encode()):
        front_of(request).store.log(session.name, "FORGED", detail=request.url.path[:64])
        raise NotAllowed("CSRF")
    return session


def admin_changing(request: Request, session: Annotated[Session, Depends(changing)]) -> Session:
    return session if session.role == ADMIN else admin(request)


Reader = Annotated[Session, Depends(reader)]
Admin = Annotated[Session, Depends(admin)]
Changing = Annotated[Session, Depends(changing)]
AdminChanging = Annotated[Session, Depends(admin_changing)]
"""What a route asks for says who may call it."""


def is_part(request: Request) -> bool:
    """Asked by htmx, for a piece of the page that is shown."""
    return request.headers.get("HX-Request") == "true"


def _is_clockwork(request: Request) -> bool:
    """Asked by the page itself for what is new: nobody need sit before it."""
    return is_part(request) and "seen" in request.query_params


def _is_other(person: Person | None, session: Session) -> bool:
    return person is None or (person.name, person.role) != (session.name, session.role)


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def language_of(request: Request) -> str:
    """Of a browser that has not signed in."""
    first = request.headers.get("accept-language", "")[:2].lower()
    return first if first in words.LANGUAGES else "en"


@cache
def _templates() -> jinja2.Environment:
    made = environment(TEMPLATES)
    made.filters["when"] = _when
    made.filters["inert"] = inert
    return made


def _when(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%MZ")
