"""`mla-med`: one verb, a few lines. The front door: it may call every floor, nothing calls it.

Heavy imports stand inside the verbs, so that --help is instant.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mla_med import cli_adapt, cli_model, cli_night, cli_pacs, cli_review
from mla_med.errors import ConfigError, MlaMedError, OutputError

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
app.command()(cli_model.export)
app.command()(cli_model.prune)
out = Console(highlight=False, soft_wrap=True, markup=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

Source = Annotated[
    Path,
    typer.Argument(help="A folder of any depth, a DICOMDIR, a ZIP archive, a DICOM file or a NIfTI file."),
]
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
def draft(
    path: Source,
    to: Out,
    checkpoint: Checkpoint = None,
    age: Annotated[
        float | None, typer.Option(min=0, max=130, help="Years, where the header does not say.")
    ] = None,
    sex: Annotated[str | None, typer.Option(help="F, M or O, where the header does not say.")] = None,
    indication: Annotated[
        str, typer.Option(help="Why it was asked for, where the header does not say.")
    ] = "",
    prior: Annotated[
        Path | None,
        typer.Option(
            help="An earlier study of the same patient, or its draft.json with the draft.dcm beside it: "
            "changes are measured and stated."
        ),
    ] = None,
    faithfulness: Annotated[
        bool,
        typer.Option(
            "--faithfulness", help="Mask what each finding cites and ask again; takes seconds more."
        ),
    ] = False,
    language: Annotated[str, typer.Option(help="Of the report: en or zh.")] = "en",
    style: Annotated[str, typer.Option(help="Of the report: prose, itemised, terse, template.")] = "prose",
    formats: Annotated[
        str,
        typer.Option(
            "--format", help="sr, sr3d, pdf, kos, seg, pm, fhir, hl7, txt, html, json; with commas."
        ),
    ] = "sr,txt,html,json",
    backend: Annotated[
        str,
        typer.Option(
            help="torch, onnx or openvino. The last two start in seconds, and want as --checkpoint what "
            "mla-med export wrote."
        ),
    ] = "torch",
    profile: Annotated[
        bool, typer.Option("--profile", help="Say how long each stage took; profile.html beside the draft.")
    ] = False,
) -> None:
    """Draft a report of a study, or refuse with a reason: draft.json, .txt, .html and .dcm (SR). Of several
    studies each goes into a folder of its own, and one that fails stops none."""
    from mla_med.dicom.apart import ReaderProcess
    from mla_med.dicom.study import read_studies
    from mla_med.imaging.nifti import is_nifti

    with err.status("reading the headers, loading the model") as status, ReaderProcess() as reader:
        pending = None if is_nifti(path) else reader.start(read_studies, path)
        from mla_med.documents.profile import Profile
        from mla_med.documents.text import draft_to_text
        from mla_med.documents.write import parse_formats
        from mla_med.drafting import (
            Options,
            draft_nifti,
            draft_one,
            draft_studies,
            packaged,
            packaged_for,
            with_context,
        )
        from mla_med.report.style import load_style
        from mla_med.types import ClinicalContext

        stages = Profile(also=status.update)
        stages("reading the headers")
        studies = () if pending is None else pending.result()
        known = ClinicalContext(age, _sex(sex), indication)
        studies = tuple(with_context(study, known) for study in studies)
        whole = [study for study in studies if study.study_uid]
        earlier = None if prior is None else _prior(prior, whole, reader.call)
        wanted = parse_formats(formats)
        if {"sr", "sr3d"} & set(wanted):
            # a second of imports, while another process reads and this one would wait
            Thread(target=import_module, args=("mla_med.documents.sr",), daemon=True).start()
        options = Options(faithfulness, earlier, load_style(style, language), wanted)
        stages("loading the model")
        loaded = _load(checkpoint, backend)
        model = loaded or packaged_for
        if pending is None:
            model = loaded or packaged("chest_ct")
            made, files = draft_nifti(path, known, to, model, stages, reader.call, options)
        elif len(whole) == 1:
            made, files = draft_one(studies, to, model, stages, reader.call, options)
        else:
            _draft_many(draft_studies(studies, to, model, stages, reader.call, options), to)
            if profile:
                _print_profile(stages.end(), to)
            return
    out.print(draft_to_text(made))
    _print_files(files)
    if profile:
        _print_profile(stages.end(), to)


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

    with err.status("removing identity") as status:
        result = deidentify_study(
            source,
            to,
            key=_key(key_file),
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


phantoms = typer.Typer(
    help="People who do not exist: a study as a scanner sends it, a cohort, or a picture of some of them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(phantoms, name="phantom")
Examination = Annotated[str, typer.Option(help="chest_ct or brain_mr.")]
SiteKey = Annotated[str, typer.Option(help="a or b: scanner, dose, prevalence, style and language.")]


@phantoms.command()
def study(
    seed: Annotated[int, typer.Argument(min=0, help="Which patient; the same seed gives the same bytes.")],
    to: Out,
    examination: Examination = "chest_ct",
    site: SiteKey = "a",
    finding: Annotated[
        list[str] | None,
        typer.Option(help="A finding to plant, again for each; otherwise the history chooses."),
    ] = None,
    prior: Annotated[
        bool, typer.Option("--prior", help="With an earlier study of the same patient, and its report.")
    ] = False,
    maker: Annotated[str | None, typer.Option(help="Whose scanner, instead of the site's.")] = None,
    matrix: Annotated[int, typer.Option(min=64, max=512, help="Rows and columns of a CT.")] = 512,
) -> None:
    """Make one study as the scanner of a site sends it: every series, request, report and truth."""
    _use_one_thread()
    from mla_med.files import write_text
    from mla_med.phantom.cohort import record_of, report_of
    from mla_med.phantom.examine import check_codes, examine
    from mla_med.phantom.scanning import write_dicom
    from mla_med.phantom.sites import site_of
    from mla_med.report.render import report_text
    from mla_med.report.style import load_style

    chosen = site_of(site)
    codes = check_codes(finding, examination)
    with err.status("making the patient") as status:
        examined = examine(seed, examination, chosen, prior_share=float(prior), codes=codes)
        status.update("scanning")
        images = write_dicom(examined, to / examined.id, maker, matrix)
    text = report_text(report_of(examined), load_style(chosen.style, chosen.language))
    write_text(to / f"{examined.id}.txt", text + "\n")
    record = record_of(examined, {"dicom": examined.id} | images)
    write_text(to / f"{examined.id}.json", json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    out.print(text)
    _print_files(to / f"{examined.id}{ending}" for ending in ("", ".txt", ".json"))


@phantoms.command()
def cohort(
    to: Out,
    n: Annotated[int, typer.Option("--n", min=1, help="Patients.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Cohorts of two seeds share no patient.")] = 7,
    examination: Examination = "chest_ct",
    site: SiteKey = "a",
    form: Annotated[
        str, typer.Option(help="arrays (on the training grid) or dicom (full series).")
    ] = "arrays",
    prior_share: Annotated[
        float, typer.Option(min=0, max=1, help="Of how many patients there is an earlier study.")
    ] = 0.25,
    style: Annotated[str, typer.Option(help="Of the reports, instead of the site's.")] = "",
    language: Annotated[str, typer.Option(help="Of the reports, instead of the site's.")] = "",
    matrix: Annotated[int, typer.Option(min=64, max=512, help="Rows and columns of a CT in DICOM.")] = 512,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Make many patients with images, truth and report: the same bytes from the same seed. Stopped, it goes
    on where it was."""
    from mla_med.phantom.cohort import CohortConfig, make_cohort

    config = CohortConfig(
        n=n,
        seed=seed,
        examination=examination,
        site=site,
        form=form,
        prior_share=prior_share,
        style=style,
        language=language,
        matrix=matrix,
        workers=workers,
    )
    with _bar() as bar:
        task = bar.add_task("patients", total=n)
        made = make_cohort(config, to, lambda done, total: bar.update(task, completed=done))
    _print_files([made / "cohort.json", made / "manifest.jsonl"])


