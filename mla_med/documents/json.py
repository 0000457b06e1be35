"""Draft -> JSON-ready dict -> Draft: everything a draft holds, and no folder of anybody's disk.

Written from the types of the nouns, so that a field added there is never forgotten here. Of an
instance's path only the file name is kept, where it is no more than a number or a UID, and else a digest of
it: folders and files are often named after patients. A draft read back therefore equals the draft written,
but for these.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from mla_med.documents.text import NOTICE
from mla_med.errors import ReportError
from mla_med.types import Draft, Report

FORMAT = "mla_med.draft/1"
DIGITS = 24
"""Of the digest of a file name."""
_IMPERSONAL = re.compile(r"[A-Za-z]{0,3}[-_]?0*\d{1,5}(?:\.dcm)?|[012](?:\.\d+){4,}(?:\.dcm)?", re.IGNORECASE)
_DIGEST = re.compile(rf"[0-9a-f]{{{DIGITS}}}\.file")


def draft_to_json(draft: Draft, revision: Any = None) -> dict[str, Any]:
    """`revision`: an envelope.Revision, for whoever reads the file; no part of a draft."""
    about = {} if revision is None else {"revision": _to_json(revision)}
    return {"format": FORMAT, "notice": NOTICE, **about, "draft": _to_json(draft)}


def draft_from_json(data: dict[str, Any]) -> Draft:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ReportError(f"This is not a draft in the format {FORMAT}; was it written by draft_to_json?")
    return _from_json(Draft, data.get("draft"), "draft")


def report_to_json(report: Report) -> dict[str, Any]:
    """Of a draft the part that a reviewer changes."""
    return _to_json(report)


def report_from_json(data: dict[str, Any]) -> Report:
    return _from_json(Report, data, "report")


def told_name(name: str) -> str:
    """Of a file: its name, if it is a short number or a UID; a digest of any other, which may be a patient's
    name or number."""
    if _IMPERSONAL.fullmatch(name) or _DIGEST.fullmatch(name):
        return name
    return f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:DIGITS]}.file"


def _to_json(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return told_name(value.name)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # strict JSON has no NaN and no infinity
    return value


def _from_json(hint: Any, data: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kind = next(a for a in arguments if a is not type(None))
        return None if data is None else _from_json(kind, data, where)
    if origin is tuple:
        return _tuple_from_json(arguments, data, where)
    if origin is not None:  # Mapping[str, float]
        _expect(dict, data, where)
        return {key: _from_json(arguments[1], item, f"{where}.{key}") for key, item in data.items()}
    if is_dataclass(hint):
        return _noun_from_json(hint, data, where)
    return _scalar_from_json(hint, data, where)


def _tuple_from_json(arguments: tuple[Any, ...], data: Any, where: str) -> tuple:
    _expect(list, data, where)
    hints = arguments[:1] * len(data) if arguments[-1] is Ellipsis else arguments
    if len(hints) != len(data):
        raise ReportError(f"{where} has {len(data)} items where a draft has {len(hints)}.")
    return tuple(
        _from_json(h, item, f"{where}[{n}]") for n, (h, item) in enumerate(zip(hints, data, strict=True))
    )


def _noun_from_json(kind: Any, data: Any, where: str) -> Any:
    _expect(dict, data, where)
    hints = get_type_hints(kind)
    # what has a default came later than the first version, and an older draft lacks it
    may_lack = {f.name for f in fields(kind) if f.default is not MISSING or f.default_factory is not MISSING}
    odd = (set(data) - set(hints)) | (set(hints) - set(data) - may_lack)
    if odd:
        raise ReportError(
            f"{where} has unknown or missing keys: {', '.join(sorted(odd))}. Is it from another version?"
        )
    return kind(**{key: _from_json(hints[key], item, f"{where}.{key}") for key, item in data.items()})


def _scalar_from_json(kind: Any, data: Any, where: str) -> Any:
    if issubclass(kind, Enum):
        if data not in [member.value for member in kind]:
            raise ReportError(f"{where} is {data!r}, which is no {kind.__name__}.")
        return kind(data)
    if kind is Path:
        _expect(str, data, where)
        return Path(data)
    if kind is float and data in ("nan", "inf", "-inf"):
        return float(data)
    _expect((int, float) if kind is float else kind, data, where)
    return data


def _expect(kind: Any, data: Any, where: str) -> None:
    wrong_bool = isinstance(data, bool) and kind is not bool
    if wrong_bool or not isinstance(data, kind):
        raise ReportError(f"{where} is {type(data).__name__} in this file, which no draft has there.")
