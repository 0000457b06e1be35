"""A site's TOML file -> where its PACS is, how to speak to it, and where this side keeps its state.

    [pacs]
    name = "main"
    dicomweb_url = "https://pacs.example.org/dicom-web"
    ledger_url = "sqlite:////var/lib/mla_med/ledger.db"
    key_file = "/etc/mla_med/ledger.key"
    inbox = "/var/lib/mla_med/inbox"

Credentials come from the environment (MLA_MED_PACS_USER, MLA_MED_PACS_PASSWORD, MLA_MED_PACS_TOKEN,
MLA_MED_LEDGER_KEY, MLA_MED_LEDGER_URL) or from files that their owner alone may read, never from the
command line, which every user of a machine can list.
"""

from __future__ import annotations

import os
import ssl
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mla_med.errors import ConfigError
from mla_med.secret import read_secret
from mla_med.settings import read_section

PROTOCOLS = ("dicomweb", "dimse")
PLACES = ("ca_file", "cert_file", "key_pem_file", "ledger_url", "key_file", "credentials_file", "inbox")


@dataclass(frozen=True, slots=True)
class Credentials:
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PacsSettings:
    name: str = "pacs"
    """Of the destination, in the ledger, in logs and in metrics."""
    protocol: str = "dicomweb"
    """dicomweb (QIDO, WADO, STOW) or dimse (C-FIND, C-GET or C-MOVE, C-STORE)."""
    dicomweb_url: str = ""
    host: str = ""
    port: int = 104
    ae_title: str = "MLA_MED"
    """Ours."""
    called_ae_title: str = ""
    """Theirs."""
    move_to: str = ""
    """AE title of a store beside us that the PACS moves studies to. Empty: C-GET, which needs no listener."""
    beside_url: str = ""
    """DICOMweb of that store, from where they are fetched."""
    ca_file: str = ""
    """Certificates that the PACS's own must follow from; empty: those of the system."""
    cert_file: str = ""
    """Ours, for mutual TLS, with `key_pem_file`."""
    key_pem_file: str = ""
    tls: bool = False
    """DIMSE over TLS. DICOMweb is over TLS where its URL begins with https."""
    timeout_s: float = 30.0
    """For each answer: no thread is held longer."""
    commitment: bool = False
    """DIMSE: storage commitment (PS3.4 annex J) on top of reading back. The PACS must report on the
    association that asked: nothing here listens for another one."""
    ledger_url: str = "sqlite:///out/ledger.db"
    key_file: str = "out/ledger.key"
    """The site's secret: without it the ledger's documents cannot be read. Made if missing."""
    credentials_file: str = ""
    """TOML with user and password, or token."""
    inbox: str = "out/inbox"
    """Where complete studies go, in folders named by job."""
    settle_s: float = 60.0
    """Between two equal counts of a study's instances."""
    modalities: tuple[str, ...] = ("CT", "MR")
    days: int = 2
    """How far back studies are looked for, by study date."""
    max_used: float = 0.75
    """No study is taken in while the inbox's disk is fuller than that,"""
    min_free_bytes: int = 5 * 10**9
    """or has less room than that."""
    batch: int = 20
    """Documents in one request or association."""
    workers: int = 4
    """Connections at once."""
    check_with_dciodvfy: str = "warn"
    """What dciodvfy says of a document before it is sent: require, warn or off."""

    def __post_init__(self):
        for name, allowed in (
            ("protocol", PROTOCOLS),
            ("check_with_dciodvfy", ("require", "warn", "off")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"[pacs] {name} is {getattr(self, name)!r}; give {' or '.join(allowed)}.")
        if self.protocol == "dicomweb" and not self.dicomweb_url.startswith(("https://", "http://")):
            raise ConfigError("[pacs] dicomweb_url is missing; it begins with https://.")
        if self.protocol == "dimse" and not (self.host and self.called_ae_title):
            raise ConfigError("[pacs] host and called_ae_title are needed to speak DIMSE.")
        if bool(self.move_to) != bool(self.beside_url):
            raise ConfigError("[pacs] move_to and beside_url belong together.")
        if bool(self.cert_file) != bool(self.key_pem_file):
            raise ConfigError("[pacs] cert_file and key_pem_file belong together.")
        for name in ("ae_title", "called_ae_title", "move_to"):
            title = getattr(self, name)
            if len(title) > 16 or "\\" in title or not title.isascii():
                raise ConfigError(f"[pacs] {name} is no AE title: 16 characters at most (PS3.5 6.2).")


def read_settings(path: Path, environment: Mapping[str, str] = os.environ) -> PacsSettings:
    """The [pacs] section; ConfigError as `read_section`. The ledger's address may hold a password, and so may
    come from MLA_MED_LEDGER_URL."""
    over = {"ledger_url": environment.get("MLA_MED_LEDGER_URL", "")}
    return read_section(path, "pacs", PacsSettings, over, PLACES)


def read_credentials(settings: PacsSettings, environment: Mapping[str, str] = os.environ) -> Credentials:
    """From the environment, else from the file; none where neither is there."""
    given = {k: environment.get(f"MLA_MED_PACS_{k.upper()}", "") for k in ("user", "password", "token")}
    if any(given.values()) or not settings.credentials_file:
        return Credentials(**given)
    path = Path(settings.credentials_file)
    try:
        values = tomllib.loads(read_secret(path).decode())
        return Credentials(**values)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError):
        # the parser's own words would show what stands there
        raise ConfigError(f"{path} is not TOML with user and password, or token.") from None


def read_ledger_secret(settings: PacsSettings, environment: Mapping[str, str] = os.environ) -> bytes:
    """MLA_MED_LEDGER_KEY (hex), else the key file."""
    if text := environment.get("MLA_MED_LEDGER_KEY"):
        try:
            return bytes.fromhex(text)
        except ValueError:
            raise ConfigError("MLA_MED_LEDGER_KEY is not hexadecimal.") from None
    return read_secret(Path(settings.key_file), make=True)


def tls_context(settings: PacsSettings) -> ssl.SSLContext:
    """Checks the server's certificate and name always; there is no switch for that."""
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
        if settings.cert_file:
            context.load_cert_chain(settings.cert_file, settings.key_pem_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"The certificates in [pacs] cannot be used: {error.strerror or 'they are damaged'}. "
            "Check ca_file, cert_file and key_pem_file."
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