@phantoms.command()
def sheet(
    to: Annotated[Path, typer.Option("--out", help="A PNG file.")],
    n: Annotated[int, typer.Option("--n", min=1, max=60, help="Patients.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Of the first patient.")] = 7_000_000,
    examination: Examination = "chest_ct",
    site: SiteKey = "a",
) -> None:
    """Draw patients in three planes, with their findings, into one picture."""
    _use_one_thread()
    from mla_med.phantom.sheet import draw_sheet
    from mla_med.phantom.sites import site_of

    with _bar() as bar:
        task = bar.add_task("patients", total=n)
        draw_sheet(range(seed, seed + n), examination, site_of(site), to, lambda: bar.advance(task))
    _print_files([to])


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
    _print_files(sorted(to.iterdir()))
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


def _prior(path: Path, studies, call):
    """The earlier examination of the one study that is drafted."""
    from mla_med.comparison import read_prior
    from mla_med.dicom.study import read_study

    if len(studies) != 1:
        raise ConfigError(
            f"--prior belongs to one study in DICOM, and {len(studies)} are given. Draft them one by one.",
            code="PRIOR_OF_SEVERAL",
        )
    return read_prior(path, studies[0], lambda earlier: call(read_study, earlier))


def _print_profile(profiled, to: Path) -> None:
    from mla_med.files import write_text

    out.print(profiled.to_text())
    write_text(to / "profile.html", profiled.to_html())
    _print_files([to / "profile.html"])


