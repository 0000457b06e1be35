"""The section [night] of a site's TOML file -> when the night is, what it drafts with, and who is told.

    [night]
    cron = "0 19 * * *"
    timezone = "Europe/Berlin"
    out = "/var/lib/mla_med/drafts"
    records = "/var/lib/mla_med/nights"
    workers = 2

Every key has a default, and the section may be missing. A webhook's address may hold a secret, so it can
come from MLA_MED_WEBHOOK_URL instead; the password of an e-mail account comes from a file that its owner
alone may read, or from MLA_MED_MAIL_PASSWORD.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mla_med.errors import ConfigError
from mla_med.secret import read_secret
from mla_med.settings import read_section

MAIL_TLS = ("starttls", "tls", "none")
PLACES = ("out", "records", "checkpoint", "mail_password_file")
_ADDRESS = re.compile(r"[^@\s<>,;]+@[^@\s<>,;]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class NightSettings:
    cron: str = "0 19 * * *"
    """When a night begins: minute, hour, day, month, weekday (POSIX crontab)."""
    timezone: str = "UTC"
    """Of `cron`: a name of the IANA database."""
    drift_cron: str = ""
    """When a QA phantom is sent through the PACS, such as "0 12 * * 0"; empty: never."""
    window_h: float = 10.0
    """How long a night lasts at most; what is not delivered by then is delivered by the next."""
    out: str = "out/drafts"
    """Drafts, a folder for each job."""
    records: str = "out/nights"
    """Audit reports, a folder for each night."""
    checkpoint: str = ""
    """A checkpoint folder; empty: the packaged one for each study."""
    language: str = "en"
    style: str = "prose"
    formats: str = "sr,txt,html,json"
    """As of `mla-med draft`."""
    workers: int = 1
    """Processes with a model in each."""
    ahead: int = 1
    """Studies that each worker reads while its model works on another; each holds a volume in memory."""
    batch: int = 1
    """Studies that each worker's model looks at and words in one call, of those that were read already."""
    hold: bool = False
    """Drafts wait for a person: `mla-med night release`."""
    keep_images: bool = False
    """Leave delivered studies in the inbox."""
    dask: str = ""
    """Address of a Dask scheduler whose workers draft, such as tcp://10.0.0.5:8786."""
    webhook_url: str = ""
    """Told by POST of JSON, counts and job ids alone, when something needs a person."""
    mail_host: str = ""
    """Of the SMTP server that is told the same; empty: no e-mail."""
    mail_port: int = 587
    mail_tls: str = "starttls"
    """Or tls (from the first byte, mostly port 465), or none: in the clear, and never with a password."""
    mail_user: str = ""
    """Empty: the server asks nobody."""
    mail_password_file: str = ""
    mail_from: str = ""
    mail_to: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("workers", "ahead", "batch", "window_h"):
            if getattr(self, name) < (0 if name == "ahead" else 1):
                raise ConfigError(f"[night] {name} is {getattr(self, name)}; that is too few.")
        if "sr" not in [word.strip() for word in self.formats.split(",")]:
            raise ConfigError("[night] formats needs sr, at least: only DICOM documents are delivered.")
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ConfigError(
                f"[night] timezone is {self.timezone!r}; give a name such as Europe/Berlin."
            ) from None
        self._check_mail()

    def _check_mail(self) -> None:
        if self.mail_tls not in MAIL_TLS:
            raise ConfigError(f"[night] mail_tls is {self.mail_tls!r}; there are {', '.join(MAIL_TLS)}.")
        if self.mail_user and self.mail_tls == "none":
            raise ConfigError(
                "[night] mail_user with mail_tls = none: the password would cross the network in the clear.",
                code="CREDENTIALS_EXPOSED",
            )
        if self.mail_host and not (self.mail_from and self.mail_to):
            raise ConfigError("[night] mail_host needs mail_from and mail_to.")
        for address in (self.mail_from, *self.mail_to):
            if address and not _ADDRESS.fullmatch(address):
                raise ConfigError(f"[night] {address!r} is no e-mail address, such as it@example.org.")


def read_night(path: Path, environment: Mapping[str, str] = os.environ) -> NightSettings:
    """The [night] section; ConfigError as `read_section`."""
    over = {"webhook_url": environment.get("MLA_MED_WEBHOOK_URL", "")}
    return read_section(path, "night", NightSettings, over, PLACES)


def read_mail_password(night: NightSettings, environment: Mapping[str, str] = os.environ) -> str:
    """Empty where the server asks nobody."""
    if not night.mail_user:
        return ""
    if password := environment.get("MLA_MED_MAIL_PASSWORD"):
        return password
    if not night.mail_password_file:
        raise ConfigError(
            "[night] mail_user needs a password: in mail_password_file, or in MLA_MED_MAIL_PASSWORD.",
            code="PASSWORD_MISSING",
        )
    return read_secret(Path(night.mail_password_file)).decode("utf-8", "replace").strip()
