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
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from dapt.corpus import PREPROCESSING, prepare_corpus
from dapt.finish import RETEST, train_checkpoint
from dapt.train import pretrain
from dapt.train_config import TrainConfig
from dapt.trainer import Log
from mla_med.errors import ConfigError, MlaMedError
from mla_med.files import write_text
from mla_med.memory import keep_freed
from mla_med.model.calibrate import Calibration
from mla_med.model.checkpoint import save_checkpoint
from mla_med.model.gate import SCOPES
from mla_med.phantom.cohort import CohortConfig, make_cohort

RECIPES = Path(__file__).parent / "recipes"
SMALL = 10
"""Patients of each corpus."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    corpus: str
    training: TrainConfig
    rich: tuple[str, ...] = ()
    """Corpora to learn from as well."""
    unseen: tuple[str, ...] = ()
    """Corpora to calibrate on as well, of the last step."""


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str
    examination: str
    corpora: Mapping[str, CohortConfig]
    steps: tuple[Step, ...]
    retest: int = RETEST
    """Phantoms that are scanned twice, to see how well sizes are repeated."""


def read_recipe(path: Path) -> Recipe:
    """ConfigError says what is wrong with it, before anything is made."""
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise ConfigError(f"No recipe {path.name}. There are {known}; or give a file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} is no TOML: {error}") from error
    examination = told.get("examination")
    if examination not in PREPROCESSING:
        raise ConfigError(f"{path.name}: examination is one of {', '.join(PREPROCESSING)}.")
    usual = {"examination": examination, "form": "truth", "seed": 1}
    corpora = {
        name: _made(CohortConfig, usual | values, f"{path.name}, corpus {name}")
        for name, values in told.get("corpora", {}).items()
    }
    steps = [_step(values, corpora, n, path.name) for n, values in enumerate(told.get("steps", []))]
    if not steps:
        raise ConfigError(f"{path.name} has no steps: [[steps]] with a name and a corpus.")
    if early := [step.name for step in steps[:-1] if step.unseen]:
        raise ConfigError(f"{path.name}: only the last step is calibrated, so unseen is not for {early[0]}.")
    return Recipe(path.stem, examination, corpora, tuple(steps))


def _step(values: Mapping[str, Any], corpora: Mapping[str, Any], n: int, where: str) -> Step:
    rest = dict(values)
    name, corpus = str(rest.pop("name", n + 1)), str(rest.pop("corpus", ""))
    rich, unseen = (tuple(map(str, rest.pop(key, ()))) for key in ("rich", "unseen"))
    if strange := [each for each in (corpus, *rich, *unseen) if each not in corpora]:
        raise ConfigError(f"{where}, step {name}: no corpus '{strange[0]}'; there are {', '.join(corpora)}.")
    # what goes on has read its words, and its lesions, unless it is asked to again
    usual = {"text_epochs": 0, "rounds": 0} if n else {}
    listed = {key: tuple(value) if isinstance(value, list) else value for key, value in rest.items()}
    return Step(name, corpus, _made(TrainConfig, usual | listed, f"{where}, step {name}"), rich, unseen)


def _made(kind: type, values: Mapping[str, Any], where: str) -> Any:
    known = {each.name for each in fields(kind)}
    if strange := sorted(set(values) - known):
        raise ConfigError(f"{where}: nothing is called {', '.join(strange)}.")
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


def made_small(recipe: Recipe) -> Recipe:
    """The same way with few patients and steps."""
    corpora = {name: replace(each, n=SMALL) for name, each in recipe.corpora.items()}
    steps = [
        replace(
            step,
            training=replace(
                step.training,
                rounds=min(1, step.training.rounds),
                round_steps=2,
                epochs=min(1, step.training.epochs),
            ),
        )
        for step in recipe.steps
    ]
    return replace(recipe, corpora=corpora, steps=tuple(steps), retest=2)


def follow(recipe: Recipe, work: Path, say: Say = print, workers: int = 1, device: str = "cpu") -> Path:
    """-> the checkpoint of the last step. What is there of an earlier run of the same recipe is not made
    again; of another one, ConfigError."""
    _check_same(recipe, work)
    corpora = {
        name: _corpus(work / "corpora" / name, replace(config, workers=workers), name, say)
        for name, config in recipe.corpora.items()
    }
    out: Path | None = None
    for n, step in enumerate(recipe.steps, 1):
        say(f"step {n} of {len(recipe.steps)}: {step.name}")
        home = work / "steps" / f"{n}-{step.name.replace(' ', '-')}"
        out = _take(recipe, step, home, corpora, out, device, lambda row: say(json.dumps(row)))
    assert out is not None
    return out


def _check_same(recipe: Recipe, work: Path) -> None:
    path, now = work / "recipe.json", json.dumps(asdict(recipe), indent=1) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") != now:
        raise ConfigError(f"{work} was begun with another recipe. Use another --work, or delete it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, now)


def _take(
    recipe: Recipe,
    step: Step,
    home: Path,
    corpora: Mapping[str, Path],
    start: Path | None,
    device: str,
    log: Log,
) -> Path:
    """One step, from the checkpoint of the one before -> its own."""
    corpus, training, out = corpora[step.corpus], replace(step.training, device=device), home / "checkpoint"
    rich = [corpora[name] for name in step.rich]
    if step is recipe.steps[-1]:
        return train_checkpoint(
            *(corpus, home / "training", out, training, log, f"python -m dapt.recipe {recipe.name}"),
            start=start,
            unseen=[corpora[name] for name in step.unseen],
            rich=rich,
            retest=recipe.retest,
        )
    if not (out / "checkpoint.json").is_file():
        model = pretrain(corpus, home / "training", training, log=log, start=start, rich=rich)
        save_checkpoint(
            *(out, model, Calibration({}, (), (), 0.0), SCOPES[recipe.examination]),
            *(f"step {step.name} of {recipe.name}", "0", "Not calibrated: a step on the way.\n"),
        )
    return out


def _corpus(home: Path, config: CohortConfig, name: str, say: Say) -> Path:
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
    try:
        recipe = read_recipe(path if path.is_file() else Path(given.recipe))
        recipe = made_small(recipe) if given.small else recipe
        work = given.work or Path("runs") / recipe.name
        out = follow(recipe, work, lambda words: print(words, flush=True), given.workers, given.device)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    print(f"{out} written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
