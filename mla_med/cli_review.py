"""`mla-med review`: the radiologist's page, its readers, and what is learned from it. One verb, a few lines.

Passwords are asked for, or read from standard input; no verb takes one as an argument, as every user of a
machine can list those.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mla_med.cli_pacs import SITE, LogLevel, SettingsFile, _start_logging
from mla_med.console import out
from mla_med.errors import ConfigError

if TYPE_CHECKING:
    from mla_med.review.store import Store

review = typer.Typer(
    help="A page on which radiologists see drafts, change them, accept or reject.",
    pretty_exceptions_enable=False,
)
user = typer.Typer(help="Who may sign in with a password.", no_args_is_help=True)
review.add_typer(user, name="user")


@review.callback(invoke_without_command=True)
def serve(
    context: typer.Context, settings_file: SettingsFile = SITE, log_level: LogLevel = "warning"
) -> None:
    """Serve the page until interrupted; on 127.0.0.1:8471, unless [review] says otherwise."""
    if context.invoked_subcommand is not None:
        return
    _start_logging(log_level)
    _check_installed()
    from mla_med.review.run import serve as run
    from mla_med.review.settings import read_review

    settings = read_review(settings_file)
    scheme = "https" if settings.cert_file else "http"
    out.print(f"{scheme}://{settings.host}:{settings.port}")
    run(settings_file)


@user.command(name="add")
def add(
    name: Annotated[str, typer.Argument(help="To sign in with: letters, digits and . _ @ -")],
    role: Annotated[str, typer.Option(help="reader or admin.")] = "reader",
    display: Annotated[
        str, typer.Option(help="Family^Given, as the revisions name the reviewer; asked for if not given.")
    ] = "",
    settings_file: SettingsFile = SITE,
) -> None:
    """A reader, or a new password and role for one. Asks for the password, or reads a line."""
    _check_installed()
    from mla_med.review.sign_in import check_new_user

    is_person = sys.stdin.isatty()
    display = display or (typer.prompt("Family^Given") if is_person else "")
    if is_person:
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    else:
        password = sys.stdin.readline().rstrip("\n")
    secret = check_new_user(name, display, role, password)
    _store(settings_file).add_user(name, display, role, secret)
    out.print(f"{name} signs in as {role}.")


@user.command(name="disable")
def disable(name: str, settings_file: SettingsFile = SITE) -> None:
    """Shut a reader out, at once."""
    _store(settings_file).disable_user(name, "command")
    out.print(f"{name} comes in no more.")


@user.command(name="list")
def list_(settings_file: SettingsFile = SITE) -> None:
    """Readers of this site's own list."""
    for one in _store(settings_file).users():
        out.print(f"{one.name:24} {one.role:8} {'shut out' if one.disabled else one.display}")


@review.command()
def recalibrate(
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A checkpoint folder of the site, as in [night] checkpoint; it is changed."),
    ] = None,
    copy_to: Annotated[
        Path | None, typer.Option("--out", help="Copy a packaged checkpoint there first, and change that.")
    ] = None,
    examination: Annotated[str, typer.Option(help="Of the packaged checkpoint: chest_ct, brain_mr.")] = (
        "chest_ct"
    ),
    undo: Annotated[bool, typer.Option("--undo", help="Take the last one back, to the byte.")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Say what would move, and change nothing.")] = False,
    settings_file: SettingsFile = SITE,
) -> None:
    """Move the thresholds of a checkpoint by what reviewers kept, removed and added of its drafts. Decisions
    about other weights do not count."""
    from mla_med.review import learning

    folder = _checkpoint(checkpoint, copy_to, examination, settings_file)
    if undo:
        learning.undo_recalibration(folder)
        out.print(f"{folder} is what it was before.")
        return
    from mla_med.model.checkpoint import checkpoint_digest

    store = _store(settings_file)
    rows = store.outcomes_of(checkpoint_digest(folder))
    if dry:
        shifts = learning.recalibrated(learning.read_calibration(folder), rows)[1]
    else:
        if copy_to is not None:
            folder = learning.own_copy(folder, copy_to)
        shifts = learning.recalibrate(folder, rows)
        store.log("command", "RECALIBRATED", detail=f"{len(shifts)} findings")
    for one in shifts:
        out.print(
            f"{one.code:28} {one.decisions:5} decisions, {one.removed} removed, {one.added} added: "
            f"{one.threshold:.3f} -> {one.moved_to:.3f}"
        )
    if not shifts:
        out.print(
            f"Nothing moves: no finding has {learning.MIN_DECISIONS} decisions about drafts of these weights."
        )


@review.command()
def audit(
    job: Annotated[str, typer.Option(help="A job's id.")] = "",
    who: Annotated[str, typer.Option(help="A reader's name.")] = "",
    limit: Annotated[int, typer.Option(min=1)] = 100,
    settings_file: SettingsFile = SITE,
) -> None:
    """Who saw and did what, the newest first."""
    from datetime import UTC, datetime

    for row in _store(settings_file).audit_rows(job, who, limit=limit):
        when = datetime.fromtimestamp(row["at"], UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        out.print(
            f"{when} {row['who']:24} {row['action']:16} {row['job_id'][:12]:12} {row['detail']}".rstrip()
        )


def _checkpoint(given: Path | None, copy_to: Path | None, examination: str, settings_file: Path) -> Path:
    from mla_med.night.settings import read_night

    if given is not None:
        return given
    if copy_to is not None:
        packaged = Path(__file__).parent / "checkpoints" / examination
        if not packaged.is_dir():
            raise ConfigError(f"No checkpoint for {examination!r} comes with the package.")
        return packaged
    if configured := read_night(settings_file).checkpoint:
        return Path(configured)
    raise ConfigError(
        "The packaged checkpoints are not changed: give --checkpoint FOLDER, or --out FOLDER for a copy of "
        "the packaged one, and then set checkpoint in [night] to it."
    )


def _store(settings_file: Path) -> Store:
    from mla_med.ledger.ledger import Ledger
    from mla_med.pacs.settings import read_ledger_secret, read_settings
    from mla_med.review.store import Store

    settings = read_settings(settings_file)
    secret = read_ledger_secret(settings)
    Ledger.open(settings.ledger_url, secret).close()  # that the key is the ledger's is seen there
    return Store.open(settings.ledger_url, secret)


def _check_installed() -> None:
    from importlib.util import find_spec

    needed = {
        "fastapi": "fastapi",
        "uvicorn": "uvicorn",
        "argon2": "argon2-cffi",
        "multipart": "python-multipart",
    }
    needed["itsdangerous"] = "itsdangerous"
    if missing := [package for module, package in needed.items() if find_spec(module) is None]:
        raise ConfigError(
            f"The page needs {', '.join(missing)}: pip install 'mla_med[review]'.", code="LIBRARY_MISSING"
        )
