"""Draft -> draft.json, draft.txt, draft.html and draft.dcm in a folder; all of them, or none.

Every byte is made before the disk is touched, goes into a folder beside its destination, and
appears under its name only when all four are on the disk.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path

from mla_med.archive import is_file
from mla_med.documents.html import draft_to_html
from mla_med.documents.json import draft_to_json
from mla_med.documents.sr import draft_to_sr
from mla_med.documents.text import draft_to_text
from mla_med.errors import OutputError
from mla_med.types import Draft, Volume

NAMES = {"draft.dcm", "draft.txt", "draft.html", "draft.json"}


def write_draft(draft: Draft, volume: Volume | None, out: Path) -> list[Path]:
    """The files that were written. From NIfTI there is no SR: nothing says whose images they are."""
    contents = {
        **({"draft.dcm": _sr_bytes(draft)} if _is_dicom(draft) else {}),
        "draft.txt": draft_to_text(draft).encode(),
        "draft.html": draft_to_html(draft, volume).encode(),
        # The last one to appear: who sees draft.json sees the whole set.
        "draft.json": json.dumps(
            draft_to_json(draft), ensure_ascii=False, indent=1, allow_nan=False
        ).encode(),
    }
    is_new = not out.exists()
    try:
        return _write_all(contents, out)
    except OSError as error:
        if is_new:
            _remove_empty(out)
        raise OutputError(
            f"Cannot write the draft to {out}: {error.strerror or error}. "
            "Free some space there or choose a folder that can be written to; nothing was left behind."
        ) from error


def _is_dicom(draft: Draft) -> bool:
    return any(i.sop_class_uid for v in draft.verdicts for i in v.series.instances)


def _sr_bytes(draft: Draft) -> bytes:
    file = io.BytesIO()
    draft_to_sr(draft, _source(draft)).save_as(file, enforce_file_format=True)
    return file.getvalue()


def _source(draft: Draft) -> Path:
    """The first file that is still there, of the chosen series if possible."""
    verdicts = sorted(draft.verdicts, key=lambda v: not v.chosen)
    for instance in (i for v in verdicts for i in v.series.instances):
        if is_file(instance.path):
            return instance.path
    raise OutputError(
        f"No image file of study {draft.provenance.study_uid} is there any more, and the SR takes the "
        "patient from one. Put the study back where it was read from, then write again."
    )


def _write_all(contents: dict[str, bytes], out: Path) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".writing-") as folder:
        for name, content in contents.items():
            _write_durably(Path(folder) / name, content)
        # Whoever sees draft.json sees the whole set: the one of an earlier draft must not vouch for this.
        for name in ("draft.json", *(NAMES - contents.keys())):
            (out / name).unlink(missing_ok=True)
        return [(Path(folder) / name).replace(out / name) for name in contents]


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # some file systems tell of a full disk only here


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
