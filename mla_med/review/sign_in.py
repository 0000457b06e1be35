"""Who is this? A password against the site's own users, a header of a proxy that is named, or an OpenID
Connect provider -> a name and a role, or nobody.

Passwords are kept as argon2id (RFC 9106, the library's defaults are its second recommended option), never
in a log, an audit row or an address. OpenID Connect is the authorization code flow with PKCE (RFC 7636),
state and nonce (OpenID Connect Core 1.0, 3.1); its library is only loaded where it is configured.
"""

from __future__ import annotations

import ipaddress
import re
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from mla_med.errors import ConfigError, MlaMedError
from mla_med.review.settings import ReviewSettings
from mla_med.review.store import Store

READER, ADMIN = "reader", "admin"
ROLES = (READER, ADMIN)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
MIN_PASSWORD = 12
"""NIST SP 800-63B-4: length is what counts; no rules about characters."""
MAX_PASSWORD = 1024
MAX_FAILURES, FAILURES_S = 6, 900.0
"""Of one name, after which it does not come in for a while."""

_HASHER = PasswordHasher()
_HASHING = threading.Semaphore(2)
"""Each takes 64 MB: many at once must not take all memory."""
_NOBODY = _HASHER.hash("nobody has this password, and it takes as long to find out")


class SignInError(MlaMedError):
    code = "SIGN_IN_FAILED"


@dataclass(frozen=True, slots=True)
class Person:
    name: str
    display: str
    """Family^Given, as a revision names its reviewer."""
    role: str
    method: str


def check_new_user(name: str, display: str, role: str, password: str) -> str:
    """-> the secret to keep. ConfigError says what is wrong."""
    if not NAME.fullmatch(name):
        raise ConfigError("A name has letters, digits and . _ @ -, 64 at most.")
    if role not in ROLES:
        raise ConfigError(f"No role {role!r}; there are {', '.join(ROLES)}.")
    if len(password) < MIN_PASSWORD or len(password) > MAX_PASSWORD:
        raise ConfigError(f"A password of {MIN_PASSWORD} characters at least, please.", code="PASSWORD_SHORT")
    check_display(display)
    return _HASHER.hash(password)


def check_display(display: str) -> str:
    from mla_med.documents.envelope import FORBIDDEN

    if not display.strip("^ ") or FORBIDDEN.search(display) or "\\" in display or len(display) > 64:
        raise ConfigError("Give the reader's name as Family^Given: the revisions name it.")
    return display


def by_password(store: Store, name: str, password: str) -> Person:
    """SignInError in the same words and time whatever is wrong."""
    since = store.clock() - FAILURES_S
    known = store.user(name) if NAME.fullmatch(name) else None
    # a password typed into the wrong field must not stand in the audit
    noted = name if known else store.hidden(name)
    if store.failures(noted, since) >= MAX_FAILURES:
        raise SignInError("Too many failed sign-ins; wait a quarter of an hour.", code="SIGN_IN_WAIT")
    usable = known is not None and known.secret and not known.disabled
    is_right = _verify(known.secret if known and usable else _NOBODY, password[:MAX_PASSWORD])
    if not (usable and is_right and known):
        store.log(noted, "SIGN_IN_FAILED", detail="password")
        raise SignInError("Name or password is wrong.")
    return Person(known.name, known.display, known.role, "password")


def _verify(secret: str, password: str) -> bool:
    with _HASHING:
        try:
            return _HASHER.verify(secret, password)
        except (Argon2Error, InvalidHashError):
            return False


def by_proxy(settings: ReviewSettings, address: str, headers: Mapping[str, str]) -> Person | None:
    """None where the request is not of a named proxy, or it names nobody who may come in."""
    if not settings.proxy_user_header or not _is_among(address, settings.proxy_addresses):
        return None
    name = headers.get(settings.proxy_user_header, "").strip()
    if not NAME.fullmatch(name):
        return None
    words = headers.get(settings.proxy_role_header, "") if settings.proxy_role_header else ""
    role = role_of([word.strip() for word in words.split(",")], settings)
    return Person(name, name.partition("@")[0], role, "proxy") if role else None


def role_of(groups: Collection[str], settings: ReviewSettings) -> str:
    """Empty: may not come in."""
    if settings.admin_group and settings.admin_group in groups:
        return ADMIN
    return READER if not settings.reader_group or settings.reader_group in groups else ""


def _is_among(address: str, networks: Collection[str]) -> bool:
    try:
        return any(ipaddress.ip_address(address) in ipaddress.ip_network(one) for one in networks)
    except ValueError:
        return False


