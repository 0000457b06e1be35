"""site.toml -> what is trained on what, in which order: frozen dataclasses, checked where they enter.

    out = "runs/site_b"
    control = true

    [model]
    start = "runs/chest_ct/checkpoint"

    [corpora]
    site = "runs/site_b/corpus"
    labelled = 64

Everything else has a default. An unknown key is an error that names the nearest. docs/site.toml has every key
that is often changed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dapt.loop import LoopConfig
from mla_med.errors import ConfigError

KINDS = ("s1", "s2", "s3", "dapt", "tapt")
SIZES = ("tiny", "default", "small", "base")
CORPORA = ("source", "site")
ARCHIVES = ("all", "unpaired", "images", "texts")


@dataclass(frozen=True, slots=True)
class ModelPlan:
    start: str = ""
    """A folder with a model (config.json and model.safetensors: a checkpoint, or what a stage left); empty: a
    new model."""
    size: str = "default"
    """Of a new model: tiny, default, small or base."""
    fusion_type: str = "full"
    vocabulary: int = 2048
    """Tokens of a new model."""
    positions: int = 1024
    """The longest report of a new model, in tokens."""
    extend: int = 0
    """So many tokens are added for what the site writes and the model spells in pieces; 0: none."""

    def __post_init__(self):
        _one_of("model.size", self.size, SIZES)


@dataclass(frozen=True, slots=True)
class CorporaPlan:
    site: str = ""
    """The corpus that is adapted to."""
    source: str = ""
    """The corpus that came before: what a new model learns first, and what forgetting is measured on. Empty:
    there is none."""
    labelled: int = 0
    """So many studies of the site's train split have findings that may be learnt from, chosen by the hash of
    their id; 0: all. The others are the archive without labels."""
    archive: str = "all"
    """What there is of the archive: all (images beside their reports), unpaired (both, but nobody knows which
    belong together), images, or texts."""

    def __post_init__(self):
        _one_of("corpora.archive", self.archive, ARCHIVES)
        if not self.site:
            raise ConfigError("No corpus to adapt to: [corpora] site = FOLDER, as dapt.corpus writes one.")


@dataclass(frozen=True, slots=True)
class Stage:
    kind: str
    """s1: hidden voxels and report text. s2: image and report alike, findings. s3: findings, report and
    matching. dapt: s1 and s2 on the archive, without labels. tapt: report text of the labelled studies."""
    corpus: str = "site"
    """source or site."""
    batch: int = 4
    """Examples of a micro-step of one process."""
    accumulate: int = 4
    """Micro-steps to a step of the optimizer (the source articles: 4)."""
    hidden: float = 0.6
    """s1, dapt: share of the cells that are hidden."""
    queue: int = 0
    """s2, dapt: so many earlier pairs are negatives too, as a model that follows slowly (ALBEF) sees them:
    for micro-batches of very few. Every pair is looked at twice then."""
    match: float = 0.5
    """s3: weight of the matching of image and report; 0: none, and its time is saved."""
    shift: int = 4
    """Images are moved by up to so many voxels along each axis."""
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self):
        _one_of("stage.kind", self.kind, KINDS)
        _one_of("stage.corpus", self.corpus, CORPORA)
        if min(self.batch, self.accumulate) < 1 or not 0 < self.hidden < 1:
            raise ConfigError("A stage has a batch and accumulate of 1 or more, and hidden between 0 and 1.")

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.corpus}"


@dataclass(frozen=True, slots=True)
class Measured:
    examples: int = 200
    """Of each validation split, its first, that receipts are measured on; the probe trains on as many of the
    train split."""
    drafts: int = 50
    """Validation studies of which reports are written to compare with the control; 0: none."""
    tokens: int = 512
    """Longest draft."""
    batch: int = 8


@dataclass(frozen=True, slots=True)
class SitePlan:
    out: str
    corpora: CorporaPlan
    model: ModelPlan = field(default_factory=ModelPlan)
    stages: tuple[Stage, ...] = ()
    seeds: tuple[int, ...] = (0,)
    control: bool = False
    """Also the same steps without pre-training on the site: s3 alone, from the same start."""
    measured: Measured = field(default_factory=Measured)

    def __post_init__(self):
        if not self.seeds:
            raise ConfigError("No seeds; give at least one: seeds = [0].")
        if any(stage.corpus == "source" for stage in self.stages) and not self.corpora.source:
            raise ConfigError("A stage learns from the source corpus, and there is none: [corpora] source.")

    @property
    def shared(self) -> tuple[Stage, ...]:
        """The stages before the first on the site: those of chain and control."""
        site = [n for n, stage in enumerate(self.stages) if stage.corpus == "site"]
        return self.stages[: site[0]] if site else self.stages

    @property
    def adapting(self) -> tuple[Stage, ...]:
        return self.stages[len(self.shared) :]

    @property
    def controlling(self) -> tuple[Stage, ...]:
        """One stage s3 with the steps of all stages on the site."""
        last = [stage for stage in self.adapting if stage.kind == "s3"]
        if not last:
            raise ConfigError("A control has the steps of the site's stages in s3, so there has to be an s3.")
        steps = sum(stage.loop.steps for stage in self.adapting)
        return (replace(last[-1], loop=replace(last[-1].loop, steps=steps)),)


def read_site(path: Path) -> SitePlan:
    if not path.is_file():
        raise ConfigError(
            f"No file {path}. docs/site.toml shows what it holds; --quick needs none.", code="CONFIG_MISSING"
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return to_plan(table)


def to_plan(table: Mapping[str, Any]) -> SitePlan:
    known = ("out", "seeds", "control", "model", "corpora", "receipts", "every_stage", "stage")
    _check_keys(table, known, "")
    if "out" not in table:
        raise ConfigError('Where does it go? out = "runs/NAME" is missing.')
    model = _made(ModelPlan, table.get("model", {}), "model")
    corpora = _made(CorporaPlan, table.get("corpora", {}), "corpora")
    every = table.get("every_stage", {})
    stages = table.get("stage") or _usual(bool(model.start), bool(corpora.source))
    seeds = table.get("seeds", [0])
    if not isinstance(seeds, list) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ConfigError(f"seeds is a list of whole numbers, as [0, 1, 2], not {seeds}.")
    return SitePlan(
        out=str(table["out"]),
        corpora=corpora,
        model=model,
        stages=tuple(_stage({**every, **stage}) for stage in stages),
        seeds=tuple(seeds),
        control=_typed(table.get("control", False), bool, "control"),
        measured=_made(Measured, table.get("receipts", {}), "receipts"),
    )


def _usual(has_start: bool, has_source: bool) -> list[dict[str, Any]]:
    """The chain where none is given: what a new model learns first, then the site."""
    first: list[dict[str, Any]] = [{"kind": kind, "corpus": "source"} for kind in ("s1", "s2", "s3")]
    site: list[dict[str, Any]] = [{"kind": "dapt"}, {"kind": "tapt", "steps": 200}, {"kind": "s3"}]
    return site if has_start or not has_source else [*first, *site]


def _stage(table: Mapping[str, Any]) -> Stage:
    own = {f.name for f in fields(Stage)} - {"loop"}
    of_loop = {f.name for f in fields(LoopConfig)} - {"seed"}
    _check_keys(table, (*own, *of_loop), "stage")
    if "kind" not in table:
        raise ConfigError(f"A [[stage]] has a kind: {', '.join(KINDS)}.")
    loop = _made(LoopConfig, {k: v for k, v in table.items() if k in of_loop}, "stage")
    mine = {k: _typed(v, _kind_of(Stage, k), f"stage.{k}") for k, v in table.items() if k in own}
    return Stage(**mine, loop=loop)


def _made(cls: Any, table: Any, where: str) -> Any:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} is a table: [{where}].")
    _check_keys(table, [f.name for f in fields(cls)], where)
    return cls(**{k: _typed(v, _kind_of(cls, k), f"{where}.{k}") for k, v in table.items()})


def _kind_of(cls: Any, name: str) -> type:
    words = next(f.type for f in fields(cls) if f.name == name)
    return {"str": str, "int": int, "float": float, "bool": bool}[str(words)]


def _typed(value: Any, kind: type, where: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{where} is of kind {kind.__name__}, not {value!r}.")
    return value


def _check_keys(table: Mapping[str, Any], known: Any, where: str) -> None:
    for key in table:
        if key not in known:
            near = get_close_matches(key, list(known), n=1, cutoff=0.0)[0]
            raise ConfigError(f"No key '{key}'{f' in {where}' if where else ''}. Did you mean '{near}'?")


def _one_of(where: str, value: str, values: tuple[str, ...]) -> None:
    if value not in values:
        raise ConfigError(f"{where} is one of {', '.join(values)}, not '{value}'.")
