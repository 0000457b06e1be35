"""Secrets in files."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mla_med.errors import ConfigError
from mla_med.secret import read_secret


def test_a_secret_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "key"
    assert len(read_secret(path, make=True)) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600") as caught:
        read_secret(path)
    assert caught.value.code == "SECRET_EXPOSED"


def test_of_two_that_make_the_secret_at_once_both_read_the_same_whole_one(tmp_path):
    """Two nights that start together on an empty machine: neither meets half a key, nor one that exists."""
    for round_ in range(20):
        path = tmp_path / f"new-{round_}" / "key"
        together = threading.Barrier(8, timeout=60)

        def read(path: Path = path, together: threading.Barrier = together) -> bytes:
            together.wait()
            return read_secret(path, make=True)

        with ThreadPoolExecutor(8) as pool:
            read_by = [task.result() for task in [pool.submit(read) for _ in range(8)]]
        assert len(read_by[0]) == 32
        assert set(read_by) == {path.read_bytes()}
        assert [each.name for each in path.parent.iterdir()] == ["key"]