def _load(checkpoint: Path | None, backend: str):
    """A checkpoint, or what was exported of one; None: whichever packaged one fits."""
    if backend == "torch":
        from mla_med.model.checkpoint import load_checkpoint

        return load_checkpoint(checkpoint) if checkpoint else None
    from mla_med.model.exported import load_exported

    if checkpoint is None:
        raise ConfigError(
            f"--backend {backend} runs an exported checkpoint. Make one (mla-med export chest_ct --out DIR), "
            "and give it as --checkpoint DIR.",
            code="NOT_EXPORTED",
        )
    return load_exported(checkpoint, backend)


def _sex(given: str | None):
    from mla_med.types import Sex

    if given is not None and given.upper() not in tuple(Sex):
        raise ConfigError(f"--sex is {given!r}; give F, M or O.")
    return None if given is None else Sex(given.upper())


def _draft_many(outcomes, to: Path) -> None:
    """A line for each study as it ends, and all of them in studies.json. Exit code 1 if any failed."""
    from mla_med.files import write_text

    rows = []
    for outcome in outcomes:
        refused = outcome.draft is not None and outcome.draft.report is None
        reasons = outcome.draft.gate.reasons if refused else [outcome.reason] if outcome.reason else []
        codes = ", ".join(reason.code for reason in reasons)
        state = "failed" if outcome.draft is None else "refused" if refused else "drafted"
        if codes == "IGNORED":
            state = "ignored"
        folder = outcome.files[0].parent.name if outcome.files else ""
        out.print(f"{state:8} {outcome.study_uid or 'files of no study'}  {codes or folder}")
        rows.append(
            {
                "study_uid": outcome.study_uid,
                "state": state,
                "folder": folder,
                "reasons": [{"code": reason.code, "words": reason.words} for reason in reasons],
            }
        )
    to.mkdir(parents=True, exist_ok=True)
    write_text(to / "studies.json", json.dumps(rows, indent=1) + "\n")
    _print_files([to / "studies.json"])
    if any(row["state"] == "failed" for row in rows):
        raise typer.Exit(1)


def _key(path: Path) -> bytes:
    """The secret of a de-identification; a new one is readable by its owner alone."""
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(32))
    return path.read_bytes()


def _use_one_thread() -> None:
    """Before numpy is imported: with more, the last bit of a sum differs, and so do a phantom's bytes."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


def _bar():
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err)


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
