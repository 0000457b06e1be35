"""Slots written side by side, and texts in batches, are those of writing token by token."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from evaluation.adversarial import train_tokenizer
from evaluation.linter import random_findings
from mla_med.model.config import tiny
from mla_med.model.generate import _choose_in_turn, write_texts
from mla_med.model.mla import MLAModel
from mla_med.model.slots import SlotMachine, report_slots
from mla_med.model.step import TorchReader, can_step
from mla_med.model.writing import write_side_by_side
from mla_med.report.render import body_text, render_report

PATIENTS = 5


@pytest.fixture(scope="module")
def world():
    """A model with loud random weights, so that it prefers what it likes, and slots of some patients."""
    torch.manual_seed(3)
    decoder = {"n_layer": 2, "n_embd": 32, "n_inner": 64, "n_head": 4, "n_positions": 768}
    model = MLAModel(tiny(vocab_size=1024, decoder=decoder)).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(4)
    findings = [random_findings("chest_ct", random.Random(seed)) for seed in range(PATIENTS)]
    model.tokenizer = train_tokenizer([body_text(render_report(f)) for f in findings], vocab_size=1024)
    slots = [report_slots(f) for f in findings]
    images = torch.rand(PATIENTS, 3, 32, 32, 32)
    with torch.no_grad():
        fused = model.encode(images, [f"{30 + n} years" for n in range(PATIENTS)])
        return model, slots, fused, model.find(fused)


def machines_of(model, slots):
    return [SlotMachine(texts, model.tokenizer, model.config.eos_token_id) for texts in slots]


def memory_of(model, fused, found):
    memory_BSE, mask_BS = model.memory(fused, found)
    return {"memory_BSE": memory_BSE, "memory_mask_BS": mask_BS}


@torch.no_grad()
def test_side_by_side_is_choice_by_choice(world):
    model, slots, fused, found = world
    memory = memory_of(model, fused, found)
    wanted = _choose_in_turn(model, memory, machines_of(model, slots))
    for ahead in (1, 3, 100):
        machines = machines_of(model, slots)
        reader = TorchReader(model.decoder.lm, *memory.values(), max(m.longest for m in machines))
        written = write_side_by_side(reader, machines, model.config.bos_token_id, ahead)
        assert [w.token_ids for w in written] == [w.token_ids for w in wanted]
        assert [w.text for w in written] == [w.text for w in wanted]
    # the model has opinions: it does not take the first wording everywhere
    firsts = ["".join(texts[0] for texts in one) for one in slots]
    assert all(w.text != first for w, first in zip(written, firsts, strict=True))


@torch.no_grad()
def test_a_patient_is_written_the_same_alone_and_among_others(world):
    model, slots, fused, found = world
    memory_BSE, mask_BS = model.memory(fused, found)
    reader = TorchReader(model.decoder.lm, memory_BSE, mask_BS, 768)
    together = write_side_by_side(reader, machines_of(model, slots), model.config.bos_token_id)
    assert together == write_texts(model, fused, found, slots)
    for row in (0, PATIENTS - 1):
        (machine,) = machines_of(model, slots[row : row + 1])
        reader = TorchReader(model.decoder.lm, memory_BSE[row : row + 1], mask_BS[row : row + 1], 768)
        (alone,) = write_side_by_side(reader, [machine], model.config.bos_token_id)
        assert alone.token_ids == together[row].token_ids


def test_slots_ahead_take_fewer_readings(world):
    model, slots, fused, found = world

    class Counted(TorchReader):
        readings = 0

        def read(self, *args):
            Counted.readings += 1
            return super().read(*args)

    counts = []
    for ahead in (1, 8):
        Counted.readings = 0
        with torch.no_grad():
            reader = Counted(model.decoder.lm, *model.memory(fused, found), 768)
        write_side_by_side(reader, machines_of(model, slots), model.config.bos_token_id, ahead)
        counts.append(Counted.readings)
    assert counts[1] < 0.7 * counts[0]


@torch.no_grad()
def test_a_step_gives_the_logits_of_transformers(world):
    model, _, fused, found = world
    memory = memory_of(model, fused, found)
    ids = torch.randint(3, 1024, (PATIENTS, 9))
    wanted = model(input_ids=ids, **memory).logits
    reader = TorchReader(model.decoder.lm, *memory.values(), 16)
    rows = ids.tolist()
    every = [range(4)] * PATIENTS
    first = reader.read([row[:4] for row in rows], [0] * PATIENTS, every)
    np.testing.assert_allclose(first, wanted[:, :4].numpy(), atol=2e-4)
    # what was read in vain is written over
    reader.read([row[7:] for row in rows], [4] * PATIENTS, [[0]] * PATIENTS)
    later = reader.read([row[4:] for row in rows], [4] * PATIENTS, [[4]] * PATIENTS)
    np.testing.assert_allclose(later, wanted[:, 8:].numpy(), atol=2e-4)


def test_a_decoder_that_is_not_written_out_writes_choice_by_choice(world):
    model, slots, fused, found = world
    wanted = write_texts(model, fused, found, slots)
    config = model.decoder.lm.config
    config.scale_attn_by_inverse_layer_idx = True  # read when a block is made, so nothing changes
    try:
        assert not can_step(model.decoder.lm)
        assert [w.text for w in write_texts(model, fused, found, slots)] == [w.text for w in wanted]
    finally:
        config.scale_attn_by_inverse_layer_idx = False
