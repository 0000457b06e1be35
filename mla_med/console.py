"""Where the verbs write: results to stdout and into a folder, progress and what failed to stderr."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

out = Console(highlight=False, soft_wrap=True, markup=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
Out = Annotated[Path, typer.Option("--out", help="Folder for the results; made if missing.")]


def print_files(files: Iterable[Path]) -> None:
    for path in files:
        out.print(str(path))


def progress_bar():
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err)
