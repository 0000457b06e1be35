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
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from dapt.corpus import PREPROCESSING, prepare_corpus, settings_of
from dapt.deepen import check_units
from dapt.finer import check_untold, is_half, width_of
from dapt.finish import RETEST, train_checkpoint
from dapt.tell import check_told
from dapt.train import pretrain, stages_of
from dapt.train_config import TrainConfig
from dapt.trainer import Log
from dapt.widen import check_own, check_widths
from mla_med.errors import ConfigError, MlaMedError, OutputError
from mla_med.files import write_text
from mla_med.imaging.grid import Preprocessing
from mla_med.memory import keep_freed
from mla_med.model.calibrate import Calibration
from mla_med.model.checkpoint import save_checkpoint
from mla_med.model.config import ModalConfig
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
    except (FileNotFoundError, IsADirectoryError) as error:
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise ConfigError(f"No recipe {path.name}. There are {known}; or give a file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} is no TOML: {error}") from error
    try:
        return _recipe(path.stem, told)
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from error


def _recipe(name: str, told: Mapping[str, Any]) -> Recipe:
    if strange := set(told) - {"examination", "corpora", "steps"}:
        raise ConfigError(f"nothing is called {', '.join(sorted(strange))}.")
    examination, corpora, steps = told.get("examination"), told.get("corpora"), told.get("steps")
    if examination not in list(PREPROCESSING):
        raise ConfigError(f"examination is one of {', '.join(PREPROCESSING)}.")
    if not isinstance(corpora, dict) or not all(isinstance(each, dict) for each in corpora.values()):
        raise ConfigError("corpora are tables: [corpora.NAME] with n and seed.")
    if not isinstance(steps, list) or not all(isinstance(each, dict) for each in steps):
        raise ConfigError("steps are tables: [[steps]] with a name and a corpus.")
    usual = {"examination": examination, "form": "truth"}
    made = {}
    for each, values in corpora.items():
        if strange := usual.keys() & values.keys():
            raise ConfigError(f"corpus {each}: {', '.join(sorted(strange))} is that of the recipe.")
        made[each] = _made(CohortConfig, usual | {"seed": 1} | values, f"corpus {each}")
        if made[each].n < SMALL:
            raise ConfigError(f"corpus {each}: {SMALL} patients or more, so that each split has some.")
    recipe = Recipe(name, examination, made, tuple(_step(values, made, n) for n, values in enumerate(steps)))
    _check_who(recipe)
    _check_chain(recipe)
    return recipe


def _step(values: Mapping[str, Any], corpora: Mapping[str, CohortConfig], n: int) -> Step:
    rest = dict(values)
    name, corpus = str(rest.pop("name", n + 1)), str(rest.pop("corpus", ""))
    rich, unseen = (tuple(rest.pop(key, ())) for key in ("rich", "unseen"))
    if strange := [each for each in (corpus, *rich, *unseen) if each not in corpora]:
        raise ConfigError(f"step {name}: no corpus '{strange[0]}'; there are {', '.join(corpora)}.")
    # what goes on has read its words, and its lesions, unless it is asked to again
    usual = {"text_epochs": 0, "rounds": 0} if n else {}
    return Step(name, corpus, _made(TrainConfig, usual | rest, f"step {name}"), rich, unseen)


def _made(kind: type, values: Mapping[str, Any], where: str) -> Any:
    known = {each.name: each.default for each in fields(kind)}
    if strange := sorted(set(values) - set(known)):
        raise ConfigError(f"{where}: nothing is called {', '.join(strange)}.")
    listed = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    for key, value in listed.items():
        wanted = type(known[key])
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise ConfigError(f"{where}: {key} is a {wanted.__name__}, not {value!r}.")
    try:
        return kind(**listed)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _check_who(recipe: Recipe) -> None:
    """That nobody who is calibrated on was learnt from, and that they are like those who will come."""
    if not recipe.steps:
        raise ConfigError("no steps: [[steps]] with a name and a corpus.")
    last = recipe.steps[-1]
    if early := [step.name for step in recipe.steps[:-1] if step.unseen]:
        raise ConfigError(f"only the last step is calibrated, so unseen is not for {early[0]}.")
    learnt = {recipe.corpora[each].seed for step in recipe.steps for each in (step.corpus, *step.rich)}
    seeds = [recipe.corpora[each].seed for each in last.unseen]
    if len(set(seeds) - learnt) < len(last.unseen):
        raise ConfigError("unseen holds patients of a corpus that is learnt from, or twice: another seed.")
    if often := [each for each in (last.corpus, *last.unseen) if recipe.corpora[each].odds != 1]:
        raise ConfigError(f"corpus {often[0]}: what is calibrated on has findings at the usual odds (1).")


def _check_chain(recipe: Recipe) -> None:
    """That each step can go on from the one before: what would fail hours later fails now."""
    config = ModalConfig(channels=PREPROCESSING[recipe.examination].channels)
    before: Preprocessing | None = None
    for step in recipe.steps:
        training = step.training
        try:
            settings = settings_of(recipe.examination, recipe.corpora[step.corpus].spacing_mm)
            for each in (*step.rich, *step.unseen):
                if settings_of(recipe.examination, recipe.corpora[each].spacing_mm) != settings:
                    raise ConfigError(f"corpus {each} has other voxels than {step.corpus}.")
            if before is None:
                stages = stages_of(settings, training.widths, training.units, training.backbone)
                config = _changed(config, hessian=training.hessian, **stages)
            else:
                config = _grown(config, before, settings, training)
        except ConfigError as error:
            raise ConfigError(f"step {step.name}: {error}") from error
        before = settings


def _grown(
    config: ModalConfig, before: Preprocessing, settings: Preprocessing, training: TrainConfig
) -> ModalConfig:
    if training.backbone or training.fusion_type != TrainConfig().fusion_type:
        raise ConfigError("backbone and fusion_type are of the first step, which makes the model.")
    halves = is_half(settings, before)
    if not halves and settings != before:
        raise ConfigError("its voxels are neither those of the step before nor half as large.")
    if halves or training.widths or training.units or training.hessian:
        check_own(config)
    if halves:
        check_untold(config)
        widths, units = (width_of(settings.channels), *config.widths), (0, *config.units)
        config = _changed(config, widths=widths, units=units)
    if training.widths:
        check_widths(training.widths, config.widths)
    if training.units:
        check_units(training.units, config.units)
    if training.hessian:
        check_told(training.hessian, config.channels, config.hessian)
    grown = {name: getattr(training, name) for name in ("widths", "units", "hessian")}
    return _changed(config, **{name: value for name, value in grown.items() if value})


def _changed(config: ModalConfig, **values: Any) -> ModalConfig:
    kept = {name: getattr(config, name) for name in ("channels", "widths", "units", "hessian", "backbone")}
    return ModalConfig(**kept | values)


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
