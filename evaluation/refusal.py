"""What a model must not draft, and what it must -> whether its gate knows.

    python -m evaluation.refusal --shared ../shared/data/dicom --out DIR [--quick]

For the chest CT and the brain MR model. To be refused: every real series under the folder, one by one and in
whole studies (no model has seen a patient); phantoms of the other examination; phantoms of its own as a
localizer, as an image calculated from others, and as another part of the body, by their headers. To be
drafted: phantoms of its own examination from the second site, with other scanners and kernels, as DICOM (a
bar of 95 %) and as arrays. Every study goes through `draft_study` up to the writing; real ones are given an
adult with an indication, so that nothing is refused for what a header leaves out. `--nifti` adds volumes of
research, such as an abdomen.

How well features alone tell: the area under the ROC curve (Mann and Whitney) of the Mahalanobis distance of
what is strange (real volumes and phantoms of the other examination) against phantoms of the training's site,
whatever the headers say; and of the whole gate, the largest of distance, histograms and lung or head beside
their limits, infinite where the volume cannot be placed at all. `--out` gets refusal.json, refusal.md and
refusal.png.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch

from evaluation.bar import bar_of
from evaluation.decoys import auc
from evaluation.telling import tell
from mla_med.corpus import place
from mla_med.dicom.study import read_studies
from mla_med.dicom.volume import read_volume
from mla_med.drafting import draft_nifti, draft_study
from mla_med.errors import MlaMedError, SeriesError, StudyError
from mla_med.files import write_text
from mla_med.imaging.sequences import place_images, to_channels
from mla_med.imaging.transforms import Preprocessing, hu_of, to_tensor, window_channels
from mla_med.imaging.values import values_of
from mla_med.looking import Prepared, image_feature, see
from mla_med.memory import keep_freed
from mla_med.model import CHECKPOINTS
from mla_med.model.checkpoint import Checkpoint, load_checkpoint
from mla_med.model.usual import Usual
from mla_med.phantom.examine import examine
from mla_med.phantom.scanning import to_array, write_dicom
from mla_med.phantom.sites import site_of
from mla_med.report.context import context_text
from mla_med.types import ClinicalContext, Modality, Sex, Study, Volume

FIRST_SEED = 3_997_000_000
"""Of a cohort that nobody trains on."""
KNOWN = ClinicalContext(60.0, Sex.FEMALE, "routine check")
BAR = 0.95
WRITING = "writing the report"
EDITS: dict[str, dict[str, Any]] = {
    "localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
    "calculated from others": {"ImageType": ["DERIVED", "PRIMARY", "SUBTRACTION"]},
    "header says abdomen": {"BodyPartExamined": "ABDOMEN", "StudyDescription": "", "SeriesDescription": ""},
}
OTHER = {"chest_ct": "brain_mr", "brain_mr": "chest_ct"}


@dataclass(frozen=True, slots=True)
class Judged:
    """One study before one gate."""

    model: str
    kind: str
    name: str
    wanted: bool
    """Whether it should be drafted."""
    accepted: bool
    codes: tuple[str, ...]
    """Of the refusal, or of the error."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One image and what the gate measures of it, beside its limits: 1 is the limit."""

    model: str
    kind: str
    familiar: bool
    distance: float
    gate: float


class _Accepted(Exception):
    """No error: the gate is passed, and the writing is not of interest."""


def judge(study: Study, checkpoint: Checkpoint) -> tuple[bool, tuple[str, ...]]:
    """Whether the gate lets the study pass, and the codes of why not."""
    return _judged(lambda progress: draft_study(study, checkpoint, progress)[0])


def judge_nifti(path: Path, checkpoint: Checkpoint, out: Path) -> tuple[bool, tuple[str, ...]]:
    return _judged(lambda progress: draft_nifti(path, KNOWN, out, checkpoint, progress)[0])


def _judged(draft: Callable[[Callable[[str], None]], Any]) -> tuple[bool, tuple[str, ...]]:
    def stop(step: str) -> None:
        if step == WRITING:
            raise _Accepted

    try:
        gate = draft(stop).gate
    except _Accepted:
        return True, ()
    except (StudyError, SeriesError) as error:
        return False, (error.code,)
    return gate.accepted, tuple(dict.fromkeys(reason.code for reason in gate.reasons))


def real_studies(folder: Path) -> list[tuple[str, Study]]:
    """Each series as a study of its own, and each study of several; with what kind it is."""
    found = []
    for study in read_studies(folder):
        known = replace(study, context=KNOWN, problems=())
        for series in study.series:
            special = [name.lower() for name in ("LOCALIZER", "DERIVED") if name in series.image_type]
            what = special[0] if special else series.body_part.lower() or "body part not stated"
            found.append((f"real {series.modality}, {what}", replace(known, series=(series,))))
        if len(study.series) > 1:
            found.append(("real study of several series", known))
    return found


