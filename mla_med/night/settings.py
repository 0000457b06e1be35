"""The section [night] of a site's TOML file -> when the night is, what it drafts with, and who is told.

    [night]
    cron = "0 19 * * *"
    timezone = "Europe/Berlin"
    out = "/var/lib/mla_med/drafts"
    records = "/var/lib/mla_med/nights"
    workers = 2

Every key has a default, and the section may be missing. A webhook's address may hold a secret, so it can
come from MLA_MED_WEBHOOK_URL instead.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mla_med.errors import ConfigError
from mla_med.settings import read_section


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
    hold: bool = False
    """Drafts wait for a person: `mla-med night release`."""
    keep_images: bool = False
    """Leave delivered studies in the inbox."""
    dask: str = ""
    """Address of a Dask scheduler whose workers draft, such as tcp://10.0.0.5:8786."""
    webhook_url: str = ""
    """Told by POST of JSON, counts and job ids alone, when something needs a person."""

    def __post_init__(self):
        for name in ("workers", "ahead", "window_h"):
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


def read_night(path: Path, environment: Mapping[str, str] = os.environ) -> NightSettings:
    """The [night] section; ConfigError as `read_section`."""
    over = {"webhook_url": environment.get("MLA_MED_WEBHOOK_URL", "")}
    return read_section(path, "night", NightSettings, over)
