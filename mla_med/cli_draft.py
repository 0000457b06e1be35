"""`mla-med draft`: a study, or many, as drafts in a folder."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Annotated

import typer

from mla_med.console import Out, err, out, print_files
from mla_med.errors import ConfigError

Source = Annotated[
    Path,
    typer.Argument(help="A folder of any depth, a DICOMDIR, a ZIP archive, a DICOM file or a NIfTI file."),
]
Checkpoint = Annotated[
    Path | None, typer.Option("--checkpoint", help="A checkpoint folder; the packaged one by default.")
]


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
    from mla_med.memory import keep_freed

    keep_freed()
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
    print_files(files)
    if profile:
        _print_profile(stages.end(), to)


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
    print_files([to / "profile.html"])


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
    print_files([to / "studies.json"])
    if any(row["state"] == "failed" for row in rows):
        raise typer.Exit(1)