def edited(folder: Path, out: Path, values: dict[str, Any]) -> Path:
    """The files of a folder with other header values."""
    for path in filter(Path.is_file, folder.rglob("*")):
        dataset = pydicom.dcmread(path)
        for name, value in values.items():
            setattr(dataset, name, value)
        to = out / path.relative_to(folder)
        to.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(to)
    return out


def score(kind: str, familiar: bool, prepared: Prepared | None, checkpoint: Checkpoint) -> Scored:
    """None: it could not be placed."""
    model = checkpoint.scope.examination
    if prepared is None:
        return Scored(model, kind, familiar, math.inf, math.inf)
    seen = see(prepared, context_text(KNOWN), checkpoint.model, model)
    calibration = checkpoint.calibration
    distance = calibration.feature_distance(image_feature(checkpoint.model, seen)) / calibration.feature_limit
    if math.isnan(distance):
        distance = math.inf
    gate = max(distance, _pixels(prepared, checkpoint, calibration.usual))
    return Scored(model, kind, familiar, distance, gate)


def _pixels(prepared: Prepared, checkpoint: Checkpoint, usual: Usual) -> float:
    """Histograms and share of lung or head beside their limits, the worst of them."""
    settings = Preprocessing.from_dict(checkpoint.model.config.preprocessing)
    image = hu_of(prepared.image_CIJK, settings) if settings.modality == Modality.CT else prepared.image_CIJK
    values, (low, high) = values_of(image, np.asarray(prepared.present_C).tolist(), settings), usual.share
    little = low / values.share if values.share else math.inf if low else 0.0
    distances = usual.distances(values.histograms)
    return max([values.share / (high or 1e-9), little, *(d / usual.limits[n] for n, d in distances.items())])


def prepared_volume(volume: Volume, checkpoint: Checkpoint) -> Prepared | None:
    """Any volume as if it were what the model reads: an MR takes it for its first wanted sequence."""
    settings = Preprocessing.from_dict(checkpoint.model.config.preprocessing)
    if settings.modality == Modality.CT:
        return Prepared.whole(*to_tensor(volume, settings))
    try:
        return Prepared(*to_channels({checkpoint.scope.sequences[0]: volume}, settings))
    except SeriesError:
        return None


def prepared_phantom(seed: int, examination: str, site: str, checkpoint: Checkpoint) -> Prepared | None:
    """A phantom on the grid of its own model, or, for that of the other examination, as one volume."""
    settings = Preprocessing.from_dict(checkpoint.model.config.preprocessing)
    examined = examine(seed, examination, site_of(site))
    array, affine, scan = to_array(examined, spacing_mm=settings.spacing_mm)
    if checkpoint.scope.examination != examination:
        one = array if array.ndim == 3 else array[1]  # T2 is always taken
        return prepared_array(one, affine, checkpoint)
    values, affine, present = place(array, affine, scan, settings)
    image = torch.from_numpy(values)
    if settings.windows_hu:
        image = window_channels(image, settings.windows_hu)
    return Prepared(image, torch.tensor(present), torch.from_numpy(affine).to(torch.float32))


def prepared_array(array: np.ndarray, affine: np.ndarray, checkpoint: Checkpoint) -> Prepared | None:
    """An array of another examination as if it were what the model reads."""
    settings = Preprocessing.from_dict(checkpoint.model.config.preprocessing)
    if settings.modality == Modality.CT:
        values, affine, present = place(array, affine, {}, settings)
        windows = window_channels(torch.from_numpy(values), settings.windows_hu)
        return Prepared(windows, torch.tensor(present), torch.from_numpy(affine).to(torch.float32))
    try:
        return Prepared(*place_images({checkpoint.scope.sequences[0]: (array, affine)}, settings))
    except SeriesError:
        return None


def volumes_of(studies: Iterable[tuple[str, Study]]) -> list[tuple[str, Volume]]:
    """Of single series, those that can be read."""
    found = []
    for kind, study in studies:
        if len(study.series) != 1:
            continue
        try:
            found.append((kind, read_volume(study.series[0])))
        except SeriesError:
            continue
    return found


