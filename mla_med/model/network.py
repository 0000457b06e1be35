"""What drafting asks of a network, whatever runs it: PyTorch (MLAModel), or an exported graph
(exported.py)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from mla_med.model.seen import FindingOutputs, Fused
from mla_med.model.slots import Slots, Written


class Network(Protocol):
    config: Any
    """`preprocessing`, `finding_keys`, `sites` and `eos_token_id` of a ModalConfig."""
    tokenizer: Any

    def encode(
        self, image_BCIJK: Any, text: list[str], present_BC: Any = None, affine_B44: Any = None
    ) -> Fused:
        """Images, contexts, which channels are there, and voxel index -> patient mm."""

    def find(self, fused: Fused) -> FindingOutputs: ...

    def image_embedding_BD(self, fused: Fused) -> Any: ...

    def write(self, fused: Fused, findings: FindingOutputs, slots: Sequence[Slots]) -> list[Written]: ...

    def looking(self) -> AbstractContextManager[Any]:
        """Inside, nothing is kept for learning."""
