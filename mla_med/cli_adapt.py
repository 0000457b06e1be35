"""`mla-med adapt`: a site's archive and some labels -> a model adapted to the site, with receipts. Beside it
what comes before: `mla-med corpus` makes a corpus, `mla-med annotate-next` says which studies to label next.

    mla-med adapt site.toml
    accelerate launch -m mla_med.cli_adapt site.toml     several processes

`dapt` trains and `evaluation` knows statistics, and neither knows the other: they meet here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mla_med.console import out
from mla_med.errors import ConfigError, MlaMedError

if TYPE_CHECKING:
    from dapt.judge import Sums

adapting = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
PROTOCOLS = {"zh": "zh"}
"""Of BLEU, by language; the others are cut into words as COCO does."""
EVERY_S = 5.0
"""A line of progress at most so often."""
QUICK_OUT = Path("out/adapt-quick")


@adapting.command()
def adapt(
    site: Annotated[
        Path | None,
        typer.Argument(help="A TOML file; docs/site.toml shows what it holds.", show_default=False),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tiny model on phantoms of two sites, in two minutes; no file.")
    ] = False,
    control: Annotated[
        bool,
        typer.Option("--control", help="Also the same steps without pre-training on the site, side by side."),
    ] = False,
    seeds: Annotated[str, typer.Option(help="Instead of those in the file, as 0,1,2.")] = "",
    to: Annotated[
        Path | None, typer.Option("--out", help="Instead of the folder in the file.", show_default=False)
    ] = None,
) -> None:
    """Adapt a model to a site: every stage of the file in its order, a receipt after each. A stage that is
    done is skipped, one that was killed goes on where it was."""
    from dapt.adapt import adapt as run
    from dapt.adapt import quick_plan
    from dapt.site import read_site
    from mla_med.memory import keep_freed

    keep_freed()
    began = time.perf_counter()
    chosen = _seeds(seeds)
    if quick:
        if site is not None:
            raise ConfigError("--quick makes its own plan; leave the file out.")
        plan = quick_plan(to or QUICK_OUT, control, chosen or (0,))
    elif site is None:
        raise ConfigError("Which site? mla-med adapt site.toml, or --quick to see how it goes.")
    else:
        plan = read_site(site)
        plan = replace(
            plan,
            out=str(to or plan.out),
            control=plan.control or control,
            seeds=chosen or plan.seeds,
        )
    folder = run(plan, Teller(), EvaluationReferee())
    out.print(f"{folder / 'receipts.html'} after {(time.perf_counter() - began) / 60:.1f} minutes")


PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def corpus(context: typer.Context) -> None:
    """Make a corpus of studies and reports, to adapt to: CSV, CT-RATE, MedPix, DICOM with SR or HL7, ...
    `mla-med corpus --help` shows the kinds."""
    from dapt.corpus import main as gather

    raise typer.Exit(gather(context.args, prog="mla-med corpus"))


def annotate_next(
    folder: Annotated[Path, typer.Argument(metavar="CORPUS", help="A corpus, as mla-med corpus makes one.")],
    checkpoint: Annotated[
        Path, typer.Option(help="A checkpoint, or the model/ of a stage of mla-med adapt.")
    ],
    n: Annotated[int, typer.Option("--n", min=1, help="So many studies.")] = 20,
    split: Annotated[str, typer.Option(help="Of the corpus: train, validation, test or all.")] = "train",
    done: Annotated[
        Path | None,
        typer.Option(help="A CSV whose column id names what is annotated beside what the corpus labels."),
    ] = None,
    to: Annotated[Path, typer.Option("--out", help="The CSV that is written.")] = Path("annotate_next.csv"),
) -> None:
    """Choose the studies to annotate next: where the model is unsure, and unlike those that are labelled."""
    from dapt.annotate import choose_next, read_done, to_csv
    from mla_med.corpus import read_examples, read_settings
    from mla_med.files import write_text
    from mla_med.model.checkpoint import read_model

    settings, examples = read_settings(folder), read_examples(folder, split)
    annotated = read_done(done) if done else frozenset()
    labelled = [e for e in examples if e.labels != "none" or e.id in annotated]
    ids = {e.id for e in labelled}
    candidates = [e for e in examples if e.id not in ids]
    choices = choose_next(read_model(checkpoint), candidates, labelled, n, settings)
    write_text(to, to_csv(choices))
    for choice in choices:
        out.print(f"{choice.order:3} {choice.id}  {choice.reason}")
    out.print(f"{to}: {len(choices)} of {len(candidates)} without labels, beside {len(labelled)} with")


class Teller:
    """Rows of a training -> lines of a terminal."""

    def __init__(self) -> None:
        self.last = 0.0

    def __call__(self, row: dict[str, Any]) -> None:
        if line := self._line(row):
            out.print(line)

    def _line(self, row: dict[str, Any]) -> str:
        where = f"{row.get('arm', '')} {row['stage']}, seed {row['seed']}".strip()
        if "receipt" in row:
            return f"{where}: {_short(row['receipt'])}"
        if "skipped" in row:
            return f"{where}: done before"
        if "resumed" in row:
            return f"{where}: goes on from step {row['step']} of {row['steps']}"
        if "why_not" in row:
            there = f"{row['folder']}: mla-med draft --checkpoint takes it"
            return f"seed {row['seed']}: " + (f"no checkpoint: {row['why_not']}" if row["why_not"] else there)
        if "added" in row:
            return f"{where}: {row['added']} tokens added"
        now = time.perf_counter()
        if now - self.last < EVERY_S and row["step"] < row["steps"]:
            return ""
        self.last = now
        numbers = {k: v for k, v in row.items() if isinstance(v, float) and k not in _UNSAID}
        if "validation loss" in numbers:  # its parts are on the page
            numbers = {"validation loss": numbers["validation loss"]}
        said = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        left = row["seconds"] / row["step"] * (row["steps"] - row["step"])
        return f"{where}: step {row['step']}/{row['steps']}, {said}; {left:.0f} s left"


_UNSAID = {"seconds", "tokens_per_s", "lr", "validation_s", "gradient"}


def _short(receipt: dict[str, Any]) -> str:
    """The numbers of the site that one looks at first."""
    site = receipt["measured"]["site"]
    parts = []
    if "text" in site["perplexity"]:
        parts.append(f"perplexity {site['perplexity']['text']:.1f}")
    if retrieval := site.get("retrieval"):
        hit, chance = retrieval["image to report R@5"], retrieval["chance R@5"]
        parts.append(f"R@5 {hit:.2f} (chance {chance:.2f})")
    if rank := site.get("rank"):
        parts.append(f"effective rank {rank['effective_rank']:.1f} of {rank['of']}")
    if "findings" in site:
        parts.append(f"macro F1 {site['findings']['macro F1']:.3f}")
    return "receipt: " + (", ".join(parts) or "nothing to measure on")


@dataclass(frozen=True, slots=True)
class EvaluationReferee:
    """BLEU-4 and intervals by `evaluation`."""

    def texts(self, references: Sequence[str], drafts: Sequence[str], language: str) -> dict[str, Sums]:
        from dapt.judge import Sums
        from evaluation.text import text_scores

        score = text_scores(references, drafts, PROTOCOLS.get(language, "coco"), only=("BLEU-4",))["BLEU-4"]
        return {"BLEU-4": Sums(score.sums.each_RT, score.sums.value_of, True, score.signature)}

    def compare(
        self, chain: Sequence[Sums], control: Sequence[Sums], patients: Sequence[str]
    ) -> dict[str, Any]:
        """Means over the seeds; every resample of patients is the same for all of them."""
        from evaluation.statistics import draw_resamples, estimate

        resamples = draw_resamples(patients, "patient")
        ours, theirs = _mean_of(chain), _mean_of(control)
        statistics = {
            "adapted": ours,
            "control": theirs,
            "difference": lambda counts_BR: ours(counts_BR) - theirs(counts_BR),
        }
        row: dict[str, Any] = {"resamples": resamples.signature}
        for name, statistic in statistics.items():
            measured = estimate(statistic, resamples)
            row[name], row[f"{name}_ci95"] = measured.value, list(measured.ci95)
        return row


def _mean_of(arm: Sequence[Sums]) -> Callable[[Any], Any]:
    """The statistic of a score over the seeds."""

    def statistic(counts_BR: Any) -> Any:
        return sum(sums.value_of(counts_BR @ sums.each_RT) for sums in arm) / len(arm)

    return statistic


def _seeds(words: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in words.split(",") if word.strip())
    except ValueError as error:
        raise ConfigError(f"--seeds are whole numbers with commas, as 0,1,2, not '{words}'.") from error


def main() -> None:
    """For `accelerate launch`: an error that a user can cause is one line and exit code 1."""
    try:
        adapting()
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