# The run


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many phantoms of each kind."""

    dicom: int
    arrays: int
    familiar: int
    other: int
    matrix: int


def judge_all(
    checkpoints: Sequence[Checkpoint],
    real: Sequence[tuple[str, Study]],
    nifti: Sequence[Path],
    sizes: Sizes,
    work: Path,
) -> list[Judged]:
    judged = []
    with bar_of("real series", len(real) * len(checkpoints)) as say:
        for checkpoint in checkpoints:
            for kind, study in real:
                accepted, codes = judge(study, checkpoint)
                name = study.series[0].description or study.study_uid[-12:]
                judged.append(Judged(checkpoint.scope.examination, kind, name, False, accepted, codes))
                say(len(judged))
    for checkpoint in checkpoints:
        for path in nifti:
            accepted, codes = judge_nifti(path, checkpoint, work / "nifti")
            model = checkpoint.scope.examination
            judged.append(Judged(model, "NIfTI", path.name, False, accepted, codes))
    with bar_of("phantoms as DICOM", sizes.dicom * len(OTHER)) as say:
        for number in range(sizes.dicom):
            for step, examination in enumerate(OTHER):
                judged += _judge_phantom(checkpoints, examination, number, sizes.matrix, work)
                say(len(OTHER) * number + step + 1)
    return judged


def _judge_phantom(
    checkpoints: Sequence[Checkpoint], examination: str, number: int, matrix: int, work: Path
) -> list[Judged]:
    """One phantom of the second site before both models; the first one also with other headers."""
    judged = []
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        examined = examine(FIRST_SEED + number, examination, site_of("b"))
        write_dicom(examined, folder / "as it is", matrix=matrix)
        kinds: dict[str, Path] = {"": folder / "as it is"}
        if number == 0:
            kinds |= {kind: edited(kinds[""], folder / kind, values) for kind, values in EDITS.items()}
        for kind, files in kinds.items():
            (study,) = read_studies(files)
            for checkpoint in checkpoints:
                model = checkpoint.scope.examination
                if kind and model != examination:
                    continue
                said = kind and f"{examination} phantom, {kind}"
                same = f"{examination} phantom of the second site"
                accepted, codes = judge(study, checkpoint)
                wanted = model == examination and not kind
                judged.append(Judged(model, said or same, examined.id, wanted, accepted, codes))
    return judged


def score_all(
    checkpoints: Sequence[Checkpoint], volumes: Sequence[tuple[str, Volume]], sizes: Sizes
) -> list[Scored]:
    scored = []
    total = len(checkpoints) * (len(volumes) + sizes.familiar + sizes.arrays + sizes.other)
    with bar_of("features", total) as say:
        for checkpoint in checkpoints:
            own = checkpoint.scope.examination
            for kind, volume in volumes:
                scored.append(score(kind, False, prepared_volume(volume, checkpoint), checkpoint))
                say(len(scored))
            wanted = (
                (sizes.familiar, own, "a", f"{own} phantom of the training's site", True),
                (sizes.arrays, own, "b", f"{own} phantom of the second site", True),
                (sizes.other, OTHER[own], "a", f"{OTHER[own]} phantom", False),
            )
            for count, examination, site, kind, familiar in wanted:
                for number in range(count):
                    prepared = prepared_phantom(FIRST_SEED + 1000 + number, examination, site, checkpoint)
                    scored.append(score(kind, familiar, prepared, checkpoint))
                    say(len(scored))
    return scored


def areas(scored: Sequence[Scored]) -> dict[str, dict[str, float]]:
    """By model: AUROC of strange against the training's site, and shares of arrays that pass."""
    found = {}
    for model in dict.fromkeys(one.model for one in scored):
        mine = [one for one in scored if one.model == model]
        compared = [one for one in mine if "second site" not in one.kind]
        strange = np.array([not one.familiar for one in compared])
        values = {}
        if 0 < strange.sum() < len(strange):
            for name in ("distance", "gate"):
                # ranks take infinity, but not several kinds of it
                numbers = np.array([min(getattr(one, name), 1e9) for one in compared])
                values[f"AUROC of the {name}"] = auc(numbers, strange)
        for kind in dict.fromkeys(one.kind for one in mine if one.familiar):
            passed = [one.gate <= 1 for one in mine if one.kind == kind]
            values[f"arrays that pass, {kind} ({len(passed)})"] = float(np.mean(passed))
        found[model] = values
    return found


