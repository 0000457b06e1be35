"""A reader in a child process: what comes back, and what a hostile file can do to the caller."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from dicom_series import CT_CLASS, write_series

from mla_med.dicom.apart import Limits, ReaderError, ReaderProcess, read_apart
from mla_med.dicom.certificate import certify
from mla_med.dicom.study import read_study
from mla_med.dicom.volume import read_volume
from mla_med.errors import MlaMedError, SeriesError, StudyError

HEIGHTS_MM = (0.0, 2.0, 4.0, 6.0)


@pytest.fixture(scope="module")
def reader():
    """One child for the tests that do it no harm."""
    with ReaderProcess() as reader:
        yield reader


def refuse(code: str) -> None:
    raise SeriesError("slice 2 of 4 is missing", code=code)


def raise_name() -> None:
    raise KeyError("Doe^Jane")


def print_names() -> int:
    print("Doe^Jane", flush=True)
    print("Doe^Jane", file=sys.stderr, flush=True)
    os.write(1, b"Doe^Jane")
    os.write(2, b"Doe^Jane")
    return 1


def pid_in_daemon(answers) -> None:
    answers.send(read_apart(os.getpid))


def test_result_is_that_of_the_function(reader):
    assert reader.call(divmod, 17, 5) == (3, 2)


def test_volume_comes_back_equal_in_fortran_order_and_read_only(tmp_path, reader):
    write_series(tmp_path, HEIGHTS_MM)
    series = read_study(tmp_path).series[0]
    volume, here = reader.call(read_volume, series), read_volume(series)
    assert volume.voxels.shape == (6, 8, 4)
    assert np.array_equal(volume.voxels, here.voxels)
    assert volume.voxels.dtype == np.float32
    assert volume.voxels.flags.f_contiguous
    assert not volume.voxels.flags.writeable
    assert not volume.affine.flags.writeable
    assert np.array_equal(volume.affine, here.affine)
    assert (volume.series, volume.certificate) == (here.series, here.certificate)


def test_large_array_arrives_without_a_second_copy_in_either_process():
    script = (
        "import resource, sys; import numpy as np; from mla_med.dicom.apart import ReaderProcess\n"
        "with ReaderProcess() as reader:\n"
        "    reader.call(np.ones, 1)\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "    array = reader.call(np.ones, (2**20, 25))\n"
        "    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "    print(array.sum(), after - before, reader.peak_bytes // 2**20)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    total, grown_mib, child_mib = done.stdout.split()
    assert total == "26214400.0"
    assert int(grown_mib) < 250  # the array has 200 MiB
    assert int(child_mib) < 300


def test_caller_works_on_while_the_child_reads(reader):
    started = time.monotonic()
    pending = reader.start(time.sleep, 0.5)
    assert time.monotonic() - started < 0.4
    assert pending.result() is None
    assert time.monotonic() - started >= 0.5


def test_calls_that_wait_are_answered_in_order_by_one_child(reader):
    pending = [reader.start(os.getpid) for _ in range(3)]
    pids = {call.result() for call in pending}
    assert len(pids) == 1
    assert os.getpid() not in pids


def test_refusal_comes_back_with_class_words_and_code(reader):
    pid = reader.call(os.getpid)
    with pytest.raises(SeriesError, match=r"^slice 2 of 4 is missing$") as caught:
        reader.call(refuse, "MISSING_SLICE")
    assert caught.value.code == "MISSING_SLICE"
    assert reader.call(os.getpid) == pid  # a refusal is no reason for a new child


def test_refusals_of_the_readers_cross_the_border(tmp_path, reader):
    with pytest.raises(StudyError) as caught:
        reader.call(read_study, tmp_path / "nothing")
    assert caught.value.code == "PATH_MISSING"
    write_series(tmp_path, (0.0, 2.0, 6.0, 8.0))
    study = reader.call(read_study, tmp_path)
    with pytest.raises(SeriesError) as refused:
        reader.call(certify, study.series[0])
    assert refused.value.code == "MISSING_SLICE"


def test_unexpected_exception_tells_its_class_and_place_but_not_its_words():
    with ReaderProcess() as reader, pytest.raises(ReaderError) as caught:
        reader.call(raise_name)
    assert caught.value.code == "READER_FAILED"
    assert isinstance(caught.value, MlaMedError)
    assert caught.value.detail.startswith("KeyError at test_apart.py:")
    assert "Doe" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("read", "args", "detail"),
    [
        (signal.raise_signal, (signal.SIGSEGV,), "SIGSEGV"),
        (os.abort, (), "SIGABRT"),
        (os._exit, (3,), "exit 3"),
        (sys.exit, (0,), "exit 0"),
        (signal.raise_signal, (signal.SIGKILL,), "SIGKILL"),
    ],
)
def test_crash_takes_the_child_alone_and_the_next_call_gets_a_new_one(read, args, detail):
    with ReaderProcess() as reader:
        with pytest.raises(ReaderError) as caught:
            reader.call(read, *args)
        assert (caught.value.code, caught.value.detail) == ("READER_CRASHED", detail)
        assert reader.call(abs, -3) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_child_that_is_ended_with_its_service_is_not_the_fault_of_the_study(number):
    with ReaderProcess() as reader, pytest.raises(ReaderError) as caught:
        reader.call(_end_by, number)
    assert caught.value.code == "READER_STOPPED"


def test_a_call_that_is_under_way_when_the_reader_is_closed_was_stopped():
    reader = ReaderProcess()
    pending = reader.start(time.sleep, 60)
    while reader._child is None:
        time.sleep(0.01)
    time.sleep(0.2)
    reader.close()
    with pytest.raises(ReaderError) as caught:
        pending.result(10)
    assert caught.value.code == "READER_STOPPED"


def _end_by(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def test_more_memory_than_allowed_is_refused():
    with ReaderProcess(Limits(memory_bytes=2**30)) as reader:
        with pytest.raises(ReaderError) as caught:
            reader.call(bytes, 2**31)
        assert (caught.value.code, caught.value.detail) == ("READER_OUT_OF_MEMORY", "1 GiB")
        assert len(reader.call(bytes, 10**8)) == 100_000_000


def test_decoder_that_never_returns_ends_at_its_processor_time():
    started = time.monotonic()
    with pytest.raises(ReaderError) as caught:
        read_apart(math.factorial, 10**8, limits=Limits(cpu_s=1))
    assert (caught.value.code, caught.value.detail) == ("READER_TIMEOUT", "1 s of processor time")
    assert time.monotonic() - started < 10


def test_processor_time_is_counted_anew_for_each_call():
    with ReaderProcess(Limits(cpu_s=1)) as reader:
        for _ in range(3):
            assert reader.call(spend, 0.4) >= 0.4


def spend(cpu_s: float) -> float:
    began = time.process_time()
    while time.process_time() - began < cpu_s:
        pass
    return time.process_time() - began


def test_sleeping_child_ends_at_the_wall_time():
    with ReaderProcess(Limits(wall_s=1)) as reader:
        reader.call(abs, 1)
        started = time.monotonic()
        with pytest.raises(ReaderError) as caught:
            reader.call(time.sleep, 60)
        assert (caught.value.code, caught.value.detail) == ("READER_TIMEOUT", "1 s")
        assert 0.9 < time.monotonic() - started < 5
        assert reader.call(abs, -1) == 1


def test_pipe_in_the_place_of_a_file_cannot_stop_the_caller(tmp_path):
    os.mkfifo(tmp_path / "1.dcm")
    with pytest.raises(ReaderError) as caught:
        read_apart(Path.read_bytes, tmp_path / "1.dcm", limits=Limits(wall_s=1))
    assert caught.value.code == "READER_TIMEOUT"
    assert str(tmp_path / "1.dcm") in str(caught.value)


def test_child_writes_no_file_unless_allowed(tmp_path):
    with pytest.raises(ReaderError, match="OSError"):
        read_apart(Path.write_bytes, tmp_path / "a", b"1")
    assert read_apart(Path.write_bytes, tmp_path / "b", bytes(1000), limits=Limits(file_bytes=1000)) == 1000


def test_what_the_child_prints_is_neither_shown_nor_taken_for_an_answer(capfd, reader):
    assert reader.call(print_names) == 1
    assert reader.call(abs, -2) == 2
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")


def test_child_imports_no_more_than_the_function_needs():
    loaded = set(read_apart(eval, "[name for name in __import__('sys').modules]"))
    assert {"numpy", "mla_med.errors"} <= loaded
    assert loaded.isdisjoint({"torch", "monai", "pydicom", "scipy", "typer", "pytest"})


def test_result_that_cannot_travel_is_a_fault_of_the_reader():
    with pytest.raises(ReaderError) as caught:
        read_apart(threading.Lock)
    assert caught.value.code == "READER_FAILED"


def test_closing_ends_a_busy_child_at_once_and_leaves_no_zombie():
    reader = ReaderProcess()
    pid = reader.call(os.getpid)
    pending = reader.start(time.sleep, 60)
    time.sleep(0.2)  # until it sleeps
    started = time.monotonic()
    reader.close()
    assert time.monotonic() - started < 2
    assert pending.exception() is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_no_zombie_is_left_by_any_end():
    pids = []
    for read, args in [(os._exit, (1,)), (int, ("x",)), (time.sleep, (60,)), (bytes, (2**40,))]:
        with ReaderProcess(Limits(wall_s=1)) as reader:
            pids.append(reader.call(os.getpid))
            with pytest.raises(ReaderError):
                reader.call(read, *args)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_busy_child_ends_when_its_parent_is_killed():
    script = (
        "import os, signal, time; from mla_med.dicom.apart import ReaderProcess\n"
        "reader = ReaderProcess(); print(reader.call(os.getpid), flush=True)\n"
        "reader.start(time.sleep, 60); time.sleep(0.2)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    deadline = time.monotonic() + 5
    while (state := state_of(int(done.stdout))) not in ("", "Z") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert state in ("", "Z")  # Z: whoever adopted it has not looked yet


def state_of(pid: int) -> str:
    """R, S, Z, ... (proc(5)), empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def test_script_without_a_main_guard_reads_apart():
    script = "from mla_med.dicom.apart import read_apart\nprint(read_apart(divmod, 7, 2))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(3, 1)\n", "")


