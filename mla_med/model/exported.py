"""A folder that `mla-med export` wrote -> a network that drafts with ONNX Runtime or OpenVINO.

The same nouns as MLAModel gives, as NumPy arrays, and the same text, token for token. Needs neither torch nor
monai nor transformers, which take most of the time that a single draft takes to start.
"""

# B batch, always 1 in `see`, S fused tokens, L context tokens, D width

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mla_med.errors import CheckpointError, ConfigError
from mla_med.model.checkpoint import Checkpoint, read_checkpoint
from mla_med.model.seen import FindingOutputs, Fused, LesionMap
from mla_med.model.slots import SlotMachine, Slots, Written, check_room
from mla_med.model.writing import filled, write_side_by_side

FUSED = (
    *("tokens_BSD", "mask_BS", "weights_BS", "positions_BS3", "half_cells_BS3", "located_BS"),
    *("strides_BS", "index_BS", "modal_weights_BM", "centre_B3", "half_extent_B3"),
)
LESIONS = ("logits_BFN", "features_BNH", "positions_BN3", "half_cells_BN3", "mask_BN")
FINDINGS = (
    *("presence_logits_BF", "side_logits_BF3", "site_logits_BFT", "size_mm_BF"),
    *("embeddings_BFD", "evidence_BFS", "position_BF3", "spread_BF3"),
)
_OF_MAP = tuple(f"lesions.{name}" for name in LESIONS)
INPUTS = {
    "see": ("image", "present", "axes", "origin", "ids", "mask"),
    "find": (
        *("tokens_BSD", "weights_BS", "positions_BS3", "located_BS", "centre_B3", "half_extent_B3"),
        *("lesions.logits_BFN", "lesions.features_BNH", "lesions.positions_BN3", "lesions.mask_BN"),
    ),
    "memory": ("tokens", "embeddings"),
    "step": (
        *("ids", "first", "wanted", "keys", "values"),
        *("memory_keys", "memory_values", "memory_mask"),
    ),
}
GRAPHS = {
    "see": (INPUTS["see"], (*FUSED, *_OF_MAP)),
    "find": (INPUTS["find"], FINDINGS),
    "memory": (INPUTS["memory"], ("memory_keys", "memory_values")),
    "step": (INPUTS["step"], ("logits", "new_keys", "new_values")),
}
"""Names of the inputs and outputs of each graph, in order; without a lesion map, its part is missing."""
BACKENDS = ("torch", "onnx", "openvino")
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether another form of a checkpoint may stand for it."""

    rows: tuple[tuple[str, float, float, bool], ...]
    """What was measured, of the first form, of the second, and whether that is enough."""
    same_texts: int
    patients: int

    @property
    def passed(self) -> bool:
        return all(row[3] for row in self.rows)

    def to_text(self) -> str:
        lines = [
            f"{name}: {one:.4g} -> {other:.4g}{'' if ok else '  (too bad)'}"
            for name, one, other, ok in self.rows
        ]
        return "\n".join([*lines, f"the same text: {self.same_texts} of {self.patients} patients"])


class Graphs(Protocol):
    def run(self, name: str, inputs: Arrays) -> dict[str, np.ndarray]: ...


def threads_allowed() -> int:
    """What OMP_NUM_THREADS says, by which workers share a machine, and which neither runtime reads; 0: as
    many as there are cores."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() else 0


class OnnxGraphs:
    """Of ONNX Runtime."""

    def __init__(self, folder: Path, names: Sequence[str] = tuple(GRAPHS)):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads_allowed()
        self.sessions = {
            name: onnxruntime.InferenceSession(
                str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"]
            )
            for name in names
        }

    def run(self, name: str, inputs: Arrays) -> dict[str, np.ndarray]:
        session = self.sessions[name]
        outputs = [output.name for output in session.get_outputs()]
        wanted = {node.name for node in session.get_inputs()}
        return dict(
            zip(outputs, session.run(outputs, {k: v for k, v in inputs.items() if k in wanted}), strict=True)
        )


