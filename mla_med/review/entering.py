"""The door: the sign-in page, a password, a provider elsewhere, and out again; the language of the page."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response
from itsdangerous import BadSignature
from starlette.exceptions import HTTPException

from mla_med.review import words
from mla_med.review.front import Changing, front_of, language_of
from mla_med.review.sign_in import SignInError, by_password

OIDC_S = 600
"""How long a sign-in elsewhere may take."""
router = APIRouter()


@router.get("/sign-in")
def sign_in_page(request: Request) -> Response:
    return front_of(request).sign_in_page(request)


@router.post("/sign-in")
def sign_in(
    request: Request,
    name: Annotated[str, Form(max_length=256)] = "",
    password: Annotated[str, Form(max_length=4096)] = "",
    csrf: Annotated[str, Form()] = "",
) -> Response:
    front = front_of(request)
    form = request.cookies.get("mla_med_form", "")
    if not form or not hmac.compare_digest(csrf.encode(), front.form_token(form).encode()):
        return front.sign_in_page(request, 403, "The form has expired; sign in again.")
    try:
        person = by_password(front.store, name.strip(), password)
    except SignInError as error:
        return front.sign_in_page(request, 429 if error.code == "SIGN_IN_WAIT" else 401, str(error))
    response = RedirectResponse("/", 303)
    front.keep(response, front.begin(person, language_of(request)))
    response.delete_cookie("mla_med_form", path="/")
    return response


@router.get("/sign-in/oidc")
def oidc_start(request: Request) -> Response:
    front = front_of(request)
    if front.openid is None:
        raise HTTPException(404)
    try:
        address, kept = front.openid.start()
    except SignInError as error:
        return front.sign_in_page(request, 502, str(error))
    response = RedirectResponse(address, 303)
    # lax: it has to come along when the provider sends the browser back
    front.set_cookie(
        response,
        "mla_med_oidc",
        front.signer.dumps(kept),
        max_age=OIDC_S,
        path="/sign-in/oidc",
        samesite="lax",
    )
    return response


@router.get("/sign-in/oidc/back")
def oidc_back(request: Request) -> Response:
    front = front_of(request)
    if front.openid is None:
        raise HTTPException(404)
    try:
        kept = front.signer.loads(request.cookies.get("mla_med_oidc", ""), max_age=OIDC_S)
        person = front.known(front.openid.finish(request.query_params, kept))
        if person is None:
            raise SignInError("You are not among the readers of this page.")
    except BadSignature:
        return front.sign_in_page(request, 403, "The form has expired; sign in again.")
    except SignInError as error:
        front.store.log("?", "SIGN_IN_FAILED", detail="oidc")
        return front.sign_in_page(request, 401, str(error))
    # a page and no redirect: after one from elsewhere the browser would not send the strict cookie along
    response = front.show("signed_in.html", request)
    front.keep(response, front.begin(person, language_of(request)))
    response.delete_cookie("mla_med_oidc", path="/sign-in/oidc")
    return response


@router.post("/sign-out")
def sign_out(request: Request, session: Changing) -> Response:
    front = front_of(request)
    front.store.end_session(session)
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(front.cookie, path="/")
    return response


@router.post("/language")
def language(
    request: Request,
    session: Changing,
    language: Annotated[str, Form()] = "en",
    back: Annotated[str, Form()] = "/",
) -> Response:
    if language in words.LANGUAGES:
        front_of(request).store.set_language(session.token, language)
    # a path of ours and no other host
    safe = back.startswith("/") and not back.startswith(("//", "/\\")) and back.isprintable()
    return RedirectResponse(back if safe else "/", 303)
