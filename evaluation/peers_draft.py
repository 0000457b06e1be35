"""A draft, stage by stage: us, what people use today, and what the machine itself allows, in one run.

    python -m evaluation.peers_draft --out DIR [--checkpoint A] [--exported B] [--quick] [--threads 2]

| stage | we | peers | floor |
|---|---|---|---|
| reading | read_volume | pydicom loop, SimpleITK | the files' bytes into memory |
| transforms | fused pass | MONAI's default chain, our chain | the volume copied once |
| encoder | PyTorch, ONNX Runtime, OpenVINO | | its products at the speed of a matrix product |
| decoding | side by side | HF generate | the decoder's weights read once for each reading |
| scoring | text_scores | sacrebleu | the texts' bytes hashed |
| delivery | SR, text, page, JSON | highdicom, an Enhanced SR | the same bytes to disk |
| draft | DICOM to documents, warm; a new process with ONNX | | sum of the floors |

Everybody of a stage takes turns, round after round, so that a busy machine is busy for all; medians, and the
lowest and highest. What is not installed is said to be missing. `--out` gets peers.md, peers.json, peers.png.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.bar import bar_of
from evaluation.decoding import HF, Writer, reports_of
from evaluation.linter import random_findings
from evaluation.selection import processor
from evaluation.speed import write_phantom
from evaluation.targets import Spread, Target, targets_table
from evaluation.telling import tell
from evaluation.text import text_scores
from mla_med.dicom.select import choose_series
from mla_med.dicom.study import read_study
from mla_med.dicom.volume import read_volume
from mla_med.documents.write import write_draft
from mla_med.drafting import draft_study, with_context
from mla_med.errors import MlaMedError
from mla_med.imaging import fused
from mla_med.imaging.grid import Preprocessing
from mla_med.imaging.transforms import to_tensor
from mla_med.looking import prepare
from mla_med.memory import keep_freed
from mla_med.model.checkpoint import Checkpoint, load_checkpoint
from mla_med.model.exported import load_exported
from mla_med.report.render import body_text, render_report
from mla_med.types import ClinicalContext, Draft, Sex, Volume

OURS, PEER, FLOOR = "ours", "peer", "floor"
KNOWN = ClinicalContext(61, Sex.FEMALE, "cough")
MONAI = "MONAI's default chain, one window"
WARM, FRESH = "PyTorch, warm", "ONNX Runtime, a new process"
SECONDS = {WARM: 3.0, FRESH: 5.0}
"""At most, of a draft of 300 slices from DICOM to documents."""
HEAVY = ("torch", "monai", "transformers")
Work = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Who:
    name: str
    kind: str
    work: Work | None
    """None: not installed."""


@dataclass(frozen=True, slots=True)
class Row:
    stage: str
    name: str
    kind: str
    ms: Spread | None
    """None: not installed."""
    by_ours: Spread | None = None
    """Of each round, by the first of ours."""


@dataclass(frozen=True, slots=True)
class World:
    """What all stages work on."""

    folder: Path
    """Of the one series that is drafted."""
    study: Any
    volume: Volume
    checkpoint: Checkpoint
    exported: Path | None
    scratch: Path
    quick: bool

    @property
    def settings(self) -> Preprocessing:
        return Preprocessing.from_dict(self.checkpoint.model.config.preprocessing)


def reading(world: World) -> Iterator[Who]:
    files = sorted(world.folder.glob("*.dcm"))

    def by_pydicom() -> Any:
        import pydicom

        slices = [pydicom.dcmread(file) for file in files]
        slices.sort(key=lambda d: float(d.ImagePositionPatient[2]))
        stacked = [d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in slices]
        return np.stack(stacked).astype(np.float32)

    def by_simpleitk() -> Any:
        import SimpleITK

        names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(world.folder))
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(names))

    yield Who("read_volume, with its certificate", OURS, lambda: read_volume(world.volume.series))
    yield Who("pydicom, slice by slice", PEER, by_pydicom)
    yield Who("SimpleITK", PEER, by_simpleitk if find_spec("SimpleITK") else None)
    yield Who("the bytes of the files", FLOOR, lambda: [file.read_bytes() for file in files])


def transforms(world: World) -> Iterator[Who]:
    from monai.data import MetaTensor
    from monai.transforms import (
        Compose,
        CropForegroundd,
        Orientationd,
        ResizeWithPadOrCropd,
        ScaleIntensityRanged,
        Spacingd,
    )

    settings, volume = world.settings, world.volume
    spacing = (settings.spacing_mm,) * 3
    default = Compose(
        [
            Orientationd("image", axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacingd("image", spacing, mode="bilinear"),
            ScaleIntensityRanged("image", -1350, 150, 0.0, 1.0, clip=True),
            CropForegroundd("image", source_key="image", allow_smaller=True),
            ResizeWithPadOrCropd("image", settings.shape),
        ]
    )

    def by_monai() -> Any:
        image = MetaTensor(torch.tensor(volume.voxels)[None], affine=torch.tensor(volume.affine))
        return default({"image": image})["image"]

    yield Who("one fused pass, three windows", OURS, lambda: fused.to_array(volume, settings))
    yield Who(MONAI, PEER, by_monai)
    yield Who("the same as a MONAI chain (reference)", PEER, lambda: to_tensor(volume, settings))
    yield Who("the volume copied once", FLOOR, lambda: volume.voxels.copy(order="K"))


def encoder(world: World) -> Iterator[Who]:
    prepared = prepare({"": world.volume}, world.settings)
    given = (prepared.image_CIJK[None], ["61 years"], prepared.present_C[None], prepared.affine[None])

    def seeing(model: Any) -> Work:
        def see() -> Any:
            with model.looking():
                return model.find(model.encode(*given))

        return see

    model = world.checkpoint.model
    yield Who("PyTorch", OURS, seeing(model))
    for backend in ("onnx", "openvino"):
        ready = world.exported is not None and find_spec("onnxruntime" if backend == "onnx" else backend)
        found = load_exported(world.exported, backend).model if ready and world.exported else None
        yield Who(backend, OURS, seeing(found) if found is not None else None)
    yield Who("its products, at the speed of one large product", FLOOR, _products(model, world))


def _products(model: Any, world: World) -> Work:
    from mla_med.model.compress import products_of

    image = torch.zeros(1, model.config.channels, *world.settings.shape)
    count = sum(products_of(model, image).values())
    side = 512
    times = max(1, round(count / side**3))
    one, other = torch.rand(side, side), torch.rand(side, side)

    def work() -> None:
        for _ in range(times):
            torch.mm(one, other)

    return work


def decoding(world: World) -> Iterator[Who]:
    writer = Writer(world.checkpoint.model, reports_of(world.checkpoint, 1 if world.quick else 4))
    weights = [p.detach().numpy() for p in world.checkpoint.model.decoder.parameters()]
    _, readers = writer.watched(1)
    readings = sum(reader.readings for reader in readers)
    yield Who("side by side", OURS, lambda: writer.side_by_side(1))
    yield Who(HF, PEER, writer.by_generate)
    yield Who(
        "the weights, read once for each reading",
        FLOOR,
        lambda: [[w.sum() for w in weights] for _ in range(readings)],
    )


def scoring(world: World) -> Iterator[Who]:
    pairs = 200 if world.quick else 2000
    texts = [
        body_text(render_report(random_findings("chest_ct", random.Random(n)))) for n in range(pairs + 1)
    ]
    references, drafts = texts[1:], texts[:-1]

    def by_sacrebleu() -> Any:
        import sacrebleu

        return sacrebleu.corpus_bleu(drafts, [references])

    yield Who(
        f"BLEU-1 to -4, COCO, {pairs} pairs", OURS, lambda: text_scores(references, drafts, only=("BLEU-4",))
    )
    yield Who("sacrebleu, BLEU-4 alone", PEER, by_sacrebleu if find_spec("sacrebleu") else None)
    yield Who("the words, split once", FLOOR, lambda: [text.split() for text in texts])


def delivery(world: World) -> Iterator[Who]:
    draft, volume = draft_study(world.study, world.checkpoint)
    assert volume is not None
    out = world.scratch / "documents"
    files = write_draft(draft, volume, out)
    contents = [file.read_bytes() for file in files]

    def to_disk() -> None:
        for number, content in enumerate(contents):
            (world.scratch / f"copy{number}").write_bytes(content)

    yield Who("SR, text, page and JSON", OURS, lambda: write_draft(draft, volume, out))
    yield Who("SR and JSON", OURS, lambda: write_draft(draft, volume, out, ("sr",)))
    yield Who(
        "highdicom, an Enhanced SR", PEER, lambda: _by_highdicom(draft, volume, world.scratch / "sr.dcm")
    )
    yield Who("the same bytes to disk", FLOOR, to_disk)


def _by_highdicom(draft: Draft, volume: Volume, path: Path) -> None:
    """The same sentences and images as highdicom's own guide writes them: no checks, no codes, no evidence
    beyond the images."""
    from highdicom.sr import CodedConcept, ContainerContentItem, EnhancedSR, ImageContentItem, TextContentItem
    from pydicom import dcmread
    from pydicom.uid import generate_uid

    assert draft.report is not None
    cited = {uid for f in draft.report.findings if f.evidence for uid in f.evidence.sop_instance_uids}
    instances = volume.series.instances
    paths = [one.path for one in instances if one.sop_instance_uid in cited] or [instances[0].path]
    images = [dcmread(one, stop_before_pixels=True) for one in paths]
    report = ContainerContentItem(CodedConcept("18748-4", "LN", "Diagnostic imaging study"))
    finding, source = CodedConcept("121071", "DCM", "Finding"), CodedConcept("260753009", "SCT", "Source")
    report.ContentSequence = [
        *(
            TextContentItem(finding, sentence.text, relationship_type="CONTAINS")
            for sentence in draft.report.sentences
        ),
        *(
            ImageContentItem(source, one.SOPClassUID, one.SOPInstanceUID, relationship_type="CONTAINS")
            for one in images
        ),
    ]
    EnhancedSR(images, report, generate_uid(), 1, generate_uid(), 1, "peer").save_as(path)


def whole(world: World) -> Iterator[Who]:
    out = world.scratch / "draft"

    def warm(checkpoint: Checkpoint) -> Work:
        def work() -> None:
            draft, volume = draft_study(with_context(read_study(world.folder.parent), KNOWN), checkpoint)
            write_draft(draft, volume, out)

        return work

    known = ("--age", "61", "--sex", "F", "--indication", "cough")
    command = ("draft", str(world.folder.parent), "--out", str(out), *known)

    def fresh(*arguments: str, without: Sequence[str] = ()) -> Work:
        code = _NEW_PROCESS.format(arguments=["mla-med", *command, *arguments], without=tuple(without))
        return lambda: subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)

    yield Who(WARM, OURS, warm(world.checkpoint))
    if world.exported is not None:
        yield Who("ONNX Runtime, warm", OURS, warm(load_exported(world.exported)))
        given = ("--backend", "onnx", "--checkpoint", str(world.exported))
        yield Who(FRESH, OURS, fresh(*given, without=HEAVY))
    yield Who("PyTorch, a new process", PEER, fresh())


_NEW_PROCESS = """
import sys
sys.argv = {arguments}
from mla_med.cli import app
app(standalone_mode=False)
assert not (heavy := [name for name in {without} if name in sys.modules]), heavy
"""
"""The command, and what it may not have imported."""


STAGES = {
    "reading": reading,
    "transforms": transforms,
    "encoder": encoder,
    "decoding": decoding,
    "scoring": scoring,
    "delivery": delivery,
    "draft": whole,
}


def measure(stage: str, who: Sequence[Who], rounds: int) -> list[Row]:
    spent: dict[str, list[float]] = {one.name: [] for one in who}
    for number in range(rounds + 1):
        for one in who:
            if one.work is None:
                continue
            began = time.perf_counter()
            one.work()
            if number:  # the first warms up
                spent[one.name].append(1000 * (time.perf_counter() - began))
    own = next(spent[one.name] for one in who if one.kind == OURS)
    rows = []
    for one in who:
        times = spent[one.name]
        if times:
            rows.append(Row(stage, one.name, one.kind, Spread.of(times), Spread.of_ratios(times, own)))
        else:
            rows.append(Row(stage, one.name, one.kind, None))
    return rows


def targets_of(rows: Sequence[Row]) -> list[Target]:
    """Of the stages that were measured."""
    found = []
    for row in rows:
        if row.ms is None or row.by_ours is None:
            continue
        if row.name == MONAI:
            found.append(Target("transforms: MONAI's default chain, by ours", row.by_ours, 10))
        if row.name == HF:
            found.append(Target("decoding: HF generate, by ours", row.by_ours, 3.5))
        if row.name in SECONDS:
            name = f"{row.stage}: {row.name}, seconds"
            found.append(Target(name, row.ms.times(1e-3), SECONDS[row.name], at_most=True))
    return found


def run(given: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    checkpoint = load_checkpoint(given.checkpoint)
    slices, rounds = (60, 2) if given.quick else (300, 5)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="mla_med-") as name:
        home = Path(name)
        write_phantom(home / "phantom", slices)
        study = with_context(read_study(home / "phantom"), KNOWN)
        chosen = next(v for v in choose_series(study, checkpoint.scope.examination) if v.chosen)
        volume = read_volume(chosen.series)
        folder = volume.series.instances[0].path.parent
        exported = None if given.exported is None else Path(given.exported)
        world = World(folder, study, volume, checkpoint, exported, home, given.quick)
        wanted = given.stages.split(",") if given.stages else list(STAGES)
        with bar_of("stages", len(wanted)) as say:
            for number, stage in enumerate(wanted, 1):
                rows += measure(stage, list(STAGES[stage](world)), rounds)
                say(number)
    facts = {
        "name": checkpoint.name,
        "sha256": checkpoint.weights_sha256,
        "shape": list(volume.voxels.shape),
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "torch": torch.__version__,
        "rounds": rounds,
        "quick": given.quick,
    }
    return rows, facts


def to_markdown(rows: Sequence[Row], facts: dict[str, Any]) -> str:
    lines = [
        "# A draft beside its peers and its floors",
        "",
        f"{facts['name']} ({facts['sha256'][:12]}); {' x '.join(map(str, facts['shape']))} voxels; "
        f"{facts['threads']} thread(s) of {facts['processor']}, torch {facts['torch']}; medians of "
        f"{facts['rounds']} rounds (lowest to highest).",
        "",
        "| stage | who | | ms | times ours |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if row.ms is None or row.by_ours is None:
            lines.append(f"| {row.stage} | {row.name} | {row.kind} | not installed | |")
        else:
            numbers = f"{row.ms.to_text()} | {row.by_ours.to_text()}"
            lines.append(f"| {row.stage} | {row.name} | {row.kind} | {numbers} |")
    # those are for 300 slices: of 60, what does not grow with them counts for too much
    if (targets := targets_of(rows)) and not facts["quick"]:
        lines += ["", *targets_table(targets)]
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stages = list(dict.fromkeys(row.stage for row in rows))
    colours = {OURS: "#2f6f8f", PEER: "#9f9f9f", FLOOR: "#d9b44a"}
    figure, axes = pyplot.subplots(len(stages), 1, figsize=(9, 1.6 * len(stages)), squeeze=False)
    for stage, axis in zip(stages, axes[:, 0], strict=True):
        some = [(r, r.ms.median) for r in rows if r.stage == stage and r.ms is not None][::-1]
        bars = axis.barh(
            [r.name for r, _ in some], [ms for _, ms in some], color=[colours[r.kind] for r, _ in some]
        )
        axis.bar_label(
            bars, [f"{ms:,.0f}" if ms >= 10 else f"{ms:.1f}" for _, ms in some], padding=3, fontsize=8
        )
        axis.margins(x=0.1)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(stage, loc="left", fontsize=10)
        axis.tick_params(labelsize=8)
    axes[-1, 0].set_xlabel("ms; blue: ours, grey: peers, yellow: what the machine allows")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.peers_draft",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, help="the packaged chest CT model by default")
    parser.add_argument("--exported", type=Path, help="what mla-med export wrote of it")
    parser.add_argument("--quick", action="store_true", help="60 slices and 2 rounds")
    parser.add_argument("--stages", default="", help=f"of {', '.join(STAGES)}; with commas; all by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    keep_freed()
    torch.set_num_threads(given.threads)
    try:
        rows, facts = run(given)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    values = {"facts": facts, "rows": [asdict(row) for row in rows]}
    tell("peers", to_markdown(rows, facts), values, given.out)
    draw(rows, given.out / "peers.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