class OpenVinoGraphs:
    """Of OpenVINO, in single precision: on processors that have it, it would take bfloat16 by itself."""

    def __init__(self, folder: Path, names: Sequence[str] = tuple(GRAPHS)):
        import openvino

        core = openvino.Core()
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads := threads_allowed():
            settings["INFERENCE_NUM_THREADS"] = threads
        self.compiled = {
            name: core.compile_model(core.read_model(str(folder / f"{name}.onnx")), "CPU", settings)
            for name in names
        }

    def run(self, name: str, inputs: Arrays) -> dict[str, np.ndarray]:
        compiled = self.compiled[name]
        given = {}
        for number, node in enumerate(compiled.inputs):
            # a node has the names of all that it stands for; what is not given would be anything, not zero
            (label,) = node.get_names() & set(inputs)
            value = inputs[label]
            # the first axis of x[None] has a stride of 0, which NumPy calls contiguous
            given[number] = value if value.flags.c_contiguous and all(value.strides) else value.copy()
        answer = compiled(given)
        outputs = GRAPHS[name][1][: len(compiled.outputs)]
        return {label: np.array(answer[number]) for number, label in enumerate(outputs)}


@dataclass(frozen=True, slots=True)
class ExportedConfig:
    """What drafting asks of a ModalConfig."""

    preprocessing: dict[str, Any]
    finding_keys: tuple[str, ...]
    sites: tuple[str, ...]
    pad_token_id: int
    bos_token_id: int
    eos_token_id: int
    text_positions: int
    places: int
    """Of the decoder."""


class PlainTokenizer:
    """tokenizer.json without transformers."""

    def __init__(self, path: Path, end: int):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(path))
        self.eos_token_id = end

    def __call__(self, texts: list[str], add_special_tokens: bool = False) -> dict[str, list[list[int]]]:
        coded = self.tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        return {"input_ids": [one.ids for one in coded]}