class OpenId:
    """A provider, asked for its configuration and keys when somebody signs in."""

    def __init__(self, settings: ReviewSettings, secret: str, client: Any = None):
        self._settings = settings
        self._secret = secret
        self._client = client
        self.redirect = settings.public_url.rstrip("/") + "/sign-in/oidc/back"

    def start(self) -> tuple[str, dict[str, str]]:
        """The address to send the browser to, and what must be there when it comes back."""
        from authlib.common.security import generate_token
        from authlib.integrations.httpx_client import OAuth2Client

        kept = {"state": generate_token(32), "nonce": generate_token(32), "verifier": generate_token(64)}
        with OAuth2Client(
            self._settings.oidc_client_id,
            redirect_uri=self.redirect,
            scope="openid profile email",
            code_challenge_method="S256",
        ) as client:
            address, _ = client.create_authorization_url(
                self._configuration()["authorization_endpoint"],
                state=kept["state"],
                nonce=kept["nonce"],
                code_verifier=kept["verifier"],
            )
        return address, kept

    def finish(self, query: Mapping[str, str], kept: Mapping[str, str]) -> Person:
        """SignInError where anything of it is not as it must be."""
        import hmac

        from authlib.common.errors import AuthlibBaseError
        from authlib.integrations.httpx_client import OAuth2Client
        from httpx import HTTPError

        state, known = query.get("state", "").encode(), kept.get("state", "-").encode()
        if not hmac.compare_digest(state, known) or not query.get("code"):
            raise SignInError("The answer of the sign-in does not belong to a question of ours; try again.")
        try:
            configuration = self._configuration()
            with OAuth2Client(
                self._settings.oidc_client_id, self._secret or None, redirect_uri=self.redirect, timeout=10
            ) as client:
                token = client.fetch_token(
                    configuration["token_endpoint"], code=query["code"], code_verifier=kept["verifier"]
                )
            claims = self._claims(token["id_token"], kept["nonce"], configuration)
        except (AuthlibBaseError, HTTPError, KeyError, ValueError, TypeError):
            raise SignInError("The sign-in could not be confirmed; try again.") from None
        return self._person(claims)

    def _person(self, claims: Mapping[str, Any]) -> Person:
        name = str(claims.get(self._settings.oidc_name_claim, ""))
        groups = claims.get(self._settings.oidc_groups_claim, ())
        role = role_of(list(groups) if isinstance(groups, list) else [str(groups)], self._settings)
        if not NAME.fullmatch(name) or not role:
            raise SignInError("You are not among the readers of this page.", code="NOT_A_READER")
        parts = (str(claims.get("family_name") or ""), str(claims.get("given_name") or ""))
        display = "^".join(part.replace("^", " ").replace("=", " ").replace("\\", " ") for part in parts)
        return Person(name, display.strip("^") or name.partition("@")[0], role, "oidc")

    def _claims(self, token: str, nonce: str, configuration: Mapping[str, Any]) -> Mapping[str, Any]:
        """Signature, issuer, audience, expiry and nonce (OpenID Connect Core 1.0, 3.1.3.7)."""
        from joserfc import jwt
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        try:
            known: Any = self._get(configuration["jwks_uri"])
            keys = KeySet.import_key_set(known)
            read = jwt.decode(token, keys, algorithms=["RS256", "RS384", "RS512", "PS256", "ES256", "ES384"])
            audience = read.claims.get("aud")
            audience = audience if isinstance(audience, list) else [audience]
            claims = jwt.JWTClaimsRegistry(
                leeway=60,
                iss={"essential": True, "value": self._settings.oidc_issuer},
                exp={"essential": True},
                nonce={"essential": True, "value": nonce},
            )
            claims.validate(read.claims)
        except JoseError:
            raise SignInError("The sign-in could not be confirmed; try again.") from None
        if self._settings.oidc_client_id not in audience:
            raise SignInError("The sign-in was for somebody else's page.")
        return read.claims

    def _configuration(self) -> dict[str, Any]:
        found = self._get(self._settings.oidc_issuer.rstrip("/") + "/.well-known/openid-configuration")
        if found.get("issuer") != self._settings.oidc_issuer:
            raise SignInError("The sign-in service says that it is another one; look at oidc_issuer.")
        return found

    def _get(self, address: str) -> dict[str, Any]:
        import httpx

        client = self._client or httpx
        try:
            answer = client.get(address, timeout=10)
            answer.raise_for_status()
            return answer.json()
        except (httpx.HTTPError, ValueError):
            raise SignInError("The sign-in service does not answer; try again.", code="OIDC_SILENT") from None
