"""A few examples with images of 24 voxels an edge, without phantoms: what training is tested on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from dapt.batches import Batches, Wanted, once
from dapt.tokenizer import train_tokenizer
from mla_med.corpus import Example, read_examples
from mla_med.imaging.transforms import Preprocessing
from mla_med.model.config import ModalConfig, tiny
from mla_med.model.mla import MLAModel

GRID = Preprocessing(shape=(24, 24, 24), spacing_mm=12.0)
REPORTS = (
    "The lungs are clear. No nodule in case {k}.",
    "A nodule of {k} mm in the right lung. No effusion is seen on either side of the chest.",
)


def write_corpus(folder: Path, n: int = 8, validation: int = 6, words: tuple[str, ...] = REPORTS) -> Path:
    """As dapt.corpus writes one: every other patient has a nodule, whose place is a bright cube."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, first, last in (("train", 0, n), ("validation", n, n + validation), ("test", 0, 0)):
        lines = [_example(folder, k, rng, words) for k in range(first, last)]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    about = {"examination": "chest_ct", "preprocessing": GRID.to_dict(), "train": n, "validation": validation}
    (folder / "corpus.json").write_text(json.dumps(about))
    return folder


def _example(folder: Path, k: int, rng: np.random.Generator, words: tuple[str, ...]) -> str:
    hu = np.full((24, 24, 24), -1000.0)
    hu[3:21, 3:21, 3:21] = 30.0
    hu[5:11, 5:17, 5:19] = -800.0
    if k % 2:
        hu[6:10, 6:10, 6 + k % 8 : 10 + k % 8] = 60.0
    np.save(folder / "images" / f"{k}.npy", (hu + rng.normal(0, 10, hu.shape)).astype(np.int16))
    box = [[-120.0, -120.0, -120.0], [-60.0, -60.0, -60.0]]
    row = {
        "id": str(k),
        "image": f"images/{k}.npy",
        "affine": np.diag([12.0, 12.0, 12.0, 1.0]).tolist(),
        "present": [True] * 3,
        "contexts": {"en": f"Age {40 + k}. Cough."},
        "findings": [{"code": "lung_nodule", "side": "right", "size_mm": float(k)}] if k % 2 else [],
        "boxes_mm": [box] if k % 2 else [],
        "reports": {"en": words[k % 2].format(k=k)},
    }
    return json.dumps(row) + "\n"


def examples_in(folder: Path, split: str = "train") -> tuple[Example, ...]:
    return read_examples(folder, split)


def small_config(**changes) -> ModalConfig:
    """Without anything that is drawn, and without token selection."""
    decoder = {"n_layer": 1, "n_embd": 32, "n_inner": 64, "n_head": 4, "n_positions": 128}
    still = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    sizes = {"vocab_size": 320, "fusion_type": "concat", "modality_dropout": (0.0, 0.0)}
    decoder |= changes.pop("decoder", {})
    return tiny(**{**sizes, "decoder": decoder | still, **changes})


def small_model(examples, seed: int = 0, **changes) -> MLAModel:
    config = small_config(**changes)
    torch.manual_seed(seed)
    model = MLAModel(config)
    model.tokenizer = train_tokenizer([r for e in examples for r in e.reports.values()], 320)
    model.config.preprocessing = GRID.to_dict()
    return model


def batches_of(examples, model, wanted: Wanted | None = None, size: int = 4, **more) -> Batches:
    return Batches(examples, model.config, model.tokenizer, GRID, wanted or Wanted(), size, **more)


def batch_of(examples, model, wanted: Wanted | None = None):
    """All of them, once, unchanged."""
    return next(iter(once(examples, model.config, model.tokenizer, GRID, wanted or Wanted(), len(examples))))


# For processes of their own


def freeze_statistics(model: MLAModel) -> None:
    """Batch statistics of two halves are not those of the whole; here those of the start are used."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
            module.train = lambda mode=True, one=module: one  # type: ignore[method-assign]


def gradients_of(corpus: Path, out: Path, size: int, accumulate: int = 1, rank: int = 0, world: int = 1):
    """Of one step over `size` * `accumulate` * `world` examples."""
    from dapt.loop import Loop, LoopConfig
    from dapt.objectives.align import Align
    from dapt.objectives.fuse import Fuse
    from dapt.objectives.objective import Together
    from dapt.objectives.text import ReportText

    examples = examples_in(corpus)
    model = small_model(examples)
    freeze_statistics(model)
    objective = Together(ReportText(), Align(model, 4, findings=False), Fuse(model.config, match=0.0))
    loop = Loop(model, objective, LoopConfig(steps=2, device="cpu"), out)
    loop.taught.train()
    batches = batches_of(examples, model, size=size, accumulate=accumulate, seed=3)
    micros = [batches(0, micro, rank, world) for micro in range(accumulate)]
    losses, tokens, studies = loop.backward(0, micros)
    named = loop.plain.named_parameters()
    return {n: p.grad.clone() for n, p in named if p.grad is not None}, losses, (tokens, studies)


def gradients_of_rank(rank: int, world: int, port: int, corpus: Path, out: Path, size: int) -> None:
    """In a process of its own, as `accelerate launch --cpu` starts it."""
    import os

    from safetensors.torch import save_file

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    torch.set_num_threads(1)
    gradients, _, seen = gradients_of(corpus, out / str(rank), size, 1, rank, world)
    gradients["seen"] = torch.tensor(seen)
    save_file(gradients, out / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


def adapt_until_killed(plan, marks: Path) -> None:
    """Runs a plan, and leaves a line for every row that is told."""
    from dapt.adapt import adapt

    torch.set_num_threads(1)
    with marks.open("a") as file:

        def tell(row) -> None:
            file.write(json.dumps({k: row.get(k) for k in ("stage", "arm", "step")}) + "\n")
            file.flush()

        adapt(plan, tell)
