"""Empty ledgers for tests: SQLite in a folder, or a PostgreSQL of its own on a Unix socket.

MLA_MED_TEST_LEDGER=postgresql runs every test of delivery on PostgreSQL instead of SQLite.
"""

from __future__ import annotations

import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import pytest
import sqlalchemy as sa

_RUNNING: list[tuple[subprocess.Popen, Path]] = []


def new_ledger_url(kind: str, folder: Path) -> str:
    if kind == "sqlite":
        return f"sqlite:///{folder / (uuid.uuid4().hex + '.db')}"
    socket_folder, name = _postgres(), "t" + uuid.uuid4().hex
    import psycopg

    with psycopg.connect(f"host={socket_folder} user=postgres dbname=postgres", autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
    return f"postgresql+psycopg://postgres@/{name}?host={socket_folder}"


def rows_in(url: str) -> bytes:
    """Everything that stands in a ledger, as far as it can be read."""
    engine = sa.create_engine(url)
    with engine.connect() as c:
        tables = sa.inspect(c).get_table_names()
        rows = [row for table in tables for row in c.execute(sa.text(f"SELECT * FROM {table}"))]
    engine.dispose()
    assert rows
    return b"".join(v if isinstance(v, bytes) else f"{v}\n".encode() for row in rows for v in row)


def default_kind() -> str:
    return os.environ.get("MLA_MED_TEST_LEDGER", "sqlite")


@functools.cache
def _postgres() -> Path:
    """The folder of its socket. Started once, stopped by stop_postgres()."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (the extra pacs)")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not programs:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL does not run as root: the test needs root to become postgres")
    user = pwd.getpwnam("postgres")
    # its files are many, and nobody asks whether they survive
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir=memory))
    os.chown(folder, user.pw_uid, user.pw_gid)
    as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]

    made = subprocess.run(
        [
            *as_user,
            str(programs[-1].parent / "initdb"),
            *("-D", str(folder / "data"), "-A", "trust", "-E", "UTF8", "--locale=C", "-N", "-U", "postgres"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert made.returncode == 0, made.stderr
    server = subprocess.Popen(
        [
            *as_user,
            str(programs[-1]),
            *("-D", str(folder / "data"), "-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
    )
    _RUNNING.append((server, folder))
    for _ in range(100):
        probe = [*as_user, str(programs[-1].parent / "pg_isready"), "-h", str(folder)]
        if subprocess.run(probe, capture_output=True, check=False, cwd=folder).returncode == 0:
            break
        time.sleep(0.1)
    return folder


def stop_postgres() -> None:
    for server, folder in _RUNNING:
        server.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
        server.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
    _RUNNING.clear()
    _postgres.cache_clear()
