"""A pruned model, the whole one and studies -> the pruned one, taught to see what the whole one sees.

settle(pruned, batches)
imitate(pruned, whole, course)    by pieces of images
recover(pruned, whole, course)    by whole ones
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dapt.collate import map_of
from dapt.schedule import check_gradient
from mla_med.model.compress import Batch
from mla_med.model.findings import map_loss
from mla_med.model.fusion import HierarchicalFeatureFusion
from mla_med.model.image_encoder import Level
from mla_med.model.lesion_map import LesionMap
from mla_med.model.mla import MLAModel

EDGE = 16
"""Cells of the finest level along the edge of a cube, a multiple of COARSEST."""
COARSEST = 4
"""Of them along the edge of a cell of the coarsest level."""
CUBES = 4
"""Of each image that is read, one step after the other."""
Lesson = Callable[[int], Batch]
"""The number of a lesson -> its batch, the same whenever it is asked."""
EMPTY_CELL = 0.01
"""What a cell counts of which the whole model is sure that it holds nothing: nearly every cell is one."""
SAVE_EVERY = 50
"""Steps."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Of AdamW."""
SEEING = ("image_encoder.", "fusion.pyramid.", "fusion.lesion_map.")
"""Parameters of what a cube shows."""


@dataclass(frozen=True, slots=True)
class Course:
    """How what is left is taught."""

    lesson: Lesson
    steps: int
    lr: float = 1e-3
    patches: Lesson | None = None
    """Pieces with small lesions (dapt.collate.collate_patches), which whole images hardly show; none: no
    lesion is small."""
    precision: str = "fp32"
    """Of convolutions and matrix products: fp32 or bf16."""
    log: Callable[[int, float], None] = lambda step, loss: None
    state: Path | None = None
    """A file that is written now and then, and gone on from."""