class ExportedNetwork:
    def __init__(
        self,
        graphs: Graphs,
        config: ExportedConfig,
        tokenizer: Any,
        project_DD: np.ndarray,
        cache: tuple[int, int, int],
    ):
        self.graphs = graphs
        self.config = config
        self.tokenizer = tokenizer
        self.project_DD = project_DD
        self.cache = cache
        """Blocks, heads and width of a head of the decoder."""

    def looking(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def encode(
        self, image_BCIJK: Any, text: list[str], present_BC: Any = None, affine_B44: Any = None
    ) -> Fused:
        image_BCIJK = np.asarray(image_BCIJK, np.float32)
        batch, channels = image_BCIJK.shape[:2]
        present_BC = np.ones((batch, channels), bool) if present_BC is None else np.asarray(present_BC, bool)
        affine_B44 = np.tile(np.eye(4), (batch, 1, 1)) if affine_B44 is None else affine_B44
        affine_B44 = np.asarray(affine_B44, np.float32)
        ids, mask = self._ids(text)
        rows = []
        for row in range(batch):
            rows.append(
                self.graphs.run(
                    "see",
                    {
                        "image": image_BCIJK[row : row + 1],
                        "present": present_BC[row : row + 1],
                        "axes": affine_B44[row : row + 1, :3, :3],
                        "origin": affine_B44[row : row + 1, :3, 3],
                        "ids": ids[row : row + 1],
                        "mask": mask[row : row + 1],
                    },
                )
            )
        joined = rows[0] if batch == 1 else {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
        has_map = _OF_MAP[0] in joined
        lesions = LesionMap(**{n: joined[f"lesions.{n}"] for n in LESIONS}) if has_map else None  # type: ignore[arg-type]
        return Fused(**{n: joined[n] for n in FUSED}, lesions=lesions)  # type: ignore[arg-type]

    def find(self, fused: Fused) -> FindingOutputs:
        given: dict[str, Any] = {name: getattr(fused, name) for name in INPUTS["find"] if name in FUSED}
        if fused.lesions is not None:
            given |= {f"lesions.{name}": getattr(fused.lesions, name) for name in LESIONS}
        batch = len(given["tokens_BSD"])
        rows = [
            self.graphs.run("find", {k: v[row : row + 1] for k, v in given.items()}) for row in range(batch)
        ]
        return FindingOutputs(**{n: np.concatenate([r[n] for r in rows]) for n in FINDINGS})  # type: ignore[arg-type]

    def image_embedding_BD(self, fused: Fused) -> np.ndarray:
        of_image_BS1 = np.asarray(fused.mask_BS & ~fused.is_text_BS, np.float32)[..., None]
        pooled_BD = (fused.tokens_BSD * of_image_BS1).sum(1) / of_image_BS1.sum(1).clip(1e-6)
        embedded_BD = pooled_BD @ self.project_DD.T
        return embedded_BD / np.linalg.norm(embedded_BD, axis=-1, keepdims=True).clip(1e-12)

    def write(self, fused: Fused, findings: FindingOutputs, slots: Sequence[Slots]) -> list[Written]:
        machines = [SlotMachine(texts, self.tokenizer, self.config.eos_token_id) for texts in slots]
        check_room(machines, self.config.places)
        reader = ExportedReader(self.graphs, fused, findings, self.cache, max(m.longest for m in machines))
        return write_side_by_side(reader, machines, self.config.bos_token_id)

    def _ids(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask of the contexts; no text is one padding token."""
        rows = [ids[: self.config.text_positions] for ids in self.tokenizer(texts)["input_ids"]]
        longest = max(1, *map(len, rows))
        ids = np.full((len(rows), longest), self.config.pad_token_id, np.int64)
        mask = np.zeros((len(rows), longest), bool)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
        return ids, mask


class ExportedReader:
    """See writing.Reader."""

    def __init__(
        self, graphs: Graphs, fused: Fused, findings: FindingOutputs, cache: tuple[int, int, int], places: int
    ):
        self.graphs = graphs
        tokens, embeddings = np.asarray(fused.tokens_BSD), np.asarray(findings.embeddings_BFD)
        rows = [
            graphs.run("memory", {"tokens": tokens[row : row + 1], "embeddings": embeddings[row : row + 1]})
            for row in range(len(tokens))
        ]
        there_BF = np.ones(embeddings.shape[:2], bool)
        self.memory = {
            "memory_keys": np.concatenate([row["memory_keys"] for row in rows], 1),
            "memory_values": np.concatenate([row["memory_values"] for row in rows], 1),
            "memory_mask": np.concatenate([np.asarray(fused.mask_BS), there_BF], 1),
        }
        blocks, heads, width = cache
        self.keys = np.zeros((blocks, len(tokens), heads, places, width), np.float32)
        self.values = np.zeros_like(self.keys)

    def read(
        self, ids: Sequence[Sequence[int]], first: Sequence[int], wanted: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        # no more of the cache than was read: the graph looks at, and hides, every place that it is given
        used = max(1, *first)
        answer = self.graphs.run(
            "step",
            {
                "ids": filled(ids),
                "first": np.array(first, np.int64),
                "wanted": filled(wanted),
                "keys": np.ascontiguousarray(self.keys[:, :, :, :used]),
                "values": np.ascontiguousarray(self.values[:, :, :, :used]),
                **self.memory,
            },
        )
        for row, (begin, tokens) in enumerate(zip(first, ids, strict=True)):
            here = slice(begin, begin + len(tokens))
            self.keys[:, row, :, here] = answer["new_keys"][:, row, :, : len(tokens)]
            self.values[:, row, :, here] = answer["new_values"][:, row, :, : len(tokens)]
        return list(answer["logits"])


def load_exported(folder: Path, backend: str = "onnx") -> Checkpoint:
    """Reads what `mla-med export` wrote. CheckpointError says what is missing."""
    if backend not in BACKENDS[1:]:
        raise ConfigError(f"No backend {backend!r}; there are: {', '.join(BACKENDS)}.")
    wanted = (
        *(f"{name}.onnx" for name in GRAPHS),
        *("exported.json", "project_image.npy", "config.json", "tokenizer.json", "calibration.json"),
        "checkpoint.json",
    )
    for name in wanted:
        if not (folder / name).is_file():
            raise CheckpointError(
                f"No exported checkpoint at {folder}: {name} is missing. Make one with mla-med export, or "
                "draft with --backend torch.",
                code="CHECKPOINT_MISSING",
            )
    try:
        about = json.loads((folder / "exported.json").read_text(encoding="utf-8"))
        config = ExportedConfig(
            preprocessing=json.loads((folder / "config.json").read_text(encoding="utf-8"))["preprocessing"],
            finding_keys=tuple(about["finding_keys"]),
            sites=tuple(about["sites"]),
            pad_token_id=about["ids"]["pad"],
            bos_token_id=about["ids"]["bos"],
            eos_token_id=about["ids"]["eos"],
            text_positions=about["text_positions"],
            places=about["places"],
        )
        cache = (int(about["blocks"]), int(about["heads"]), int(about["head_width"]))
        digest = str(about["weights_sha256"])
        project_DD = np.load(folder / "project_image.npy", allow_pickle=False)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"The exported checkpoint at {folder} is damaged ({type(error).__name__}). Export it again.",
            code="CHECKPOINT_DAMAGED",
        ) from error
    graphs = OnnxGraphs(folder) if backend == "onnx" else OpenVinoGraphs(folder)
    tokenizer = PlainTokenizer(folder / "tokenizer.json", config.eos_token_id)
    network = ExportedNetwork(graphs, config, tokenizer, project_DD, cache)
    return read_checkpoint(folder, network, digest)
