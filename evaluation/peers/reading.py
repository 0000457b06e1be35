"""`python -m evaluation.peers.reading DIR...`: what our reader and six others make of the same series.

Every reader runs in its own process, one after the other, the order rotated from repeat to repeat. A
folder is read as it stands; one that holds no image is descended into. `--synthetic 512x512x300` times
all of them on a CT of known truth. Compares; decides nothing, and changes nothing that it reads.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from evaluation.peers.compare import Case, difference, explain, to_frame, to_grids
from evaluation.peers.facts import SeriesFacts, read_facts
from evaluation.peers.page import tables_to_markdown, timings_to_markdown, to_json_value
from evaluation.peers.run import OURS, TIMEOUT_S, Reader, Run, State, default_readers, run_reader
from evaluation.peers.synthetic import SYNTAXES, Grid, Timing, truth, write_ct
from evaluation.peers.tables import Row, Table, median_cost, to_tables
from mla_med.errors import ConfigError, MlaMedError, OutputError

WARM_UP_SHAPE = (64, 64, 4)


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        readers = choose_readers(given.readers)
        tables: list[Table] = []
        timings: list[Timing] = []
        versions: dict[str, str] = {}
        if given.folders:
            tables, versions = read_folders(given.folders, readers, given.repeat, given.timeout)
            print(tables_to_markdown(tables, versions))
        if given.synthetic:
            shape, syntaxes = _shape(given.synthetic), _syntaxes(given.syntax)
            for syntax in syntaxes:
                timings.append(time_readers(shape, syntax, readers, given.repeat, given.timeout))
                print(timings_to_markdown(timings[-1:]))
        if not (given.folders or given.synthetic):
            raise ConfigError("Nothing to read. Give folders with DICOM series, or --synthetic 512x512x300.")
        if given.out:
            _write_json(given.out, tables, timings, versions)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.peers.reading", description="Our reader beside others, on the same series."
    )
    parser.add_argument("folders", type=Path, nargs="*", metavar="DIR", help="folders with DICOM series")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each reader (%(default)s)")
    parser.add_argument("--readers", help=f"some of: {', '.join(r.name for r in default_readers())}")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds for one run (%(default)s)")
    parser.add_argument("--synthetic", metavar="COLUMNSxROWSxSLICES", help="time all on a CT of this size")
    parser.add_argument("--syntax", default="raw", help=f"some of: {','.join(SYNTAXES)} (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="the same as JSON")
    return parser


def choose_readers(names: str | None) -> tuple[Reader, ...]:
    """All, or those named, in the order of the whole list."""
    readers = default_readers()
    if names is None:
        return readers
    wanted = [name.strip().lower() for name in names.split(",")]
    unknown = set(wanted) - {reader.name.lower() for reader in readers}
    if unknown:
        raise ConfigError(
            f"No reader {', '.join(sorted(unknown))}. Known are {', '.join(r.name for r in readers)}.",
            code="UNKNOWN_READER",
        )
    return tuple(reader for reader in readers if reader.name.lower() in wanted)


def read_folders(
    folders: Sequence[Path], readers: Sequence[Reader], repeat: int = 1, timeout_s: float = TIMEOUT_S
) -> tuple[list[Table], dict[str, str]]:
    """A table for each series under the folders, and the versions of the readers that ran."""
    tables: list[Table] = []
    versions = {reader.name: "" for reader in readers}
    with tempfile.TemporaryDirectory() as scratch:
        warm_up = write_ct(Path(scratch) / "warm-up", WARM_UP_SHAPE)
        for folder, facts, name in _series_folders(folders):
            print(f"{name} ...", file=sys.stderr, flush=True)
            work = Path(scratch) / "runs"
            runs = run_all(readers, folder, work, warm_up, repeat, timeout_s)
            tables += to_tables(folder, name, facts, runs)
            versions |= {repeats[0].reader: repeats[0].version for repeats in runs if repeats[0].version}
            shutil.rmtree(work)
    if not tables:
        raise ConfigError(f"No DICOM image under {', '.join(map(str, folders))}. Give folders with series.")
    return tables, versions


def _series_folders(folders: Sequence[Path]) -> Iterator[tuple[Path, tuple[SeriesFacts, ...], str]]:
    """Every folder that holds images itself, what its headers say, and its name below the given one."""
    for top in folders:
        if not top.is_dir():
            raise ConfigError(
                f"{top} is no folder. Give the folder that holds a series.", code="PATH_MISSING"
            )
        for folder in sorted([top, *(path for path in top.rglob("*") if path.is_dir())]):
            facts, name = read_facts(folder), str(Path(top.resolve().name) / folder.relative_to(top))
            if facts:
                yield folder, facts, name
            elif any(path.is_file() for path in folder.iterdir()):
                print(f"{name}: no DICOM image among its files", file=sys.stderr)


def run_all(
    readers: Sequence[Reader],
    folder: Path,
    work: Path,
    warm_up: Path,
    repeat: int = 1,
    timeout_s: float = TIMEOUT_S,
) -> list[list[Run]]:
    """For each reader its repeats. Runs are interleaved, and who comes first changes."""
    _read_once(folder)
    runs: list[list[Run]] = [[] for _ in readers]
    for number in range(repeat):
        for turn in range(len(readers)):
            index = (turn + number) % len(readers)
            if runs[index] and runs[index][0].state is not State.READ:
                continue
            out = work / f"{index}-{number}"
            runs[index].append(run_reader(readers[index], folder, out, warm_up, timeout_s))
            if number:
                shutil.rmtree(out)
    return runs


def _read_once(folder: Path) -> None:
    """So that nobody pays for the disk alone."""
    for path in folder.iterdir():
        if path.is_file():
            path.read_bytes()


def time_readers(
    shape: tuple[int, int, int],
    syntax: str,
    readers: Sequence[Reader],
    repeat: int = 1,
    timeout_s: float = TIMEOUT_S,
) -> Timing:
    """All readers on one synthetic CT, compared with its truth."""
    with tempfile.TemporaryDirectory() as scratch:
        print(f"Writing {'x'.join(map(str, shape))} as {syntax} ...", file=sys.stderr, flush=True)
        folder = write_ct(Path(scratch) / "series", shape, syntax)
        warm_up = write_ct(Path(scratch) / "warm-up", WARM_UP_SHAPE, syntax)
        runs = run_all(readers, folder, Path(scratch) / "runs", warm_up, repeat, timeout_s)
        target = to_frame(truth(shape, Path(scratch) / "truth.npy"))
        facts = read_facts(folder)
        rows = tuple(_timing_row(repeats, target, facts) for repeats in runs)
    return Timing(syntax, shape, repeat, rows, _ratios(runs))


def _timing_row(repeats: Sequence[Run], target: Grid, facts: tuple[SeriesFacts, ...]) -> Row:
    run, cost = repeats[0], median_cost(repeats)
    if run.state is not State.READ:
        return Row(run.reader, run.state.value, run.words)
    if not run.found:
        return Row(run.reader, "refused", "; ".join(r.words for r in run.refused), cost=cost)
    found = run.found[0]
    grid = to_frame(to_grids(found.voxels(), found.affine)[0], target)
    gap = difference(target, grid)
    return Row(
        run.reader,
        "accepted",
        shape=grid.shape,
        spacing_mm=grid.spacing_mm,
        gap=gap,
        why=explain(Case(grid, target, gap, facts[0], facts)),
        cost=cost,
    )


def _ratios(runs: Sequence[Sequence[Run]]) -> dict[str, tuple[float, ...]]:
    ours = next((repeats for repeats in runs if repeats[0].reader == OURS), ())
    return {
        repeats[0].reader: tuple(
            a.cost.wall_s / b.cost.wall_s
            for a, b in zip(ours, repeats, strict=False)
            if a.cost is not None and b.cost is not None
        )
        for repeats in runs
    }


def _shape(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if match is None or min(map(int, match.groups())) < 4:
        raise ConfigError(f"{text} is no size. Write columns x rows x slices, each 4 or more: 512x512x300.")
    columns, rows, slices = map(int, match.groups())
    return columns, rows, slices


def _syntaxes(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in SYNTAXES]
    if unknown:
        raise ConfigError(f"No syntax {', '.join(unknown)}. Known are {', '.join(SYNTAXES)}.")
    return names


def _write_json(path: Path, tables: Sequence[Table], timings: Sequence[Timing], versions: dict) -> None:
    content = {
        "versions": versions,
        "tables": [to_json_value(table) for table in tables],
        "timings": [to_json_value(timing) for timing in timings],
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror}.") from error


if __name__ == "__main__":
    sys.exit(main())