def test_function_of_the_script_itself_is_a_mistake_told_early():
    script = "from mla_med.dicom.apart import read_apart\ndef f(): pass\nread_apart(f)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "move it to a module" in done.stderr


def test_daemonic_process_may_have_a_reader():
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    daemon = context.Process(target=pid_in_daemon, args=(theirs,), daemon=True)
    daemon.start()
    assert mine.recv() not in (daemon.pid, os.getpid())
    daemon.join()


def test_python_files_beside_the_study_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "pydicom.py").write_text("raise SystemExit('ran code of a stranger')")
    write_series(tmp_path, HEIGHTS_MM)
    monkeypatch.chdir(tmp_path)
    assert len(read_apart(read_study, tmp_path).series) == 1


def test_deflate_bomb_is_refused_in_two_seconds_within_256_mb(tmp_path):
    write_bomb(tmp_path / "bomb.dcm", inflated_bytes=2**30)
    assert (tmp_path / "bomb.dcm").stat().st_size < 1_200_000
    with ReaderProcess() as reader:
        reader.call(abs, 1)
        started = time.monotonic()
        with pytest.raises(StudyError, match="1 x MALFORMED") as caught:
            reader.call(read_study, tmp_path)
        assert time.monotonic() - started < 2
        assert 0 < reader.peak_bytes < 256_000_000
    assert caught.value.code == "NO_DICOM"


def write_bomb(path: Path, inflated_bytes: int) -> None:
    """A deflated CT image whose pixel data are zeros."""
    # Of a length that needs no padding, so that no NUL ends it.
    meta = element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1.99")
    dataset = element(8, 0x16, b"UI", CT_CLASS.encode())
    dataset += element(8, 0x18, b"UI", b"2.25.30") + element(0x20, 0xD, b"UI", b"2.25.10")
    dataset += element(0x20, 0xE, b"UI", b"2.25.20")
    dataset += struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, inflated_bytes)
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = squeeze.compress(dataset) + squeeze.flush(zlib.Z_FULL_FLUSH)
    # After a full flush blocks stand for themselves: one is made, and repeated.
    zeros = squeeze.compress(bytes(2**20)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    preamble = bytes(128) + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(meta)))
    path.write_bytes(preamble + meta + head + zeros * (inflated_bytes // 2**20) + squeeze.flush())


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value
