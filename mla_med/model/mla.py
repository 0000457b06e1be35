"""Image + clinical context -> findings with evidence, and report tokens: the whole model.

    model = MLAModel(default())
    fused = model.encode(image_BCIJK, ["cough"], affine_B44=affine)
    findings = model.find(fused)
    ids = model.generate(fused=fused, max_new_tokens=128)

On a GPU, PyTorch computes convolutions of float32 in TF32 unless `torch.backends.cudnn.allow_tf32` is False;
it is with False that a batch is held there to the same as one patient alone, to 1e-4.

Knows tensors and ids. Knows nothing of DICOM, of schemas beyond its config, or of how it is trained.
"""

# B batch, C channels, I J K voxel axes, L context tokens, R report tokens, S fused tokens, F findings,
# D width, E decoder width, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from mla_med.errors import ConfigError
from mla_med.model.attention import masked_mean
from mla_med.model.config import ModalConfig
from mla_med.model.convolution import use_onednn
from mla_med.model.decoder import ReportDecoder, add_lora, merge_lora, read_tokenizer
from mla_med.model.findings import FindingHeads, FindingOutputs, FindingTargets, finding_loss
from mla_med.model.fusion import Fused, HierarchicalFeatureFusion, drop_modalities, fusion_of
from mla_med.model.image_encoder import Frame, encoder_of, frame_of, to_volume
from mla_med.model.lesion_map import LesionMap
from mla_med.model.narrow import narrow
from mla_med.model.precision import (
    in_its_precision,
    patients_of,
    sees_each_alone,
    side_by_side,
    texts_of,
    widen_vectors,
    widened,
)
from mla_med.model.slots import Slots, Written
from mla_med.model.text_encoder import TextEncoder, byte_tokenizer, hf_tokenizer, to_ids

Text = str | list[str] | Tensor | None


@dataclass
class MLAOutput(ModelOutput):
    loss: Tensor | None = None
    """The terms of `losses`, weighted by config.loss_weights."""
    logits: Tensor | None = None
    """(B, R, V); None without input_ids."""
    losses: dict[str, Tensor] | None = None
    """Unweighted, by name."""
    findings: FindingOutputs | None = None
    fused: Fused | None = None
    past_key_values: Any = None