@torch.no_grad()
def settle(model: MLAModel, batches: Iterable[Batch]) -> MLAModel:
    """In place: the norms' statistics anew, over these batches. What is left of a layer no longer has the
    mean and variance that it had with what was removed before it."""
    norms = [module for module in model.eval().modules() if isinstance(module, nn.BatchNorm3d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for batch in batches:
        model.encode(batch["image_BCIJK"], batch["text"], batch["present_BC"], batch["affine_B44"])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def imitate(student: MLAModel, teacher: MLAModel, course: Course) -> MLAModel:
    """Teaches the image encoder, the pyramid and the lesion map alone, in turns by cubes of the images and by
    patches around small lesions (hints of Romero et al., FitNets, ICLR 2015). What convolutions see lies in a
    cube, if not all that the gates pool; a step takes a ninth of one of `recover`, and a lesson is of CUBES
    steps."""
    kept: dict[int, Batch] = {}

    def loss_of(step: int) -> Tensor:
        if course.patches is not None and step % 2:
            return patch_loss(student, teacher, course.patches(step))
        number, part = divmod(step, CUBES)
        if number not in kept:
            kept.clear()
            kept[number] = course.lesson(number)
        return hint_loss(student, teacher, kept[number], np.random.default_rng([number, part]))

    return _teach(student, teacher, course, loss_of, lambda name: name.startswith(SEEING))


def recover(student: MLAModel, teacher: MLAModel, course: Course) -> MLAModel:
    """Teaches what is left to see what the whole model saw (Hinton et al., 2015), and what is true where the
    batches say it, with patches beside. The decoder stays as it is: its memory is what it was taught to
    read."""

    def loss_of(step: int) -> Tensor:
        loss = distillation_loss(student, teacher, course.lesson(step))
        if course.patches is not None:
            loss = loss + patch_loss(student, teacher, course.patches(step))
        return loss

    return _teach(student, teacher, course, loss_of, lambda name: not name.startswith("decoder.lm."))


def _teach(
    student: MLAModel,
    teacher: MLAModel,
    course: Course,
    loss_of: Callable[[int], Tensor],
    is_taught: Callable[[str], bool],
) -> MLAModel:
    """By the names of parameters, those that are."""
    teacher.eval()
    student.train()
    for module in student.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()  # its statistics are those of many studies (settle)
    taught = {name: parameter for name, parameter in student.named_parameters() if is_taught(name)}
    optimizer = torch.optim.AdamW(taught.values(), lr=course.lr, weight_decay=0.01)
    state, steps = course.state, course.steps
    begun = 0 if state is None else _read_state(state, taught, optimizer)
    for step in range(begun, steps):
        for settings in optimizer.param_groups:
            # a short rise, then half a cosine
            settings["lr"] = (
                course.lr * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
            )
        torch.manual_seed(step)  # of what is dropped: that of a step, wherever one began
        with torch.autocast(student.device.type, torch.bfloat16, enabled=course.precision == "bf16"):
            loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        check_gradient(nn.utils.clip_grad_norm_(taught.values(), 1.0), loss)
        optimizer.step()
        course.log(step, float(loss.detach()))
        if state is not None and ((step + 1) % SAVE_EVERY == 0 or step + 1 == steps):
            _write_state(state, taught, optimizer, step + 1)
    return student.eval()


def _write_state(
    path: Path, taught: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, step: int
) -> None:
    tensors = {f"weight {name}": p.detach().contiguous() for name, p in taught.items()}
    for name, parameter in taught.items():
        if parameter in optimizer.state:  # not one that no loss reaches
            moments = optimizer.state[parameter]
            tensors |= {f"{key} {name}": moments[key].contiguous() for key in MOMENTS}
    part = path.with_name(f".{path.name}.part")
    save_file(tensors, part, {"step": str(step)})
    part.replace(path)


def _read_state(path: Path, taught: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """-> how many steps were done."""
    if not path.is_file():
        return 0
    with safe_open(path, "pt") as file, torch.no_grad():
        step = int(file.metadata()["step"])
        known = set(file.keys())
        for name, parameter in taught.items():
            parameter.copy_(file.get_tensor(f"weight {name}"))
            if f"{MOMENTS[0]} {name}" in known:
                moments = {key: file.get_tensor(f"{key} {name}") for key in MOMENTS}
                optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
    return step


def hint_loss(student: MLAModel, teacher: MLAModel, batch: Batch, rng: np.random.Generator) -> Tensor:
    """Of the pyramids' levels, over a cube of every image at a place of its own."""
    image_BCIJK = _cubes(batch["image_BCIJK"], rng, teacher.config.cell)
    present_BC = batch["present_BC"]
    with torch.no_grad():
        wanted = _pyramid_of(teacher, image_BCIJK, present_BC)
    return _level_loss(_pyramid_of(student, image_BCIJK, present_BC), wanted)


def _cubes(image_BCIJK: Tensor, rng: np.random.Generator, cell: int) -> Tensor:
    edges = [min(EDGE * cell, size) for size in image_BCIJK.shape[2:]]
    step = COARSEST * cell
    cubes = []
    for image_CIJK in image_BCIJK:
        # on the coarsest grid, so that cells are those of the image
        first = [
            step * int(rng.integers(0, (size - edge) // step + 1))
            for size, edge in zip(image_CIJK.shape[1:], edges, strict=True)
        ]
        i, j, k = (slice(at, at + edge) for at, edge in zip(first, edges, strict=True))
        cubes.append(image_CIJK[:, i, j, k])
    return torch.stack(cubes)


def _pyramid_of(model: MLAModel, image_BCIJK: Tensor, present_BC: Tensor) -> list[Level]:
    """Below the finest level, whose channels may be fewer."""
    assert isinstance(model.fusion, HierarchicalFeatureFusion)
    return list(model.fusion.pyramid(model.image_encoder(image_BCIJK, present_BC)))[1:]


def _level_loss(levels: Sequence[Level], wanted: Sequence[Level]) -> Tensor:
    terms = [
        F.smooth_l1_loss(got.features_BDIJK, level.features_BDIJK) / level.features_BDIJK.abs().mean()
        for got, level in zip(levels, wanted, strict=True)
    ]
    return torch.stack(terms).sum()


def patch_loss(student: MLAModel, teacher: MLAModel, pieces: Batch) -> Tensor:
    """Of the levels and of the map of each finding, over patches, and what is true of these."""
    with torch.no_grad(), _levels_of(teacher) as wanted_levels:
        wanted = map_of(teacher, pieces)
    with _levels_of(student) as levels:
        found = map_of(student, pieces)
    terms = [_level_loss(levels, wanted_levels), _cell_loss(found, wanted)]
    terms.append(0.5 * map_loss(found, pieces["targets"].to(student.device)))
    return torch.stack(terms).sum()


def _cell_loss(found: LesionMap, wanted: LesionMap) -> Tensor:
    sure_BFN = wanted.logits_BFN.sigmoid()
    cells = F.binary_cross_entropy_with_logits(found.logits_BFN, sure_BFN, reduction="none")
    weight_BFN = EMPTY_CELL + sure_BFN
    return (cells * weight_BFN).sum() / weight_BFN.sum()


def distillation_loss(student: MLAModel, teacher: MLAModel, batch: Batch) -> Tensor:
    """What the teacher says of findings, cells and levels, and the loss of the truth."""
    seeing = {k: v for k, v in batch.items() if k not in ("input_ids", "labels")}
    with torch.no_grad(), _levels_of(teacher) as wanted_levels:
        fused = teacher.encode(batch["image_BCIJK"], batch["text"], batch["present_BC"], batch["affine_B44"])
        wanted = teacher.find(fused)
    with _levels_of(student) as levels:
        told = student(**seeing)
    assert told.fused is not None
    assert told.fused.lesions is not None
    assert fused.lesions is not None
    found = told.findings
    terms = [_level_loss(levels, wanted_levels)]
    terms.append(
        2 * F.binary_cross_entropy_with_logits(found.presence_logits_BF, wanted.presence_logits_BF.sigmoid())
    )
    for got, level in (
        (found.side_logits_BF3, wanted.side_logits_BF3),
        (found.site_logits_BFT, wanted.site_logits_BFT),
    ):
        terms.append(F.kl_div(got.log_softmax(-1), level.softmax(-1), reduction="none").sum(-1).mean())
    terms.append(F.smooth_l1_loss(found.size_mm_BF.log(), wanted.size_mm_BF.log()))
    terms.append(_cell_loss(told.fused.lesions, fused.lesions))
    terms.append(F.smooth_l1_loss(found.embeddings_BFD, wanted.embeddings_BFD))
    if told.loss is not None:
        terms.append(0.5 * told.loss)
    return torch.stack(terms).sum()


@contextmanager
def _levels_of(model: MLAModel) -> Iterator[list[Level]]:
    """Filled with the levels of the pyramid below the finest when the model has looked at a batch."""
    assert isinstance(model.fusion, HierarchicalFeatureFusion)
    levels: list[Level] = []
    hook = model.fusion.pyramid.register_forward_hook(lambda *seen: levels.extend(seen[-1][1:]))
    try:
        yield levels
    finally:
        hook.remove()
