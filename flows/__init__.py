"""Prefect flows: thin. Each decorates a tested function; no torch and no medicine in here.

What Prefect is told may stand in its database, its logs and its pages for ever, where anybody may look: ids
of jobs, paths of settings, states, codes and counts. Nothing of a patient: no UID, no name, no result that
is kept, no word of an exception (see `wordless`). What is true of a study stands in the ledger, so that a
flow that Prefect runs twice does nothing twice.

Without a server each process starts its own for the length of a run; the first start migrates a
database and can take longer than Prefect waits for by default.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

for _name, _value in {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(_name, _value)


def settings_of(given: Path | None) -> Path:
    """What a deployment names; else MLA_MED_SETTINGS, as for the commands; else mla-med.toml here."""
    return given or Path(os.environ.get("MLA_MED_SETTINGS") or "mla-med.toml")


def page_of(settings_file: Path) -> str:
    """Where readers find the review page; empty where the settings do not say, or not as they should: that
    ends no night."""
    from mla_med.errors import ConfigError
    from mla_med.review.settings import read_review

    try:
        return read_review(settings_file).public_url
    except ConfigError:
        return ""


class FlowError(Exception):
    """A reason code, and no words: Prefect keeps what an exception says."""


@contextmanager
def wordless() -> Iterator[None]:
    """Around whatever touches a study. What goes wrong becomes its reason code, or the name of its class, as
    the words of an error may hold a UID, a path or what a header said; so may those of any library."""
    from mla_med.errors import MlaMedError

    _silence_libraries()
    try:
        yield
    except MlaMedError as error:
        raise FlowError(error.code) from None
    except Exception as error:  # all of them: this is the last place before Prefect writes it down
        raise FlowError(type(error).__name__) from None


def _silence_libraries() -> None:
    """They warn with the values of headers; here, unlike in our own processes, Prefect's log listens."""
    from mla_med.logs import LIBRARIES

    warnings.simplefilter("ignore")
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers[:] = [logging.NullHandler()]
        logger.propagate = False


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Set when Prefect cancels the run, which it does by SIGTERM: what is inside ends in its own time, and
    then the signal comes through. Outside of the main thread nothing comes, and nothing is set."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
        if stop.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