def to_markdown(judged: Sequence[Judged], found: dict[str, dict[str, float]], facts: dict[str, Any]) -> str:
    lines = ["# What the gates refuse", ""]
    lines += [
        f"- {about['examination']}: {about['name']} ({about['sha256'][:12]})" for about in facts["models"]
    ]
    lines += ["", "| model | what | n | should | right | codes |", "|" + "---|" * 6]
    groups: dict[tuple[str, str, bool], list[Judged]] = {}
    for one in judged:
        groups.setdefault((one.model, one.kind, one.wanted), []).append(one)
    for (model, kind, wanted), some in groups.items():
        right = sum(one.accepted == wanted for one in some)
        counted = Counter(code for one in some for code in one.codes)
        codes = ", ".join(f"{code} {n}" for code, n in counted.most_common())
        should = "be drafted" if wanted else "be refused"
        lines.append(f"| {model} | {kind} | {len(some)} | {should} | {right} of {len(some)} | {codes} |")
    wrong = [one for one in judged if one.accepted and not one.wanted]
    drafted = [one for one in judged if one.wanted]
    lines += ["", f"Drafted, and should not have been: {len(wrong)}."]
    lines += [f"- {one.model}: {one.kind}, {one.name}" for one in wrong]
    for model in dict.fromkeys(one.model for one in drafted):
        passed = [one.accepted for one in drafted if one.model == model]
        lines.append(
            f"Second site, DICOM, {model}: {sum(passed)} of {len(passed)} accepted ({np.mean(passed):.1%}; "
            f"the bar is {BAR:.0%})."
        )
    for model, values in found.items():
        lines += ["", f"{model}, arrays without their headers:", ""]
        lines += [f"- {name}: {value:.4f}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def draw(scored: Sequence[Scored], path: Path) -> None:
    """Histograms of the distance, by model."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(one.model for one in scored))
    figure, rows = pyplot.subplots(1, len(models), figsize=(5.5 * len(models), 3.8), dpi=110, squeeze=False)
    for axes, model in zip(rows[0], models, strict=True):
        mine = [one for one in scored if one.model == model]
        groups: dict[str, list[float]] = {}
        for one in mine:
            kind = "real volumes" if one.kind.startswith("real") else one.kind
            groups.setdefault(kind, []).append(min(max(one.distance, 1e-2), 1e3))
        every = [value for values in groups.values() for value in values]
        bins = np.geomspace(min(every) / 1.05, max(every) * 1.05, 40)
        for kind, values in groups.items():
            axes.hist(values, bins, alpha=0.6, label=f"{kind} ({len(values)})")
        axes.axvline(1, color="black", linewidth=1)
        axes.set(xscale="log", xlabel="Mahalanobis distance / limit", ylabel="images", title=model)
        axes.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    keep_freed()
    torch.set_num_threads(1)
    began = time.perf_counter()
    sizes = Sizes(given.dicom, given.arrays, given.familiar, given.other, given.matrix)
    if given.quick:
        sizes = replace(sizes, dicom=1, arrays=20, familiar=20, other=10)
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        folders = (given.chest or CHECKPOINTS["chest_ct"], given.brain or CHECKPOINTS["brain_mr"])
        checkpoints = [load_checkpoint(folder) for folder in folders]
        real = real_studies(given.shared) if given.shared else []
        with tempfile.TemporaryDirectory(prefix="mla_med-") as work:
            judged = judge_all(checkpoints, real, given.nifti, sizes, Path(work))
        facts = {
            "models": [
                {"examination": c.scope.examination, "name": c.name, "sha256": c.weights_sha256}
                for c in checkpoints
            ],
            "sizes": asdict(sizes),
        }
        # the features take longer than all before: what is known by now is kept
        write_text(given.out / "refusal.md", to_markdown(judged, {}, facts))
        scored = score_all(checkpoints, volumes_of(real), sizes)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    found = areas(scored)
    values = {"facts": facts, "areas": found, "judged": [asdict(j) for j in judged]}
    values["scored"] = [asdict(s) for s in scored]
    tell("refusal", to_markdown(judged, found, facts), values, given.out)
    if scored:
        draw(scored, given.out / "refusal.png")
    print(f"{given.out} written after {time.perf_counter() - began:.0f} s")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evaluation.refusal", description=__doc__)
    parser.add_argument("--shared", type=Path, help="a folder with real DICOM series of any kind")
    parser.add_argument("--nifti", type=Path, nargs="*", default=[], help="volumes that must be refused")
    parser.add_argument("--chest", type=Path, help="the packaged chest CT model by default")
    parser.add_argument("--brain", type=Path, help="the packaged brain MR model by default")
    parser.add_argument("--dicom", type=int, default=20, help="phantoms of each examination as DICOM")
    parser.add_argument("--arrays", type=int, default=100, help="phantoms of the second site as arrays")
    parser.add_argument("--familiar", type=int, default=100, help="phantoms of the training's site")
    parser.add_argument("--other", type=int, default=40, help="phantoms of the other examination as arrays")
    parser.add_argument("--matrix", type=int, default=256, help="rows and columns of a CT phantom")
    parser.add_argument("--quick", action="store_true", help="one phantom as DICOM, and fewer arrays")
    parser.add_argument("--out", type=Path, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
