"""A URL -> an engine whose tables have the newest form; and what a database says -> a LedgerError.

SQLite with a write-ahead log that is synced at every commit, PostgreSQL as its server is set up. Knows
nothing of jobs.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from mla_med.errors import ConfigError, LedgerError

_NEWEST_FORM = "0002"
_WAIT_S = 30.0  # for a lock of SQLite
_PATIENCE = {
    "connect_timeout": 10,
    "options": "-c statement_timeout=60s -c lock_timeout=30s -c idle_in_transaction_session_timeout=300s",
    "tcp_user_timeout": 30_000,
    "keepalives_idle": 20,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""Of PostgreSQL, where the address does not say another: libpq waits for ever unless it is told
(postgresql.org/docs/current/libpq-connect.html)."""
_SILENCE_S = 90.0
"""Longer than a server lets any statement take: one that says nothing for so long has stopped."""
_MIGRATION_LOCK = 0x6D6C61  # any number that nobody else takes for an advisory lock


def make_engine(url: str) -> Engine:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise ConfigError(
            "The ledger's address is no database URL; give sqlite:////path/ledger.db or "
            "postgresql+psycopg://host/database."
        ) from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ConfigError(f"A ledger lives in sqlite or postgresql, not in {parsed.get_backend_name()}.")
    if parsed.get_backend_name() == "postgresql":
        # hide_parameters: an error's text would show what was written
        patience = {name: value for name, value in _PATIENCE.items() if name not in parsed.query}
        engine = sa.create_engine(parsed, hide_parameters=True, pool_pre_ping=True, connect_args=patience)
        sa.event.listen(engine, "do_connect", _connect)
        return engine
    if not parsed.database or ":memory:" in parsed.database:
        raise ConfigError("This ledger would be kept in memory alone; give sqlite:////path/ledger.db.")
    _make_private(Path(parsed.database))
    engine = sa.create_engine(parsed, hide_parameters=True, connect_args={"timeout": _WAIT_S})
    sa.event.listen(engine, "connect", _on_connect)
    sa.event.listen(engine, "begin", _on_begin)
    return engine


def _connect(dialect: Any, record: Any, arguments: Any, options: Any) -> Any:
    return _patient().connect(*arguments, **options)


@cache
def _patient() -> Any:
    """A connection that ends where its server takes what it is told, and says nothing any more."""
    import psycopg

    class Patient(psycopg.Connection):
        def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            try:
                return super().wait(gen, interval, timeout or _SILENCE_S)
            except psycopg.OperationalError:
                if self.info.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                    self.close()  # its answer would come to whoever asks next
                raise

    return Patient


def _make_private(path: Path) -> None:
    """An empty database that its owner alone may read; SQLite gives its side files the same mode.

    One that exists is not touched: to close a descriptor of it would drop every lock that SQLite holds on it
    in this process, and another process would take away the log under it (sqlite.org/howtocorrupt, 2.2)."""
    try:
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, empty = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
        os.close(descriptor)
        try:
            with suppress(FileExistsError):
                os.link(empty, path)
        finally:
            os.unlink(empty)
    except OSError as error:
        raise LedgerError(f"Cannot open the ledger {path}: {error.strerror}.") from error


def _on_connect(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says, DDL included
    _write_ahead(connection)
    for pragma in ("synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _write_ahead(connection: Any) -> None:
    """SQLite does not wait here as it does elsewhere: of two that open a new database at once, each with a
    read lock that it would raise, one is told at once that the database is locked."""
    until = time.monotonic() + _WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _on_begin(connection: Connection) -> None:
    # A transaction that first reads and then writes would fail where another wrote in between.
    reads = connection.get_execution_options().get("reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def migrate(engine: Engine) -> None:
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
        if _form(connection) == _NEWEST_FORM:
            return
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _form(connection: Connection) -> str:
    if not sa.inspect(connection).has_table("alembic_version"):
        return ""
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() or ""


@contextmanager
def as_ledger_error() -> Iterator[None]:
    try:
        yield
    except (sa.exc.IntegrityError, sa.exc.DataError):
        raise  # our mistake, and not the database's
    except (sa.exc.DatabaseError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        orig = getattr(error, "orig", None)  # none where no connection became free in time
        words = str(orig).splitlines()[0] if orig and str(orig) else "no answer"
        code = "LEDGER_FULL" if "full" in words or "No space" in words else "LEDGER_UNREACHABLE"
        raise LedgerError(
            f"The ledger could not be read or written ({words}); nothing was changed. "
            "Is there space on its disk, and is its server up?",
            code=code,
        ) from None
