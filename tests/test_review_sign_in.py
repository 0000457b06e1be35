"""Signing in by OpenID Connect, against a provider of our own on loopback; and readers made by command."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed (the extra review)")
pytest.importorskip("authlib", reason="authlib is not installed (the extra review)")

from joserfc import jwt
from joserfc.jwk import RSAKey
from review_site import PASSWORD, Site
from typer.testing import CliRunner

from mla_med.cli_review import review
from mla_med.review.app import create_app
from mla_med.review.settings import ReviewSettings
from mla_med.review.sign_in import OpenId, by_password

PAGE = "http://127.0.0.1:8471"


class Provider(HTTPServer):
    """Gives whoever brings a code the claims that a test wants."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self.server_port}"
        self.key = RSAKey.generate_key(2048, {"kid": "k"})
        self.signing_key = self.key
        self.claims: dict = {}
        self.asked: list[dict] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def token(self) -> str:
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": "review", "exp": now + 300, "iat": now, "sub": "1"}
        return jwt.encode({"alg": "RS256", "kid": "k"}, claims | self.claims, self.signing_key)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        at = self.server.issuer
        self._answer(
            {
                "/.well-known/openid-configuration": {
                    "issuer": at,
                    "authorization_endpoint": f"{at}/authorize",
                    "token_endpoint": f"{at}/token",
                    "jwks_uri": f"{at}/keys",
                },
                "/keys": {"keys": [self.server.key.as_dict(private=False)]},
            }[self.path]
        )

    def do_POST(self):
        form = self.rfile.read(int(self.headers["content-length"])).decode()
        self.server.asked.append({k: v[0] for k, v in parse_qs(form).items()})
        self._answer({"access_token": "a", "token_type": "Bearer", "id_token": self.server.token()})

    def _answer(self, value: dict):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def provider():
    server = Provider()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def site(tmp_path, provider):
    provider.claims, provider.signing_key = {}, provider.key
    provider.asked.clear()
    settings = ReviewSettings(
        public_url=PAGE,
        oidc_issuer=provider.issuer,
        oidc_client_id="review",
        reader_group="radiology",
    )
    site = Site(tmp_path, settings)
    openid = OpenId(settings, "the client's secret")
    site.app = create_app(settings, site.pacs, site.drafts, site.book, site.store, openid, keep=False)
    return site


def start(client) -> dict[str, str]:
    """-> what the page asked the provider for."""
    answer = client.get("/sign-in/oidc")
    assert answer.status_code == 303
    return {k: v[0] for k, v in parse_qs(urlsplit(answer.headers["location"]).query).items()}


def back(client, provider, query: dict[str, str], **claims):
    provider.claims = {"preferred_username": "lee", "groups": ["radiology"], "nonce": query["nonce"]} | claims
    return client.get("/sign-in/oidc/back", params={"code": "c", "state": query["state"]})


def test_a_reader_signs_in_with_the_hospitals_account(site, provider):
    client = site.client()
    query = start(client)
    assert (query["response_type"], query["code_challenge_method"]) == ("code", "S256")
    assert query["redirect_uri"] == f"{PAGE}/sign-in/oidc/back"
    answer = back(client, provider, query, family_name="Lee", given_name="Ann")
    assert answer.status_code == 200
    assert client.get("/").status_code == 200
    assert provider.asked[0]["code_verifier"]
    row = next(r for r in site.store.audit_rows() if r["action"] == "SIGNED_IN")
    assert (row["who"], row["detail"]) == ("lee", "oidc")
    assert client.get("/drift").status_code == 403


def test_the_admin_group_makes_an_administrator(site, provider):
    client = site.client()
    back(client, provider, start(client), groups=["mla-med-admin"])
    assert client.get("/drift").status_code == 200


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "another"},
        {"aud": "another page"},
        {"iss": "https://another.example"},
        {"exp": 1},
        {"groups": ["kitchen"]},
        {"preferred_username": "<script>"},
    ],
    ids=lambda claims: next(iter(claims)),
)
def test_a_token_that_is_not_for_a_reader_of_this_page_lets_nobody_in(site, provider, claims):
    client = site.client()
    assert back(client, provider, start(client), **claims).status_code == 401
    assert client.get("/").status_code == 401


