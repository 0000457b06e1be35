"""A checkpoint -> graphs in ONNX that draft without PyTorch, beside what the checkpoint says of itself.

    see.onnx     image, context       -> fused tokens and the lesion map
    find.onnx    fused tokens, map    -> findings
    memory.onnx  tokens, findings     -> keys and values of the decoder's memory
    step.onnx    new tokens, a cache  -> logits, and what to add to the cache

and exported.json, which says what they were made of and the sizes they were made for: one image of the grid
of the checkpoint, a context and a report of any length. A graph that answers differently from PyTorch is not
written. Knows networks; what is drafted with them is `exported.py`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mla_med.errors import ConfigError
from mla_med.model.attention import keep_count
from mla_med.model.checkpoint import FILES, Checkpoint
from mla_med.model.exported import (
    FINDINGS,
    FUSED,
    GRAPHS,
    INPUTS,
    LESIONS,
    OnnxGraphs,
    Verdict,
    load_exported,
)
from mla_med.model.fusion import HierarchicalFeatureFusion
from mla_med.model.image_encoder import frame_of
from mla_med.model.mla import MLAModel
from mla_med.model.seen import Fused, LesionMap
from mla_med.model.step import DecoderStep, can_step

OPSET = 18
CLOSE = 2e-3
"""Largest difference of any output between PyTorch and the graph, by the largest value of that output."""
PLACES = 24
"""Of the cache, in the example that a graph is made of: any number runs."""


class SeeGraph(nn.Module):
    def __init__(self, model: MLAModel):
        super().__init__()
        self.model = model

    def forward(
        self, image: Tensor, present: Tensor, axes: Tensor, origin: Tensor, ids: Tensor, mask: Tensor
    ) -> Any:
        model = self.model
        affine = torch.cat([axes, origin[:, :, None]], 2)
        fused = model.fusion(
            model.image_encoder(image, present),
            frame_of(image, affine),
            model.text_encoder(ids, mask),
            mask,
            present.any(1),
        )
        lesions = () if fused.lesions is None else tuple(getattr(fused.lesions, name) for name in LESIONS)
        return (*(getattr(fused, name) for name in FUSED), *lesions)


class FindGraph(nn.Module):
    def __init__(self, model: MLAModel):
        super().__init__()
        self.heads = model.heads

    def forward(self, *given: Tensor) -> Any:
        fused = dict.fromkeys(FUSED) | dict(zip(INPUTS["find"], given, strict=False))
        parts = given[len(FUSED_OF_FIND) :]
        if parts:
            logits_BFN, features_BNH, positions_BN3, mask_BN = parts
            # findings do not ask how large a cell is
            fused["lesions"] = LesionMap(logits_BFN, features_BNH, positions_BN3, positions_BN3, mask_BN)
        known = {f.name for f in fields(Fused)}
        outputs = self.heads(Fused(**{k: v for k, v in fused.items() if k in known}))  # type: ignore[arg-type]
        return tuple(getattr(outputs, name) for name in FINDINGS)


FUSED_OF_FIND = tuple(name for name in INPUTS["find"] if name in FUSED)


class MemoryGraph(nn.Module):
    def __init__(self, model: MLAModel):
        super().__init__()
        self.project = model.decoder.project
        self.step = DecoderStep(model.decoder.lm)

    def forward(self, tokens: Tensor, embeddings: Tensor) -> Any:
        return self.step.memory_keys(self.project(torch.cat([tokens, embeddings], 1)))


def export_checkpoint(checkpoint: Checkpoint, source: Path, out: Path) -> Path:
    """Writes the folder, whole or not at all. `source`: where the checkpoint was read from."""
    model = checkpoint.model
    check_exportable(model)
    part = out.with_name(f".{out.name}.writing")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in FILES:
        if name != "model.safetensors":
            shutil.copyfile(source / name, part / name)
    sizes = write_graphs(model, part)
    about = {
        "weights_sha256": checkpoint.weights_sha256,
        "finding_keys": list(model.config.finding_keys),
        "sites": list(model.config.sites),
        "ids": {name: getattr(model.config, f"{name}_token_id") for name in ("pad", "bos", "eos")},
        "text_positions": model.config.text_positions,
        "places": model.config.decoder.n_positions,
        **sizes,
    }
    (part / "exported.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    np.save(part / "project_image.npy", model.project_image.weight.detach().numpy())
    shutil.rmtree(out, ignore_errors=True)
    return part.replace(out)


def check_exportable(model: MLAModel) -> None:
    if not can_step(model.decoder.lm) or model.tokenizer is None:
        raise ConfigError(
            f"A {model.config.decoder.model_type} with a tokenizer of its own library cannot be exported: "
            "only the small GPT-2 that training makes, with its tokenizer, is written out as one graph.",
            code="EXPORT_UNSUPPORTED",
        )
    if model.config.lora is not None:
        raise ConfigError(
            "The decoder wears adapters. Merge them first: mla-med adapt writes merged checkpoints.",
            code="EXPORT_UNSUPPORTED",
        )


@torch.no_grad()
def write_graphs(model: MLAModel, folder: Path) -> dict[str, Any]:
    """The four graphs, each compared with PyTorch on its example; -> what a reader has to know of sizes."""
    model = deepcopy(model).eval().cpu().float()
    config = model.config
    shape = tuple(config.preprocessing["shape"])
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, config.channels, *shape, generator=generator)
    present = torch.ones(1, config.channels, dtype=torch.bool)
    axes = torch.eye(3)[None] * float(config.preprocessing["spacing_mm"])
    origin = torch.tensor([[-190.0, -140.0, -1200.0]])
    ids = torch.arange(3, 10)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    _fix_counts(model, shape)

    see = SeeGraph(model).eval()
    looked = (image, present, axes, origin, ids, mask)
    seen = see(*looked)
    named = dict(zip((*FUSED, *(f"lesions.{n}" for n in LESIONS)), seen, strict=False))
    has_map = len(seen) > len(FUSED)
    _write(see, looked, "see", folder, {4: "context", 5: "context"}, has_map)

    given = tuple(named[name] for name in INPUTS["find"] if name in named)
    tokens = {INPUTS["find"].index(n): "tokens" for n in FUSED_OF_FIND if n.endswith(("BS", "BSD", "BS3"))}
    find = FindGraph(model).eval()
    found = dict(zip(FINDINGS, find(*given), strict=True))
    _write(find, given, "find", folder, tokens, has_map)

    memory = MemoryGraph(model).eval()
    asked = (named["tokens_BSD"], found["embeddings_BFD"])
    keys, values = memory(*asked)
    _write(memory, asked, "memory", folder, {0: "tokens"}, has_map)

    step = DecoderStep(model.decoder.lm).eval()
    blocks, _, heads, _, width = keys.shape
    ids_BT = torch.tensor([[1, 5, 7], [4, 6, 0]])
    cache = torch.rand(2, blocks, 2, heads, PLACES, width, generator=generator)
    both = torch.ones(2, keys.shape[3], dtype=torch.bool)
    inputs = (
        ids_BT,
        torch.tensor([0, 4]),
        torch.tensor([[2, 0], [1, 0]]),
        cache[0],
        cache[1],
        keys.expand(-1, 2, -1, -1, -1).contiguous(),
        values.expand(-1, 2, -1, -1, -1).contiguous(),
        both,
    )
    dynamic: dict[int, Any] = {
        0: {0: "batch", 1: "new"},
        1: {0: "batch"},
        2: {0: "batch", 1: "wanted"},
        3: {1: "batch", 3: "places"},
        4: {1: "batch", 3: "places"},
        5: {1: "batch", 3: "memory"},
        6: {1: "batch", 3: "memory"},
        7: {0: "batch", 1: "memory"},
    }
    _write(step, inputs, "step", folder, dynamic, has_map)
    return {"blocks": blocks, "heads": heads, "head_width": width, "has_map": has_map}


def _fix_counts(model: MLAModel, shape: Sequence[int]) -> None:
    """How many tokens are kept of an image of this size, as numbers instead of tensors."""
    fusion = model.fusion
    if not isinstance(fusion, HierarchicalFeatureFusion):
        return
    cells = int(np.prod([-(-n // 8) for n in shape]))
    shares = (model.config.keep_ratio, *model.config.keep_stages)
    fusion.fixed_counts = {
        share: int(keep_count(torch.tensor([cells]), share, model.config.token_budget)) for share in shares
    }


def _write(
    module: nn.Module,
    example: tuple[Tensor, ...],
    name: str,
    folder: Path,
    dynamic: Mapping[int, Any],
    has_map: bool,
) -> None:
    """One graph, and that it answers as its module does. `dynamic`: by input, the name of its axis 1, or of
    each axis."""
    inputs, outputs = GRAPHS[name]
    inputs = inputs[: len(example)]
    wanted = module(*example)
    outputs = outputs[: len(wanted)]
    path = folder / f"{name}.onnx"
    axes = {
        inputs[n]: ({1: given} if isinstance(given, str) else dict(given)) for n, given in dynamic.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes that are fixed on purpose
        torch.onnx.export(
            module,
            example,
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    got = OnnxGraphs(folder, (name,)).run(name, {n: x.numpy() for n, x in zip(inputs, example, strict=True)})
    for label, x in zip(outputs, wanted, strict=True):
        _check_close(name, label, x.numpy(), got[label])


def _check_close(graph: str, output: str, wanted: np.ndarray, got: np.ndarray) -> None:
    one, other = (np.asarray(x, np.float64) for x in (wanted, got))
    # a forbidden class has a logit of -1e4, beside which nothing else would count
    scale = max(1.0, float(np.abs(one[np.abs(one) < 5e3]).max(initial=0.0)))
    apart = float(np.abs(one - other).max(initial=0.0)) if one.shape == other.shape else np.inf
    if not apart <= CLOSE * scale:
        raise ConfigError(
            f"{graph}.onnx gives another {output} than PyTorch (largest difference {apart:.2g}). Install the "
            "versions of constraints.txt, or draft with --backend torch.",
            code="EXPORT_DIFFERS",
        )


Judge = Callable[[Checkpoint, Checkpoint], Verdict]
"""Of a checkpoint and another form of it: may the second stand for the first?"""


def quantise(folder: Path, judge: Judge) -> str:
    """Takes the weights of matrix products to 8 bits (dynamic quantisation; convolutions would be slower), if
    the judge finds them as good; -> what was judged, in words. Otherwise the folder stays as it was."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    part = folder.with_name(f".{folder.name}.int8")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(folder, part)
    for name in GRAPHS:
        quantize_dynamic(
            folder / f"{name}.onnx", part / f"{name}.onnx", ["MatMul", "Gemm"], weight_type=QuantType.QInt8
        )
    about = json.loads((part / "exported.json").read_text(encoding="utf-8"))
    # other numbers are another model: measurements of the two are not compared
    about["weights_sha256"] = hashlib.sha256(f"int8 {about['weights_sha256']}".encode()).hexdigest()
    (part / "exported.json").write_text(json.dumps(about | {"int8": True}, indent=1) + "\n", encoding="utf-8")
    verdict = judge(load_exported(folder), load_exported(part))
    if not verdict.passed:
        shutil.rmtree(part)
        return f"INT8_REFUSED: the weights stay in 32 bits.\n{verdict.to_text()}"
    (part / "int8.txt").write_text(verdict.to_text() + "\n", encoding="utf-8")
    shutil.rmtree(folder)
    part.replace(folder)
    return f"Weights in 8 bits.\n{verdict.to_text()}"
