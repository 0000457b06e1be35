"""The fuzzer: its mutants follow from the seed, the readers survive them, and it sees what is planted."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import time
import zlib
from pathlib import Path

import pydicom
import pytest

from evaluation.fuzz import (
    MUTATIONS_BY_NAME,
    Reading,
    elements,
    find_sources,
    fuzz,
    main,
    make_mutant,
    nest_sequences,
    packaged_files,
    read_everything,
    set_value,
)

SLICES = packaged_files() / "dicomdirtests" / "98892001" / "CT5N"
"""Five slices of a real CT, 2 kB each."""


@pytest.fixture(scope="module")
def sources():
    return find_sources([SLICES])


@pytest.fixture(scope="module")
def slice_bytes() -> bytes:
    return (SLICES / "2062").read_bytes()


def raise_name(path: Path) -> Reading:
    raise KeyError("Doe^Jane")


def hang(path: Path) -> Reading:
    time.sleep(60)
    return Reading(0, ())


def crash(path: Path) -> Reading:
    os.kill(os.getpid(), signal.SIGSEGV)
    return Reading(0, ())


def eat_memory(path: Path) -> Reading:
    return Reading(len(bytes(2**34)), ())


def escape(path: Path) -> Reading:
    (path.parent / "escaped").touch()
    return Reading(1, ())


def facts(path: Path) -> dict:
    """Without what depends on the clock and on the machine."""
    return {k: v for k, v in json.loads(path.read_text()).items() if k not in ("slowest", "hungriest")}


def test_sixty_mutants_of_real_slices_harm_nobody_and_are_the_same_again(tmp_path, capsys):
    call = [str(SLICES), "--mutations", "60", "--seed", "4"]
    assert main([*call, "--out", str(tmp_path / "once.json")]) == 0
    assert main([*call, "--out", str(tmp_path / "again.json"), "--workers", "1"]) == 0
    once, again = facts(tmp_path / "once.json"), facts(tmp_path / "again.json")
    assert once == again
    assert once["faults"] == []
    assert once["mutations"] == 60
    assert once["results"]["ACCEPTED"] + once["results"]["REFUSED"] == 60
    assert min(once["results"].values()) > 5
    assert str(tmp_path) not in (tmp_path / "once.json").read_text()
    assert "60 mutants in" in capsys.readouterr().out


def test_another_seed_makes_other_mutants(sources):
    one, other = make_mutant(sources, 1, 0), make_mutant(sources, 2, 0)
    assert one == make_mutant(sources, 1, 0)
    assert one.files != other.files


def test_sources_are_real_series_where_they_are_sound_and_clones_besides(sources):
    assert {len(source.kin) for source in sources} == {4}
    cloned = [source.name for source in sources if isinstance(source.kin[0], bytes)]
    real = [source.name for source in sources if isinstance(source.kin[0], Path)]
    assert real == ["2062", "2392", "2693", "3023", "3353"]
    assert cloned == ["3353"]  # the lowest slice stands for all


@pytest.mark.parametrize(
    ("read", "fault"),
    [
        (raise_name, "UNCAUGHT KeyError at test_fuzz.py:"),
        (hang, "HANG 1 s"),
        (crash, "CRASH SIGSEGV"),
        (eat_memory, "MEMORY 3 GiB"),
        (escape, "ESCAPED something was written outside the study"),
    ],
)
def test_a_fault_in_a_reader_is_reported_with_its_number(read, fault, capsys):
    # only a reader that hangs should wait for its time to be over, on a busy machine too
    seconds = "1" if read is hang else "30"
    assert main([str(SLICES), "--mutations", "2", "--timeout", seconds], read=read) == 1
    shown = capsys.readouterr().out
    assert fault in shown
    assert "2 times, first number 0" in shown
    assert "Doe" not in shown


def test_kept_mutant_is_made_again_from_its_number(tmp_path, sources):
    (outcome,) = fuzz(sources, 1, 8, workers=1, read=crash, keep=tmp_path)
    assert (outcome.index, outcome.result, outcome.codes) == (0, "CRASH", ("READER_CRASHED",))
    kept = {path.name: path.read_bytes() for path in (tmp_path / "0").iterdir()}
    assert kept == make_mutant(sources, 8, 0).files


def test_one_mutant_alone_shows_where_an_exception_came_from(capsys):
    with pytest.raises(KeyError):
        main([str(SLICES), "--only", "5"], read=raise_name)
    assert "5: " in capsys.readouterr().out


def test_untouched_series_is_a_volume(tmp_path, sources):
    for number, file in enumerate(sources[0].kin):
        (tmp_path / f"{number}.dcm").write_bytes(file.read_bytes())
    assert read_everything(tmp_path) == Reading(1, ())


def test_folder_without_dicom_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("nothing")
    assert main([str(tmp_path), "--mutations", "1"]) == 1
    assert capsys.readouterr().err.startswith("CONFIG_INVALID: No DICOM file below")


def test_elements_are_found_where_pydicom_finds_them(slice_bytes):
    dataset = pydicom.dcmread(SLICES / "2062")
    expected = [element.tag for element in dataset.file_meta] + [element.tag for element in dataset]
    found = elements(slice_bytes)
    assert [element.tag for element in found if not element.nested] == expected
    assert found[-1].end == len(slice_bytes)


def test_value_is_set_in_place_or_put_in_where_it_belongs(slice_bytes, tmp_path):
    changed = set_value(slice_bytes, "Rows", b"US", struct.pack("<H", 65535))
    changed = set_value(changed, "NumberOfFrames", b"IS", b"2147483648")
    (tmp_path / "1").write_bytes(changed)
    dataset = pydicom.dcmread(tmp_path / "1")
    assert (dataset.Rows, dataset.NumberOfFrames) == (65535, 2147483648)
    assert [element.tag for element in dataset] == sorted(element.tag for element in dataset)
    assert len(changed) == len(slice_bytes) + 18


def test_nested_sequences_go_twenty_thousand_deep(slice_bytes):
    deepest = max(nest_sequences(slice_bytes, random.Random(k)).count(b"\xfe\xff\x00\xe0") for k in range(20))
    assert deepest >= 20_000


def test_bomb_of_a_megabyte_inflates_to_more_than_two_hundred(slice_bytes):
    bomb = MUTATIONS_BY_NAME["deflate_bomb"](slice_bytes, random.Random(1))
    assert len(bomb) < 1_200_000
    head = [element for element in elements(bomb) if element.tag >> 16 == 2]
    inflater, size = zlib.decompressobj(-15), 0
    rest = bomb[head[-1].end :]
    while rest and size < 200 * 2**20:
        size += len(inflater.decompress(rest, 2**24))
        rest = inflater.unconsumed_tail
    assert size >= 200 * 2**20


@pytest.mark.parametrize("name", MUTATIONS_BY_NAME)
def test_every_mutation_changes_something_and_is_the_same_again(name, slice_bytes):
    mutation = MUTATIONS_BY_NAME[name]
    changed = [mutation(slice_bytes, random.Random(k)) for k in range(6)]
    assert any(data != slice_bytes for data in changed)
    assert changed[0] == mutation(slice_bytes, random.Random(0))
    assert isinstance(mutation(b"", random.Random(1)), bytes)  # what another mutation left
