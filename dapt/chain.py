"""A recipe: the corpora and the steps of a chain of trainings, read from TOML and checked to its end. Nothing
is made here; recipe.py follows it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from dapt.corpus import PREPROCESSING, settings_of
from dapt.finish import RETEST
from dapt.growth import begun, grown
from dapt.train_config import TrainConfig
from mla_med.errors import ConfigError
from mla_med.model.config import ModalConfig
from mla_med.phantom.cohort import CohortConfig

RECIPES = Path(__file__).parent / "recipes"
SMALL = 10
"""Patients of each corpus."""


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
    config: ModalConfig | None = None
    before = PREPROCESSING[recipe.examination]
    for step in recipe.steps:
        training = step.training
        try:
            settings = settings_of(recipe.examination, recipe.corpora[step.corpus].spacing_mm)
            for each in (*step.rich, *step.unseen):
                if settings_of(recipe.examination, recipe.corpora[each].spacing_mm) != settings:
                    raise ConfigError(f"corpus {each} has other voxels than {step.corpus}.")
            if config is None:
                config = begun(settings, training)
            elif training.backbone or training.fusion_type != TrainConfig().fusion_type:
                raise ConfigError("backbone and fusion_type are of the first step, which makes the model.")
            else:
                config = grown(config, before, settings, training)
        except ConfigError as error:
            raise ConfigError(f"step {step.name}: {error}") from error
        before = settings


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
