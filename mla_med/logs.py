"""Events -> one JSON object a line, of allowed fields alone; and whatever a library says -> where it
said it, never what.

highdicom warns with the patient's name, pydicom with the bad value, pynetdicom logs what was asked
for, urllib3 the address: their words are read by nobody here. An exception becomes its class and its
places. Nothing is searched for names, as a search misses some: what is not allowed is not written.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
import traceback
import warnings
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import IO

FIELDS = frozenset(
    (
        *("job", "document", "destination", "state", "outcome", "code", "attempt", "seconds", "count"),
        *("bytes", "version", "verb", "check", "peer"),
    )
)
"""What an event may say. UIDs, names, dates and paths are not among them; a job's id leads to its row."""
LIBRARIES = ("pydicom", "pynetdicom", "highdicom", "urllib3", "dicomweb_client", "requests", "sqlalchemy")
_NAME = "mla_med.events"
_TOKEN = re.compile(r"[A-Za-z0-9_.:-]{0,64}")
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

Value = str | int | float | bool | None


def log(event: str, *, level: str = "info", **values: Value) -> None:
    """A field that is not allowed is a mistake of whoever wrote the call."""
    assert values.keys() <= FIELDS, f"not allowed in a log: {values.keys() - FIELDS}"
    logging.getLogger(_NAME).log(LEVELS[level], event, extra={"mla_med_values": values})


def start_logging(stream: IO[str] | None = None, level: str = "info") -> None:
    """Every logger, warning and uncaught exception of this process goes through one redactor, whatever was
    set up before, at every level."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(Redactor())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # what a library has to say below a warning is noise without its words
    root.setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    logging.getLogger(_NAME).setLevel(LEVELS[level])
    for name in [*logging.root.manager.loggerDict, *LIBRARIES]:
        logger = logging.getLogger(name)
        logger.handlers.clear()  # pydicom, for one, brings its own
        logger.propagate = True
    # pynetdicom formats identifiers before any handler sees them
    if "pynetdicom" in sys.modules:
        from pynetdicom import _config

        _config.LOG_REQUEST_IDENTIFIERS = False
        _config.LOG_RESPONSE_IDENTIFIERS = False
    warnings.showwarning = _show_warning
    sys.excepthook = _on_exception
    threading.excepthook = _on_thread_exception
    sys.unraisablehook = lambda event: _on_exception(
        event.exc_type, event.exc_value or event.exc_type(), event.exc_traceback
    )


class Redactor(logging.Formatter):
    """A record -> its line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Value | list[str]] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
        }
        values = getattr(record, "mla_med_values", None)
        if record.name == _NAME and values is not None:
            line["event"] = _token(record.msg)
            line |= {k: _clean(v) for k, v in values.items() if k in FIELDS}
        else:
            line["event"] = "library"
            line["logger"] = _token(record.name)
            line["place"] = f"{_token(Path(record.pathname).name)}:{record.lineno}"
        if record.exc_info and record.exc_info[0]:
            line |= _exception(record.exc_info[0], record.exc_info[2])
        return json.dumps(line)


def _clean(value: Value) -> Value:
    if value is None or isinstance(value, bool | int | float):
        return value
    return _token(value)


def _token(text: object) -> str:
    """A code, an id, a name from this project; anything else is not shown."""
    text = text.value if isinstance(text, StrEnum) else text
    return text if isinstance(text, str) and _TOKEN.fullmatch(text) else "?"


def _exception(kind: type[BaseException], places: TracebackType | None) -> dict[str, Value | list[str]]:
    """Its class, its reason code where it is ours, and where it came from; not its words."""
    found: dict[str, Value | list[str]] = {"exception": _token(kind.__name__)}
    # walk_tb and not extract_tb: that reads source lines, where a literal may stand
    found["places"] = [
        f"{Path(frame.f_code.co_filename).name}:{number}" for frame, number in traceback.walk_tb(places)
    ][-8:]
    return found


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    logger = logging.getLogger("py.warnings")
    logger.handle(
        logger.makeRecord(logger.name, logging.WARNING, str(filename), lineno, category.__name__, (), None)
    )


def _on_exception(kind: type[BaseException], error: BaseException, places: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("uncaught").error("uncaught", exc_info=(kind, error, places))


def _on_thread_exception(event: threading.ExceptHookArgs) -> None:
    _on_exception(event.exc_type, event.exc_value or event.exc_type(), event.exc_traceback)