class MLAModel(PreTrainedModel, GenerationMixin):
    config_class = ModalConfig
    base_model_prefix = "mla"
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: ModalConfig):
        folder = Path(config.decoder_folder) if config.decoder_folder else None
        if folder is not None:
            # what is read now travels with the model, where it came from does not
            config = deepcopy(config)
            config.decoder_folder = None
        super().__init__(config)
        assert isinstance(config.decoder, PreTrainedConfig)
        assert config.findings is not None
        self.tokenizer: Any = None if folder is None else read_tokenizer(folder)
        """A transformers tokenizer, once attached; until then text is bytes."""
        self.image_encoder = encoder_of(config)
        self.text_encoder = TextEncoder(
            config.vocab_size,
            config.text_positions,
            config.text_dim,
            config.width,
            config.heads,
            config.text_depth,
        )
        self.fusion = fusion_of(config)
        self.heads = FindingHeads(
            config.findings,
            config.sites,
            config.width,
            config.heads,
            config.size_scale_mm,
            has_map=config.fusion_type in ("hffn", "full"),
        )
        self.decoder = ReportDecoder(config.decoder, config.width, config.heads, folder)
        self.project_image = nn.Linear(config.width, config.width, bias=False)
        self.project_text = nn.Linear(config.width, config.width, bias=False)
        if config.pruned:
            narrow(self, config.pruned)
        use_onednn(self)
        self.post_init()
        # after post_init, which would start the adapters as if they were layers of the LM: not at zero
        if config.lora is not None:
            add_lora(self.decoder.lm, config.lora)
        # transformers looks for tied weights in direct children only, and the LM lies one deeper
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)

    def merge_lora(self) -> None:
        """The adapters become part of the decoder's weights."""
        merge_lora(self.decoder.lm)
        self.config.lora = None

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Weights as safetensors, configuration, and the tokenizer where there is one."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, **kwargs: Any) -> Any:
        """As that of transformers; the tokenizer of the folder is attached."""
        loaded = super().from_pretrained(folder, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.tokenizer = read_tokenizer(Path(folder))
        widen_vectors(model)
        return loaded

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> MLAModel:
        """What `to`, `bfloat16` and `cuda` go through."""
        super()._apply(fn, *args, **kwargs)
        widen_vectors(self)
        return self

    def _init_weights(self, module: nn.Module) -> None:
        # Every layer knows its own start; transformers guards weights that were already loaded.
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.lm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.decoder.lm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder.lm.get_output_embeddings()

    # From image and text to findings

    def encode(
        self,
        image_BCIJK: Any,
        text: Text = None,
        present_BC: Any = None,
        affine_B44: Any = None,
        text_mask_BL: Tensor | None = None,
    ) -> Fused:
        """Images may be arrays; tensors are taken to where the model is."""
        image_BCIJK, present_BC, affine_B44 = (
            None if x is None else torch.as_tensor(x, device=self.device)
            for x in (image_BCIJK, present_BC, affine_B44)
        )
        image_BCIJK = to_volume(image_BCIJK, self.config.channels)
        if present_BC is None:
            present_BC = torch.ones(image_BCIJK.shape[:2], dtype=torch.bool, device=image_BCIJK.device)
        present_BC = present_BC.bool()
        ids_BL, mask_BL = self.text_ids(text, text_mask_BL, image_BCIJK.shape[0])
        if self.training:
            present_BM = torch.stack([present_BC.any(1), mask_BL.any(1)], 1)
            present_BM = drop_modalities(present_BM, tuple(self.config.modality_dropout))
            present_BC, mask_BL = present_BC & present_BM[:, :1], mask_BL & present_BM[:, 1:]
        frame = frame_of(image_BCIJK, affine_B44)
        with in_its_precision(self):
            if not sees_each_alone(self):
                return self.fuse(image_BCIJK, present_BC, frame, ids_BL, mask_BL)
            alone = []
            for b, (ids_1L, mask_1L) in enumerate(texts_of(ids_BL, mask_BL)):
                one = slice(b, b + 1)
                frame_1 = Frame(frame.size, frame.affine_B44[one])
                alone.append(self.fuse(image_BCIJK[one], present_BC[one], frame_1, ids_1L, mask_1L))
            return side_by_side(alone)

    def fuse(
        self, image_BCIJK: Tensor, present_BC: Tensor, frame: Frame, ids_BL: Tensor, mask_BL: Tensor
    ) -> Fused:
        """Of tensors where the model is."""
        return self.fusion(
            self.image_encoder(image_BCIJK, present_BC),
            frame,
            self.text_encoder(ids_BL, mask_BL),
            mask_BL,
            present_BC.any(1),
        )

    def text_ids(self, text: Text, text_mask_BL: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
        tokenizer = self.tokenizer
        tokenize = byte_tokenizer(self.config.byte_offset) if tokenizer is None else hf_tokenizer(tokenizer)
        ids_BL, mask_BL = to_ids(
            text, text_mask_BL, batch, tokenize, self.config.pad_token_id, self.config.text_positions
        )
        return ids_BL.to(self.device), mask_BL.to(self.device)

    def find(self, fused: Fused) -> FindingOutputs:
        """In single precision, whatever the model computes in."""
        with in_its_precision(self):
            if not sees_each_alone(self):
                return self.heads(fused)
            alone = [widened(self.heads(one), fused.tokens_BSD.shape[1]) for one in patients_of(fused)]
            return side_by_side(alone)

    def looking(self) -> AbstractContextManager[Any]:
        """What is seen inside is not learned from."""
        return torch.no_grad()

    def map_parts(
        self, image_BCIJK: Tensor, present_BC: Tensor, affine_B44: Tensor, whole: Frame
    ) -> LesionMap:
        """The lesion map of parts of `whole` images. ConfigError where the fusion has none."""
        if not isinstance(self.fusion, HierarchicalFeatureFusion):
            raise ConfigError(f"The fusion {self.config.fusion_type} has no lesion map.")
        with in_its_precision(self):
            finest, _, middle, _ = self.fusion.pyramid(self.image_encoder(image_BCIJK, present_BC.bool()))
            frame = frame_of(image_BCIJK, affine_B44)
            return self.fusion.map_lesions(finest, middle, frame, present_BC.bool().any(1), whole)

    def image_embedding_BD(self, fused: Fused) -> Tensor:
        """The pooled image, of length 1, for contrast with `text_embedding_BD`."""
        pooled_BD = masked_mean(fused.tokens_BSD, fused.mask_BS & ~fused.is_text_BS)
        with in_its_precision(self):
            return nn.functional.normalize(self.project_image(pooled_BD), dim=-1)

    def text_embedding_BD(self, text: str | list[str] | Tensor, text_mask_BL: Tensor | None = None) -> Tensor:
        """The pooled text alone, before any image was seen, of length 1."""
        ids_BL, mask_BL = self.text_ids(text, text_mask_BL, 1)
        with in_its_precision(self):
            pooled_BD = masked_mean(self.text_encoder(ids_BL, mask_BL), mask_BL)
            return nn.functional.normalize(self.project_text(pooled_BD), dim=-1)

    # From findings to words

    def write(self, fused: Fused, findings: FindingOutputs, slots: Sequence[Slots]) -> list[Written]:
        """The likeliest legal text of each patient of a batch; see generate.write_texts."""
        from mla_med.model.generate import write_texts

        return write_texts(self, fused, findings, slots)

    def memory(self, fused: Fused, findings: FindingOutputs | None = None) -> tuple[Tensor, Tensor]:
        """What the decoder looks at: the fused tokens, then one token per finding. (B, S + F, E), mask."""
        findings = self.find(fused) if findings is None else findings
        tokens = torch.cat([fused.tokens_BSD, findings.embeddings_BFD], 1)
        mask = torch.cat([fused.mask_BS, torch.ones_like(findings.presence_logits_BF, dtype=torch.bool)], 1)
        with in_its_precision(self):
            return self.decoder.memory_BSE(tokens), mask

    def forward(
        self,
        text: Text = None,
        image_BCIJK: Tensor | None = None,
        present_BC: Tensor | None = None,
        affine_B44: Tensor | None = None,
        text_mask_BL: Tensor | None = None,
        targets: FindingTargets | None = None,
        pos_weight_F: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        memory_BSE: Tensor | None = None,
        memory_mask_BS: Tensor | None = None,
        past_key_values: Any = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
    ) -> MLAOutput:
        """With an image: findings, and losses for `targets`. With input_ids: logits, and a loss for
        `labels` (shifted inside, -100 ignored). Without image or memory the decoder is a plain LM."""
        output = MLAOutput(losses={})
        if image_BCIJK is not None:
            output.fused = self.encode(image_BCIJK, text, present_BC, affine_B44, text_mask_BL)
            output.findings = self.find(output.fused)
            memory_BSE, memory_mask_BS = self.memory(output.fused, output.findings)
            output.losses = self.losses_of(output.fused, output.findings, targets, pos_weight_F)
        if input_ids is not None:
            with in_its_precision(self):
                written = self.decoder(
                    input_ids,
                    memory_BSE,
                    memory_mask_BS,
                    attention_mask=attention_mask,
                    labels=labels,
                    past_key_values=past_key_values,
                    position_ids=position_ids,
                    use_cache=use_cache,
                    logits_to_keep=logits_to_keep,
                )
            output.logits, output.past_key_values = written.logits, written.past_key_values
            if labels is not None:
                output.losses = {**(output.losses or {}), "lm": written.loss}
        output.loss = self.weighted(output.losses or {})
        return output

    def losses_of(
        self,
        fused: Fused,
        findings: FindingOutputs,
        targets: FindingTargets | None,
        pos_weight_F: Tensor | None,
    ) -> dict[str, Tensor]:
        if targets is None:
            return {}
        losses = finding_loss(findings, targets, fused, pos_weight_F)
        if fused.selection is not None:
            losses["keep_ratio"] = fused.selection.keep_ratio_loss
        return losses

    def weighted(self, losses: dict[str, Tensor]) -> Tensor | None:
        weights = self.config.loss_weights
        terms = [weights[name] * loss for name, loss in losses.items() if weights[name]]
        return torch.stack(terms).sum() if terms else None

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        *,
        fused: Fused | None = None,
        findings: FindingOutputs | None = None,
        image_BCIJK: Tensor | None = None,
        text: Text = None,
        present_BC: Tensor | None = None,
        affine_B44: Tensor | None = None,
        text_mask_BL: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """`GenerationMixin.generate` from `fused` or an image, after the prompt `inputs` (or
        `input_ids`; default: the start token). Every other argument is that of transformers."""
        if fused is None and image_BCIJK is not None:
            fused = self.encode(image_BCIJK, text, present_BC, affine_B44, text_mask_BL)
        if fused is not None:
            kwargs["memory_BSE"], kwargs["memory_mask_BS"] = self.memory(fused, findings)
        input_ids = kwargs.pop("input_ids", inputs)
        if input_ids is None:
            rows = 1 if fused is None else len(fused.tokens_BSD)
            input_ids = torch.full((rows, 1), self.config.bos_token_id, device=self.device)
        kwargs.setdefault("attention_mask", torch.ones_like(input_ids))
        return super().generate(input_ids, **kwargs)
