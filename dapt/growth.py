"""An image encoder, and what a training makes of it before it learns: stages, channels, convolutions, and
what it is told. That this can be done is checked here, without any weights, so that what cannot fails at once
and not after hours; finer.py, widen.py, deepen.py and tell.py do it."""

from __future__ import annotations

from typing import Any

from dapt.deepen import check_units
from dapt.finer import check_untold, is_half, width_of
from dapt.tell import check_told
from dapt.train_config import TrainConfig
from dapt.widen import check_own, check_widths
from mla_med.errors import ConfigError
from mla_med.imaging.grid import Preprocessing
from mla_med.model.config import LEVELS, ModalConfig, default

LEAST_CELL_MM = 8.0
"""A new model has as many stages as make its finest cells this large."""


def stages_of(
    settings: Preprocessing,
    wanted_widths: tuple[int, ...] = (),
    wanted_units: tuple[int, ...] = (),
    backbone: str = "",
) -> dict[str, Any]:
    """Of the image encoder: one without convolutions in front for each halving of the usual voxels, and in
    each as many channels and convolutions as are wanted; or those of a MONAI network."""
    if backbone:
        return {"backbone": backbone}
    widths, units = tuple(default().widths), tuple(default().units)
    while 2 ** (len(widths) - LEVELS + 1) * settings.spacing_mm < LEAST_CELL_MM:
        widths, units = (width_of(settings.channels), *widths), (0, *units)
    for name, wanted in (("widths", wanted_widths), ("units", wanted_units)):
        if wanted and len(wanted) != len(widths):
            raise ConfigError(f"Images in these voxels want {len(widths)} stages, not {len(wanted)} {name}.")
    return {"widths": wanted_widths or widths, "units": wanted_units or units}


def begun(settings: Preprocessing, training: TrainConfig) -> ModalConfig:
    """The image encoder of a new model of such images; of no other part anything is said. ConfigError where
    there is none."""
    stages = stages_of(settings, training.widths, training.units, training.backbone)
    return ModalConfig(channels=settings.channels, hessian=training.hessian, **stages)


def grown(
    config: ModalConfig, before: Preprocessing, settings: Preprocessing, training: TrainConfig
) -> ModalConfig:
    """The image encoder that `config` becomes, which read `before`, where a training on images of `settings`
    goes on from it. ConfigError where it cannot."""
    halves = is_half(settings, before)
    if not halves and settings != before:
        raise ConfigError("These voxels are neither those that the model reads nor half as large.")
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
    wanted = {name: getattr(training, name) for name in ("widths", "units", "hessian")}
    return _changed(config, **{name: value for name, value in wanted.items() if value})


def _changed(config: ModalConfig, **values: Any) -> ModalConfig:
    kept = {name: getattr(config, name) for name in ("channels", "widths", "units", "hessian")}
    return ModalConfig(**kept | values) if values else config