def test_a_token_of_another_key_or_an_answer_to_no_question_lets_nobody_in(site, provider):
    client = site.client()
    provider.signing_key = RSAKey.generate_key(2048, {"kid": "k"})
    assert back(client, provider, start(client)).status_code == 401
    provider.signing_key = provider.key
    query = start(client)
    assert back(client, provider, query | {"state": "another"}).status_code == 401
    client.cookies.clear()
    assert back(client, provider, query).status_code == 403


def test_who_is_shut_out_here_does_not_come_in_from_there(site, provider):
    site.store.add_user("lee", "Lee^Ann", "reader", "")
    site.store.disable_user("lee", "admin")
    client = site.client()
    assert back(client, provider, start(client)).status_code == 401


def test_readers_are_made_listed_and_shut_out_by_command(tmp_path, monkeypatch):
    (tmp_path / "site.key").write_bytes(b"x" * 32)
    (tmp_path / "site.key").chmod(0o600)
    path = tmp_path / "mla-med.toml"
    path.write_text(
        f'[pacs]\ndicomweb_url = "http://127.0.0.1:9/d"\nledger_url = "sqlite:///{tmp_path}/ledger.db"\n'
        f'key_file = "{tmp_path}/site.key"\n'
    )
    monkeypatch.setenv("MLA_MED_SETTINGS", str(path))

    def run(*words: str, given: str = ""):
        return CliRunner().invoke(review, list(words), input=given)

    made = run("user", "add", "lee", "--role", "admin", "--display", "Lee^Ann", given=PASSWORD + "\n")
    assert made.output == "lee signs in as admin.\n"
    assert "lee" in run("user", "list").output
    from mla_med.review.store import Store

    store = Store.open(f"sqlite:///{tmp_path}/ledger.db", b"x" * 32)
    assert by_password(store, "lee", PASSWORD).display == "Lee^Ann"
    assert PASSWORD not in store.user("lee").secret
    short = run("user", "add", "kim", "--display", "Poe^Kim", given="short\n")
    assert "12 characters" in str(short.exception)
    assert "Family^Given" in str(run("user", "add", "kim", given=PASSWORD + "\n").exception)
    assert run("user", "disable", "lee").exit_code == 0
    assert "shut out" in run("user", "list").output
    assert "USER_DISABLED" in run("audit").output
    store.close()


def test_recalibrating_by_command_copies_the_package_and_takes_back(tmp_path, monkeypatch):
    import shutil

    from mla_med.model import DEFAULT_CHECKPOINT

    (tmp_path / "site.key").write_bytes(b"x" * 32)
    (tmp_path / "site.key").chmod(0o600)
    path = tmp_path / "mla-med.toml"
    path.write_text(
        f'[pacs]\ndicomweb_url = "http://127.0.0.1:9/d"\nledger_url = "sqlite:///{tmp_path}/ledger.db"\n'
        f'key_file = "{tmp_path}/site.key"\n'
    )
    monkeypatch.setenv("MLA_MED_SETTINGS", str(path))
    own = tmp_path / "own"
    shutil.copytree(DEFAULT_CHECKPOINT, own)
    before = (own / "calibration.json").read_bytes()
    none = CliRunner().invoke(review, ["recalibrate", "--checkpoint", str(own)])
    assert "Nothing moves" in none.output
    assert (own / "calibration.json").read_bytes() == before
    refused = CliRunner().invoke(review, ["recalibrate"])
    assert "packaged checkpoints are not changed" in str(refused.exception)
    undone = CliRunner().invoke(review, ["recalibrate", "--checkpoint", str(own), "--undo"])
    assert "never recalibrated" in str(undone.exception)
