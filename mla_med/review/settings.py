"""The section [review] of a site's TOML file -> where the page listens, who may come in, what goes out.

    [review]
    host = "127.0.0.1"
    port = 8471
    formats = "sr,fhir,hl7"

Every key has a default, and the section may be missing. Secrets come from files that their owner alone may
read, or from the environment.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mla_med.errors import ConfigError
from mla_med.settings import read_section

PLACES = ("cert_file", "key_pem_file", "oidc_secret_file", "drafts", "images")
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewSettings:
    host: str = "127.0.0.1"
    """The address to listen on. Other than loopback needs TLS: cert_file, or a proxy that is named."""
    port: int = 8471
    public_url: str = ""
    """As readers type it, such as https://review.example.org; its host is the only one besides loopback."""
    cert_file: str = ""
    key_pem_file: str = ""
    """For TLS of our own."""
    proxy_addresses: tuple[str, ...] = ()
    """Of proxies that may say who a reader is; no other address is believed."""
    proxy_user_header: str = ""
    """Such as X-Forwarded-User; empty: no proxy signs anybody in."""
    proxy_role_header: str = ""
    """Its groups, comma-separated; with admin_group among them the reader is an administrator."""
    oidc_issuer: str = ""
    """Such as https://login.example.org/realms/hospital; empty: no sign-in by OpenID Connect."""
    oidc_client_id: str = ""
    oidc_secret_file: str = ""
    """The client's secret; or MLA_MED_OIDC_SECRET."""
    oidc_name_claim: str = "preferred_username"
    oidc_groups_claim: str = "groups"
    reader_group: str = ""
    """Of OIDC or proxy; who is neither in it nor in admin_group does not come in. Empty: everybody who
    signed in there is a reader."""
    admin_group: str = "mla-med-admin"
    idle_min: float = 20.0
    """A session ends after so long without a request."""
    session_h: float = 10.0
    """And after so long in any case."""
    drafts: str = ""
    """Folder of drafts, one a job; empty: `out` of [night]."""
    images: str = ""
    """Studies whose images are not in the inbox any more, a folder for each job."""
    formats: str = "sr"
    """Of a revision, as of `mla-med draft`; what is no DICOM lies in its folder among the drafts."""
    names_on_worklist: bool = True
    """Whether the worklist shows whose studies they are, read from the images each time."""

    def __post_init__(self):
        if self.idle_min <= 0 or self.session_h <= 0:
            raise ConfigError("[review] idle_min and session_h must be more than 0.")
        if bool(self.proxy_user_header) != bool(self.proxy_addresses):
            raise ConfigError(
                "[review] proxy_user_header and proxy_addresses belong together: a header that anybody may "
                "send proves nothing."
            )
        for address in self.proxy_addresses:
            try:
                ipaddress.ip_network(address)
            except ValueError:
                raise ConfigError(f"[review] proxy_addresses: {address!r} is no IP address.") from None
        if self.oidc_issuer and not (self.oidc_client_id and self.public_url):
            raise ConfigError("[review] oidc_issuer needs oidc_client_id and public_url.")
        if bool(self.cert_file) != bool(self.key_pem_file):
            raise ConfigError("[review] cert_file and key_pem_file belong together.")
        if self.formats.strip() and "sr" not in [word.strip() for word in self.formats.split(",")]:
            raise ConfigError("[review] formats needs sr, at least: only DICOM documents are delivered.")

    @property
    def is_encrypted(self) -> bool:
        """Whether readers reach it by TLS."""
        return bool(self.cert_file) or self.public_url.startswith("https://")


def check_binding(settings: ReviewSettings) -> None:
    """ConfigError where passwords and patients would go over a network in the clear."""
    is_loopback = settings.host == "localhost"
    if not is_loopback:
        try:
            is_loopback = ipaddress.ip_address(settings.host).is_loopback
        except ValueError:
            raise ConfigError(f"[review] host is {settings.host!r}; give an IP address.") from None
    if is_loopback or settings.cert_file:
        return
    raise ConfigError(
        f"[review] host is {settings.host}: passwords and patients would cross the network in the clear. "
        "Give cert_file and key_pem_file, or stay on 127.0.0.1 behind a proxy with TLS.",
        code="TLS_MISSING",
    )


def read_review(path: Path) -> ReviewSettings:
    """The [review] section; ConfigError as `read_section`."""
    return read_section(path, "review", ReviewSettings, places=PLACES)


def read_oidc_secret(settings: ReviewSettings, environment: Mapping[str, str] = os.environ) -> str:
    from mla_med.secret import read_secret

    if text := environment.get("MLA_MED_OIDC_SECRET"):
        return text
    return read_secret(Path(settings.oidc_secret_file)).decode().strip() if settings.oidc_secret_file else ""
