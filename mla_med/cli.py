"""`mla-med`: one verb, a few lines. The front door: it may call every floor, nothing calls it.

Heavy imports stand inside the verbs, so that --help is instant.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mla_med import cli_adapt, cli_draft, cli_model, cli_night, cli_pacs, cli_phantom, cli_review
from mla_med.cli_draft import Source
from mla_med.console import Out, err, out, print_files
from mla_med.errors import MlaMedError, OutputError

app = typer.Typer(
    name="mla-med",
    help="A CT or MR study in DICOM goes in; a structured draft report comes out, every sentence with its "
    "evidence, or a refusal that says why. Research software, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_pacs.pacs, name="pacs")
app.add_typer(cli_pacs.ledger, name="ledger")
app.add_typer(cli_night.night, name="night")
app.command()(cli_night.serve)
app.add_typer(cli_review.review, name="review")
app.command()(cli_adapt.adapt)
app.command(context_settings=cli_adapt.PASSED_ON, add_help_option=False)(cli_adapt.corpus)
app.command()(cli_adapt.annotate_next)
app.command()(cli_draft.draft)
app.command()(cli_model.export)
app.command()(cli_model.prune)
app.add_typer(cli_phantom.phantoms, name="phantom")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        out.print(f"mla_med {version('mla_med')}")
        raise typer.Exit


@app.callback()
def _begin(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version.")
    ] = False,
) -> None:
    pass


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
    path: Source,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
    examination: Annotated[str, typer.Option(help="For which the series are chosen.")] = "chest_ct",
    rules: Annotated[
        Path | None,
        typer.Option(help="A TOML file with a site's own examinations; see docs/examinations.md."),
    ] = None,
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Certify the geometry alone; read no pixels.")
    ] = False,
    resample: Annotated[
        bool, typer.Option("--resample", help="Accept uneven slices, which are then interpolated.")
    ] = False,
) -> None:
    """Say of every series whether it can be read, with its certificate or the reason, and which is chosen."""
    from mla_med.dicom.apart import ReaderProcess
    from mla_med.dicom.select import load_examinations
    from mla_med.inspection import inspect_path, inspection_to_json

    found = []
    with err.status("starting") as status, ReaderProcess() as reader:
        for inspection in inspect_path(
            path,
            examination,
            rules=load_examinations(rules) if rules else None,
            pixels=not headers_only,
            resample=resample,
            call=reader.call,
            progress=status.update,
        ):
            found.append(inspection)
            if not as_json:
                _print_inspection(inspection)
    if as_json:
        print(json.dumps({"studies": [inspection_to_json(i) for i in found]}, indent=1))
    elif len(found) > 1:
        out.print(f"{sum(bool(i.study.study_uid) for i in found)} studies")


@app.command()
def deidentify(
    source: Annotated[Path, typer.Argument(help="A folder, file or ZIP archive of DICOM images.")],
    to: Out,
    key_file: Annotated[
        Path,
        typer.Option(
            help="At least 16 random bytes. The same key gives the same pseudonyms; who has it can link "
            "them. Made if missing."
        ),
    ],
    keep_dates: Annotated[
        bool, typer.Option("--keep-dates", help="Keep dates, moved by one secret number of days a patient.")
    ] = False,
    allow: Annotated[
        list[str] | None, typer.Option(help="Write files in spite of this reason code; again for each.")
    ] = None,
) -> None:
    """Copy CT and MR images without identity, for research. Refuses what may show text in its pixels."""
    from mla_med.dicom.deidentify import deidentify_study
    from mla_med.secret import read_secret

    with err.status("removing identity") as status:
        result = deidentify_study(
            source,
            to,
            key=read_secret(key_file, make=True),
            keep_dates=keep_dates,
            allow=tuple(allow or ()),
            progress=lambda done, total: status.update(f"removing identity: {done} of {total}"),
        )
    for refusal in result.refused:
        out.print(f"{refusal.reason.code}: {refusal.reason.words}", style="dim")
    out.print(
        f"{result.written} files of {result.studies} studies written to {to}, {len(result.refused)} refused"
    )
    if not result.written:
        raise typer.Exit(1)


@app.command()
def style(
    folder: Annotated[
        Path | None, typer.Argument(help="A style pack: style.toml and a file for each examination.")
    ] = None,
) -> None:
    """Check a department's own style pack, and show a report in it; without one, list what is packaged."""
    from mla_med.report.parse import check_style
    from mla_med.report.render import render_report, report_text
    from mla_med.report.style import load_style, packaged_languages, packaged_styles, read_style
    from mla_med.types import Finding, Side

    if folder is None:
        for language in packaged_languages():
            for name in packaged_styles(language):
                out.print(f"{language}/{name}: {', '.join(load_style(name, language).examinations)}")
        return
    pack = read_style(folder)
    faults = check_style(pack)
    for fault in faults:
        out.print(fault, style="red", markup=False)
    if faults:
        out.print(f"{len(faults)} statements are not read back as they are meant.")
        raise typer.Exit(1)
    shown = Finding("lung_nodule", site="upper_lobe", side=Side.LEFT, size_mm=8.0)
    if "chest_ct" in pack.examinations:
        out.print(report_text(render_report([shown], pack), pack), markup=False)
    examinations = ", ".join(pack.examinations)
    out.print(f"\n{pack.language}/{pack.name}: every statement of {examinations} is read back.")


