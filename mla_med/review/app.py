"""A site's settings -> the page, put together from its rooms, and what every error looks like on it.

Thin: each route asks the desk or the store, and a template shows what it said. Whoever is not signed in sees
the sign-in page with 401, whatever the address. Every view of a draft and every change is in the audit
before it is answered.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from mla_med.documents.parts import STYLE
from mla_med.errors import MlaMedError
from mla_med.ledger.ledger import Ledger
from mla_med.logs import log
from mla_med.night.settings import read_night
from mla_med.pacs.settings import PacsSettings, read_ledger_secret, read_settings
from mla_med.review import drafts, entering, office, worklist
from mla_med.review.deciding import send_unsent
from mla_med.review.desk import Desk, Keeper, NoDraft
from mla_med.review.front import Front, NotAllowed, NotSignedIn, front_of, is_part
from mla_med.review.guard import Guard
from mla_med.review.images import make_router
from mla_med.review.nouns import StaleVersion
from mla_med.review.settings import ReviewSettings, read_oidc_secret, read_review
from mla_med.review.sign_in import OpenId
from mla_med.review.store import Store

STATIC = Path(__file__).parent / "static"


def app_of(settings_file: Path) -> FastAPI:
    """From a site's settings."""
    pacs, review = read_settings(settings_file), read_review(settings_file)
    secret = read_ledger_secret(pacs)
    book = Ledger.open(pacs.ledger_url, secret)
    store = Store.open(pacs.ledger_url, secret)
    openid = OpenId(review, read_oidc_secret(review)) if review.oidc_issuer else None
    return create_app(review, pacs, Path(read_night(settings_file).out), book, store, openid)


def create_app(
    settings: ReviewSettings,
    pacs: PacsSettings,
    folder: Path,
    book: Ledger,
    store: Store,
    openid: OpenId | None = None,
    *,
    keep: bool = True,
) -> FastAPI:
    """`folder`: of drafts. `keep`: new ones come onto the worklist by themselves, unsent decisions go out."""
    desk = Desk(settings, pacs, folder, book, store)

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
    app.state.front = Front(settings, desk, store, openid)
    app.add_middleware(Guard, settings=settings)
    app.add_route("/static/shared.css", lambda _: FileResponse(STYLE))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    for room in (entering, worklist, drafts, office):
        app.include_router(room.router)
    # as it was made: what is changed of a report moves no image, and the linter takes its time
    app.include_router(make_router(drafts.image_reader, desk.folders_of, desk.draft))
    _mount_errors(app)
    return app


def _mount_errors(app: FastAPI) -> None:
    @app.exception_handler(NotSignedIn)
    def not_signed_in(request: Request, _: Exception) -> Response:
        if is_part(request):
            return Response("SIGNED_OUT", 401, headers={"HX-Redirect": "/sign-in"})
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            return front_of(request).sign_in_page(request, 401)
        return Response("SIGNED_OUT", 401)

    @app.exception_handler(NotAllowed)
    def not_allowed(request: Request, error: NotAllowed) -> Response:
        return _problem(request, 403, "You may not do this.", error.code)

    @app.exception_handler(StaleVersion)
    def stale(request: Request, error: StaleVersion) -> Response:
        return _conflict(request, error)

    @app.exception_handler(NoDraft)
    def no_draft(request: Request, error: NoDraft) -> Response:
        return _problem(request, 404, str(error), error.code)

    @app.exception_handler(MlaMedError)
    def our_error(request: Request, error: MlaMedError) -> Response:
        log("review_error", level="warning", code=error.code)
        return _problem(request, 422, str(error), error.code)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, _: Exception) -> Response:
        return _problem(request, 422, "The form is not filled in as it must be.", "FORM")

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> Response:
        return _problem(request, error.status_code, "There is nothing here.", "HTTP")


def _problem(request: Request, status: int, said: str, code: str) -> Response:
    """In words, where a person reads it. Which addresses there are is for readers only."""
    front = front_of(request)
    if is_part(request):
        headers = {"HX-Retarget": "#message", "HX-Reswap": "innerHTML"}
        response = front.show("message.html", request, status, problem=said, code=code)
        response.headers.update(headers)
        return response
    if "text/html" in request.headers.get("accept", ""):
        if getattr(request.state, "session", None) is None:
            try:
                front.reader(request)
            except NotSignedIn:
                return front.sign_in_page(request, 401)
        return front.show("problem.html", request, status, problem=said, code=code)
    return JSONResponse({"code": code, "words": said}, status)


def _conflict(request: Request, error: StaleVersion) -> Response:
    front, draft_id = front_of(request), str(request.path_params["draft_id"])
    last, changes = front.desk.conflict(draft_id, error.base)
    response = front.show(
        "conflict.html", request, 409, last=last, changes=changes, head=error.head, draft_id=draft_id
    )
    response.headers.update({"HX-Retarget": "#conflict", "HX-Reswap": "innerHTML"})
    return response
