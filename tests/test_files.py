"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mla_med.files import write_json, write_text
from mla_med.secret import read_secret


def test_of_two_that_write_a_file_at_once_each_reads_a_whole_one(tmp_path):
    path, texts = tmp_path / "x.txt", ["a" * 300_000, "b" * 300_000]

    def write(text: str) -> None:
        for _ in range(100):
            write_text(path, text)
            assert path.read_text() in texts

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, texts))
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_encoded_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"share": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half of a pair: \ud800")
    assert path.read_text() == '{\n "share": null\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_has_the_mode_that_the_process_gives_its_files(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "x.txt", "for the group")
    finally:
        os.umask(before)
    assert (tmp_path / "x.txt").stat().st_mode & 0o777 == 0o640


def test_the_name_of_a_new_secret_survives_a_power_cut(tmp_path, monkeypatch):
    """As far as a test can see it: the folder is synced after the file got its name."""
    synced, real = [], os.fsync

    def fsync(descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((place, (tmp_path / "key").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    read_secret(tmp_path / "key", make=True)
    assert synced[-1] == (tmp_path, True)
