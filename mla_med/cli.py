"""`mla-med`: one verb, a few lines. The front door: it may call every floor, nothing calls it.

Heavy imports stand inside the verbs, so that --help is instant.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mla_med.errors import MlaMedError, OutputError

app = typer.Typer(
    name="mla-med",
    help="A CT or MR study in DICOM goes in; a structured draft report comes out, every sentence with its "
    "evidence, or a refusal that says why. Research software, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False, soft_wrap=True, markup=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

Out = Annotated[Path, typer.Option("--out", help="Folder for the results; made if missing.")]
Checkpoint = Annotated[
    Path | None, typer.Option("--checkpoint", help="A checkpoint folder; the packaged one by default.")
]


def main() -> None:
    """The entry point: an error that a user can cause is one line and exit code 1."""
    _keep_libraries_quiet()
    try:
        app(standalone_mode=True)
    except MlaMedError as error:
        err.print(f"{error.code}: {error}")
        sys.exit(1)
    except ModuleNotFoundError as error:
        err.print(
            f"PACKAGE_MISSING: this verb needs the package {error.name}. "
            "Install the extras: pip install -c constraints.txt -e '.[all]'; mla-med doctor says more."
        )
        sys.exit(1)
    except OSError as error:
        # a disk that fills up under a library that writes for us
        err.print(
            f"{OutputError.code}: {error.strerror or error}: {error.filename or 'a file'}.", markup=False
        )
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("INTERRUPTED: stopped; run the same command again to go on.")
        sys.exit(130)


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="A study: a folder of DICOM files.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    examination: Annotated[str, typer.Option(help="For which the series is chosen.")] = "chest_ct",
) -> None:
    """Say of every series whether it can be read, with its geometry or the reason, and which is chosen."""
    from mla_med.dicom.select import choose_series
    from mla_med.dicom.study import read_study

    study = read_study(folder)
    verdicts = choose_series(study, examination)
    if as_json:
        print(json.dumps(_inspection(study, verdicts), indent=1))
        return
    out.print(_series_table(verdicts))
    for problem in study.problems:
        out.print(f"{problem.code}: {problem.words}", style="dim")


@app.command()
def draft(
    folder: Annotated[Path, typer.Argument(help="A study: a folder of DICOM files.")],
    to: Out,
    checkpoint: Checkpoint = None,
) -> None:
    """Draft a report of a study, or refuse with a reason: draft.json, .txt, .html and .dcm (SR)."""
    from mla_med.documents.text import draft_to_text

    with err.status("starting") as status:
        from mla_med.drafting import draft_folder

        made, files = draft_folder(folder, to, checkpoint, status.update)
    out.print(draft_to_text(made))
    _print_files(files)


@app.command()
def phantom(
    to: Out,
    seed: Annotated[int, typer.Option(min=0, help="Which patient; the same seed gives the same bytes.")] = 1,
    finding: Annotated[
        list[str] | None,
        typer.Option(help="A finding to plant, again for each; without any the seed chooses."),
    ] = None,
    matrix: Annotated[int, typer.Option(min=64, max=512, help="Rows and columns.")] = 256,
    slice_mm: Annotated[float, typer.Option(min=0.5, max=10, help="Distance between slices.")] = 3.0,
) -> None:
    """Make a chest CT of a person who does not exist, as a DICOM series, with its report and its truth."""
    from mla_med.errors import ConfigError
    from mla_med.files import write_text
    from mla_med.phantom.cohort import make_phantom, truth_of, write_phantom
    from mla_med.report.render import report_text
    from mla_med.report.schema import CHEST_CT

    unknown = sorted(set(finding or ()) - set(CHEST_CT))
    if unknown:
        raise ConfigError(f"No finding '{unknown[0]}' can be planted; there are: {', '.join(CHEST_CT)}.")
    made = make_phantom(seed, tuple(c for c in CHEST_CT if c in finding) if finding else None)
    with err.status("scanning the phantom"):
        series = write_phantom(made, to / "dicom", (384 / matrix, 384 / matrix, slice_mm), matrix)
    write_text(to / "report.txt", report_text(made.report) + "\n")
    write_text(to / "truth.json", json.dumps(truth_of(made), indent=1) + "\n")
    out.print(report_text(made.report))
    _print_files([series, to / "report.txt", to / "truth.json"])


@app.command()
def evaluate(
    references: Annotated[Path, typer.Argument(help='JSON lines {"id": ..., "report": ...}.')],
    drafts: Annotated[Path, typer.Argument(help="JSON lines with the same ids.")],
    to: Out,
    allow_missing: Annotated[bool, typer.Option(help="Score a missing draft as an empty one.")] = False,
) -> None:
    """Score drafts beside the floors that any model must beat: metrics.json, table.md, page.html."""
    from evaluation.page import to_markdown
    from evaluation.run import evaluate_reports

    with err.status("scoring"):
        scores = evaluate_reports(references, drafts, to, allow_missing=allow_missing)
    out.print(to_markdown(scores))
    _print_files(sorted(to.iterdir()))


@app.command()
def demo(
    to: Out = Path("out/demo"),
    train: Annotated[
        bool, typer.Option("--train", help="Walk corpus, training, drafting and scoring too.")
    ] = False,
    phantoms: Annotated[int, typer.Option(min=2, max=200, help="Phantoms to score on.")] = 12,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draft them.")] = 1,
) -> None:
    """Everything once: a phantom drafted, a real series refused, scores beside the floors."""
    from mla_med.demo import run_demo, train_demo

    if train:
        train_demo(to, err)
    else:
        run_demo(to, phantoms, workers, out, err)


@app.command()
def doctor() -> None:
    """Say what is installed, what is missing, and how to get it. Exit code 1 if something required is."""
    from mla_med.doctor import examine

    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "found", "what it is for, or how to get it"):
        table.add_column(column)
    rows = examine()
    for row in rows:
        table.add_row(row.mark, row.name, row.found, row.words)
    out.print(table)
    if any(row.required and row.missing for row in rows):
        raise typer.Exit(1)


def _inspection(study, verdicts) -> dict[str, Any]:
    """What `inspect --json` prints."""
    return {
        "study_uid": study.study_uid,
        "series": [
            {
                "series_uid": v.series.series_uid,
                "modality": v.series.modality,
                "description": v.series.description,
                "instances": len(v.series.instances),
                "accepted": v.accepted,
                "reason": None if v.reason is None else {"code": v.reason.code, "words": v.reason.words},
                "chosen": v.chosen,
                "shape": v.certificate and list(v.certificate.shape),
                "spacing_mm": v.certificate and list(v.certificate.spacing_mm),
                "affine": v.certificate and [list(row) for row in v.certificate.affine],
                "orientation": v.certificate and v.certificate.orientation,
                "tilt_deg": v.certificate and v.certificate.tilt_deg,
                "duplicates_dropped": v.certificate and v.certificate.duplicates_dropped,
                "notes": list(v.certificate.notes) if v.certificate else [],
            }
            for v in verdicts
        ],
        "problems": [{"code": p.code, "words": p.words} for p in study.problems],
    }


def _series_table(verdicts) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("", "series", "modality", "images", "shape", "spacing mm"):
        table.add_column(column, no_wrap=True, max_width=24)
    table.add_column("verdict", overflow="fold", min_width=36)
    for v in verdicts:
        c = v.certificate
        words = "chosen" if v.chosen else f"{v.reason.code}: {v.reason.words}" if v.reason else "accepted"
        words = words.replace(v.series.series_uid, "…" + v.series.series_uid[-6:])
        table.add_row(
            "*" if v.chosen else "+" if c else "-",
            v.series.description or "…" + v.series.series_uid[-12:],
            v.series.modality,
            str(len(v.series.instances)),
            " x ".join(map(str, c.shape)) if c else "",
            " x ".join(f"{s:.4g}" for s in c.spacing_mm) if c else "",
            words,
        )
    return table


def _print_files(files) -> None:
    for path in files:
        out.print(str(path))


def _keep_libraries_quiet() -> None:
    """Libraries warn with header values in the text, and no hub is ever asked for anything."""
    warnings.filterwarnings("ignore")
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    main()
