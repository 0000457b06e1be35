"""A job's images in the inbox -> gone once it is over, or kept where the review page looks for them.

Whoever reads drafts on the page may come hours after the PACS has taken them, and what came by a drop folder
cannot be fetched again. Where [review] names a folder for images, those of a delivered draft are moved there,
and the page removes them when the draft is decided. Knows nothing of the page itself.
"""

from __future__ import annotations

import shutil
import time
import tomllib
from contextlib import suppress
from pathlib import Path

from mla_med.ledger.nouns import JobState
from mla_med.logs import log
from mla_med.settings import beside

LEFT_S = 86_400.0
"""Nobody fills a folder for so long."""
OVER = (JobState.DELIVERED, JobState.SUPERSEDED, JobState.DISCARDED)
"""Until then the images are there: whoever looks at a parked document may want to draft it again."""


def review_folder(settings_file: Path) -> Path | None:
    """`images` of the section [review], which others read in whole; None: images go with the delivery."""
    section = tomllib.loads(settings_file.read_text("utf-8")).get("review", {})
    return Path(beside(settings_file, section["images"])) if section.get("images") else None


def clear_images(folder: Path, state: JobState, kept: Path | None) -> bool:
    """Of a job in this state; False where they stay, as it is not over or the folder for them is full."""
    if state not in OVER:
        return False
    if kept is not None and state is JobState.DELIVERED and folder.is_dir():
        try:
            _keep(folder, kept)
        except (OSError, shutil.Error):
            log("images_not_kept", level="warning", job=folder.name)
            return False
    shutil.rmtree(folder, ignore_errors=True)
    return True


def clear_left(folder: Path, pattern: str) -> None:
    """Folders of such names that a killed process was filling: patients' images and drafts, and nobody's."""
    for left in folder.glob(pattern):
        with suppress(FileNotFoundError):  # somebody else clears it too
            if time.time() - left.stat().st_mtime > LEFT_S:
                shutil.rmtree(left, ignore_errors=True)


def _keep(folder: Path, kept: Path) -> None:
    to = kept / folder.name
    if to.exists():
        return
    kept.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        folder.rename(to)
    except OSError:  # another disk: copied, and there under its name when it is whole
        partial = kept / f".{folder.name}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            shutil.copytree(folder, partial)
            partial.rename(to)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
