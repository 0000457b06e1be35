"""Where the verbs write: results to stdout and into a folder, progress and what failed to stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

out = Console(highlight=False, soft_wrap=True, markup=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
Out = Annotated[Path, typer.Option("--out", help="Folder for the results; made if missing.")]


SAY_S = 60.0


@contextmanager
def say_steps(first: str) -> Iterator[Callable[[str], None]]:
    """Call what it yields with what is done now. On the last line of a terminal; into a file or a service's
    log a line at each new step, and once a minute of one that is counted, `step: 3 of 9`."""
    if err.is_terminal:
        with err.status(first) as status:
            yield status.update
        return
    last, said_s = "", 0.0

    def say(words: str) -> None:
        nonlocal last, said_s
        step, now_s = words.partition(":")[0], time.monotonic()
        if step != last or now_s - said_s >= SAY_S:
            err.print(words)
            last, said_s = step, now_s

    say(first)
    yield say


def print_files(files: Iterable[Path]) -> None:
    for path in files:
        out.print(str(path))


def progress_bar():
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err)
