"""A recipe -> the checkpoint at the end of a chain of trainings: a packaged model anew, by one command.

    python -m dapt.recipe chest_ct --work runs/chest_ct

A recipe (TOML; dapt/recipes/ has those of the packaged models) names corpora of phantoms and the steps of
training on them. The first step begins with random weights, each next one goes on from the one before, the
last is calibrated. Killed, it goes on where it was. --small walks the whole way with a few patients, to see
that it can be walked; what it makes is no model.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dapt.chain import RECIPES, Recipe, Step, made_small, read_recipe
from dapt.corpus import prepare_corpus
from dapt.finish import train_checkpoint
from dapt.train import pretrain
from dapt.train_config import TrainConfig
from dapt.trainer import Log
from mla_med.errors import ConfigError, MlaMedError, OutputError
from mla_med.files import write_text
from mla_med.memory import keep_freed
from mla_med.model.calibrate import Calibration
from mla_med.model.checkpoint import save_checkpoint
from mla_med.model.gate import SCOPES
from mla_med.phantom.cohort import CohortConfig, make_cohort

Say = Callable[[str], None]


def follow(
    recipe: Recipe, work: Path, say: Say = print, workers: int = 1, device: str = "cpu", command: str = ""
) -> Path:
    """-> the checkpoint of the last step. What is there of an earlier run of the same recipe is not made
    again; of another one, ConfigError."""
    _check_same(recipe, work)
    homes = [_home(work, n, step) for n, step in enumerate(recipe.steps, 1)]
    if _is_whole(homes[-1]):
        return homes[-1] / "checkpoint"
    corpora = {
        name: _corpus(work / "corpora" / name, replace(config, workers=workers), name, say)
        for name, config in recipe.corpora.items()
    }
    start: Path | None = None
    for n, (step, home) in enumerate(zip(recipe.steps, homes, strict=True), 1):
        say(f"step {n} of {len(recipe.steps)}: {step.name}")
        if not _is_whole(home):
            _take(recipe, n, home, corpora, start, device, lambda row: say(json.dumps(row)), command)
        start = home / "checkpoint"
    return homes[-1] / "checkpoint"


def _home(work: Path, number: int, step: Step) -> Path:
    return work / "steps" / f"{number}-{step.name.replace(' ', '-')}"


def _is_whole(home: Path) -> bool:
    return (home / "checkpoint" / "checkpoint.json").is_file()


def _check_same(recipe: Recipe, work: Path) -> None:
    path, now = work / "recipe.json", _told(recipe)
    if path.is_file() and _filled(json.loads(path.read_text(encoding="utf-8"))) != now:
        raise ConfigError(f"{work} was begun with another recipe. Use another --work, or delete it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(now, indent=1) + "\n")


def _told(recipe: Recipe) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return told


def _filled(told: dict[str, Any]) -> dict[str, Any]:
    """What a recipe is older than had the value that is the default now."""
    usual = {each: json.loads(json.dumps(asdict(each()))) for each in (CohortConfig, TrainConfig)}
    corpora = {name: usual[CohortConfig] | each for name, each in told["corpora"].items()}
    steps = [step | {"training": usual[TrainConfig] | step["training"]} for step in told["steps"]]
    return told | {"corpora": corpora, "steps": steps}


def _take(
    recipe: Recipe,
    number: int,
    home: Path,
    corpora: Mapping[str, Path],
    start: Path | None,
    device: str,
    log: Log,
    command: str,
) -> None:
    """One step, from the checkpoint of the one before to its own."""
    step = recipe.steps[number - 1]
    corpus, training, out = corpora[step.corpus], replace(step.training, device=device), home / "checkpoint"
    rich = [corpora[name] for name in step.rich]
    if number < len(recipe.steps):
        model = pretrain(corpus, home / "training", training, log=log, start=start, rich=rich)
        save_checkpoint(
            *(out, model, Calibration({}, (), (), 0.0), SCOPES[recipe.examination]),
            *(f"step {step.name} of {recipe.name}", "0", "Not calibrated: a step on the way.\n"),
        )
        return
    used = dict.fromkeys(name for each in recipe.steps for name in (each.corpus, *each.rich))
    train_checkpoint(
        *(corpus, home / "training", out, training, log, command or f"python -m dapt.recipe {recipe.name}"),
        start=start,
        unseen=[corpora[name] for name in step.unseen],
        rich=rich,
        retest=recipe.retest,
        before=[corpora[name] for name in used if name not in (step.corpus, *step.rich)],
    )


def _corpus(home: Path, config: CohortConfig, name: str, say: Say) -> Path:
    if (home / "corpus" / "corpus.json").is_file():  # what is written last
        return home / "corpus"

    def told(what: str) -> Callable[[int, int], None]:
        def tell(done: int, of: int) -> None:
            if done % 100 == 0 or done == of:
                say(f"corpus {name}: {what} {done}/{of}")

        return tell

    cohort = make_cohort(config, home / "cohort", told("patient"))
    return prepare_corpus(cohort, home / "corpus", workers=config.workers, progress=told("image"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dapt.recipe", description=__doc__)
    parser.add_argument("recipe", help="chest_ct or brain_mr, or a file")
    parser.add_argument("--work", type=Path, help="where everything is kept; usually runs/RECIPE")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw patients")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--small", action="store_true", help="with a few patients, to see that it goes")
    given = parser.parse_args()
    keep_freed()
    path = RECIPES / f"{given.recipe}.toml"
    path = path if path.is_file() else Path(given.recipe)
    work = given.work or Path("runs") / path.stem
    try:
        recipe = read_recipe(path)
        recipe = made_small(recipe) if given.small else recipe
        command = shlex.join(["python", "-m", "dapt.recipe", *sys.argv[1:]])
        out = follow(recipe, work, lambda told: print(told, flush=True), given.workers, given.device, command)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{OutputError.code}: {work} cannot be written: {error.strerror}.", file=sys.stderr)
        return 1
    print(f"{out} written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
