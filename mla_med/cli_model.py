"""`mla-med export` and `mla-med prune`: a checkpoint made to run elsewhere, or to run faster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mla_med.console import out, say_steps

Source = Annotated[Path, typer.Argument(help="A checkpoint folder; chest_ct or brain_mr: the packaged one.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for the result; made if missing.")]


def export(
    checkpoint: Source,
    to: Out,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Weights in 8 bits, if findings, texts and linter stay as good."),
    ] = False,
    phantoms: Annotated[int, typer.Option(min=8, help="Patients that int8 is judged on.")] = 48,
) -> None:
    """Write a checkpoint as ONNX graphs, for `draft --backend onnx` or `openvino`: drafts without PyTorch."""
    from mla_med.model.checkpoint import load_checkpoint
    from mla_med.model.export import export_checkpoint, quantise

    folder = folder_of(checkpoint)
    with say_steps("loading the model") as say:
        loaded = load_checkpoint(folder)
        say("writing the graphs, and comparing them with PyTorch")
        made = export_checkpoint(loaded, folder, to)
        if int8:
            from evaluation.exported import judge_on_phantoms

            say(f"judging 8 bits on {phantoms} phantoms")
            words = quantise(made, lambda one, other: judge_on_phantoms(one, other, phantoms))
            out.print(words)
    for path in sorted(made.iterdir()):
        out.print(str(path))


def folder_of(checkpoint: Path) -> Path:
    """The packaged checkpoints have names."""
    from mla_med.model import CHECKPOINTS

    return checkpoint if checkpoint.exists() else CHECKPOINTS.get(str(checkpoint), checkpoint)


def prune(
    checkpoint: Source,
    to: Out,
    corpus: Annotated[
        Path, typer.Option(help="A corpus of mla-med adapt: its training part teaches, the rest judges.")
    ],
    latency: Annotated[
        float, typer.Option(min=0.1, max=1.0, help="Of the encoder, by what it takes now.")
    ] = 0.58,
    studies: Annotated[int, typer.Option(min=4, help="That channels are weighed by.")] = 64,
    cubes: Annotated[int, typer.Option(min=0, help="Steps of recovery by cubes, before --steps.")] = 1200,
    steps: Annotated[int, typer.Option(min=0, help="Of recovery, of --batch studies each.")] = 2000,
    batch: Annotated[int, typer.Option(min=1)] = 4,
    seed: Annotated[int, typer.Option(help="Which studies weigh and teach, in which order.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="That latency is measured with.")] = 2,
) -> None:
    """Remove the channels that are worth least, until the encoder takes no longer than was wished; teach
    what is left, calibrate it anew, and say what was lost. The curve that was chosen from is in README.md."""
    from dapt.prune import Wish, prune_checkpoint

    wish = Wish(latency, studies, cubes, steps, batch, seed, threads)
    with say_steps("weighing channels") as say:
        words = prune_checkpoint(folder_of(checkpoint), corpus, to, wish, say)
    out.print(words)
    for path in sorted(to.iterdir()):
        out.print(str(path))