@app.command()
def evaluate(
    references: Annotated[Path, typer.Argument(help='JSON lines {"id": ..., "report": ...}, or CSV.')],
    drafts: Annotated[Path, typer.Argument(help="The same ids, from any system.")],
    to: Out,
    protocol: Annotated[
        str, typer.Option(help="How words are counted: coco, r2gen:150, vlm3d, ...; zh for Chinese.")
    ] = "",
    examination: Annotated[str, typer.Option(help="chest_ct, brain_mr or abdomen_ct.")] = "chest_ct",
    language: Annotated[str, typer.Option(help="Of the reports: en or zh.")] = "en",
    train: Annotated[Path | None, typer.Option(help="Training reports, to take the floors from.")] = None,
    other: Annotated[
        Path | None, typer.Option("--compare", help="Drafts of another system, to compare with.")
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(help='"NAME=VALUE", again for each: exit code 3 where that score is worse.'),
    ] = None,
    allow: Annotated[
        str, typer.Option(help="missing, empty, duplicate, unknown (by commas) or all: they count as empty.")
    ] = "",
    allow_missing: Annotated[bool, typer.Option(help="Short for --allow missing.")] = False,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="radgraph, f1radbert_ct, green or ratescore, again for each; needs weights."),
    ] = None,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 20261123,
) -> None:
    """Score drafts of any system beside the floors that any model must beat: page.html, metrics.json, CSV."""
    from evaluation.run import evaluate_reports
    from evaluation.systems import Options
    from evaluation.tables import to_markdown
    from evaluation.thresholds import read_threshold

    thresholds = [read_threshold(text) for text in fail_under or ()]
    allowed = {word.strip() for word in allow.split(",") if word.strip()}
    with err.status("scoring"):
        scores = evaluate_reports(
            references,
            drafts,
            to,
            options=Options(
                protocol=protocol,
                examination=examination,
                language=language,
                resamples=resamples,
                seed=seed,
                judges=tuple(judge or ()),
            ),
            train=train,
            other=other,
            allow=allowed | {"missing"} if allow_missing else allowed,
        )
    out.print(to_markdown(scores), markup=False, highlight=False, soft_wrap=True)
    print_files(sorted(to.iterdir()))
    missed = [words for threshold in thresholds if (words := threshold.missed(scores))]
    for words in missed:
        err.print(f"THRESHOLD: {words}.", markup=False)
    if missed:
        raise typer.Exit(3)


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


def _print_inspection(inspection) -> None:
    from mla_med.inspection import facts_of, words_of

    study = inspection.study
    out.print(f"study {study.study_uid}" if study.study_uid else "files of no study", style="bold")
    if inspection.verdicts:
        table = Table(box=None, pad_edge=False)
        for column in ("", "series", "", "images", "columns x rows x slices", "mm"):
            table.add_column(column, no_wrap=column != "series", max_width=24)
        table.add_column("verdict and certificate", overflow="fold", min_width=36)
        for v in inspection.verdicts:
            c, uid = v.certificate, v.series.series_uid
            name = v.series.description or "…" + uid[-12:]
            words = words_of(v).replace(uid, "…" + uid[-6:])
            table.add_row(
                "*" if v.chosen else "+" if c else "-",
                f"{name}\n{v.series.part}" if v.series.part else name,
                v.series.modality,
                str(len(v.series.instances)),
                " x ".join(map(str, c.shape)) if c else "",
                " x ".join(f"{s:.4g}" for s in c.spacing_mm) if c else "",
                "\n".join((words, facts_of(c), *c.notes)) if c else words,
            )
        out.print(table)
    for problem in study.problems:
        out.print(f"{problem.code}: {problem.words}", style="dim")


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
