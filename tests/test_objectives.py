"""What each objective teaches, and what it must not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_world import batch_of, batches_of, examples_in, small_model, write_corpus

from dapt.augment import moved
from dapt.batches import Wanted, hide, known_targets
from dapt.extend import extend, extended
from dapt.objectives.align import Align, embed_reports
from dapt.objectives.fuse import Fuse, hardest
from dapt.objectives.objective import Together, unrecorded
from dapt.objectives.text import ReportText
from dapt.objectives.volume import MaskedVolume
from mla_med.errors import ConfigError

HIDDEN = Wanted(hidden=0.6, findings=False)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return examples_in(write_corpus(tmp_path_factory.mktemp("world") / "corpus"))


@pytest.fixture
def model(examples):
    return small_model(examples)


def test_whole_cells_of_the_body_are_hidden_and_none_of_air():
    inside = np.zeros((24, 24, 24), bool)
    inside[:16, :16, 8:] = True
    hidden = hide(inside, 0.5, np.random.default_rng(0), 8)
    cells = hidden.reshape(3, 8, 3, 8, 3, 8).mean((1, 3, 5))
    assert set(cells.ravel()) == {0.0, 1.0}
    assert cells.sum() == 4  # half of 2 x 2 x 2
    assert cells[2].sum() == 0


def test_an_image_and_its_affine_move_together_and_a_picture_keeps_its_only_slice():
    image = torch.zeros(16, 16, 1)
    image[6, 7, 0] = 1.0
    for n in range(5):
        there, affine = moved(image.clone(), np.eye(4, dtype=np.float32), 4, np.random.default_rng(n), 0.0)
        index = np.argwhere(there.numpy() == 1.0)[0]
        assert (affine @ [*index, 1.0])[:3].tolist() == [6.0, 7.0, 0.0]
        assert np.abs(index - [6, 7, 0]).max() <= 2


def test_hidden_voxels_of_air_teach_nothing(examples, model):
    batch = batch_of(examples[:2], model, HIDDEN)
    objective = MaskedVolume(model.config).eval()
    model.eval()
    before = objective(model, batch)["volume"]
    outside = (batch.hidden_IIJK & ~batch.inside_IIJK)[:, None]
    changed = torch.where(outside, torch.ones(()), batch.image_ICIJK)
    assert outside.any()
    assert torch.equal(objective(model, replace(batch, image_ICIJK=changed))["volume"], before)


def test_what_is_hidden_is_not_seen(examples, model):
    batch = batch_of(examples[:2], model, HIDDEN)
    objective = MaskedVolume(model.config).eval()
    model.eval()
    seen = torch.where(batch.hidden_IIJK[:, None], torch.zeros(()), batch.image_ICIJK)
    guessed = objective.guess(model, seen, batch.present_IC)
    assert guessed.shape == batch.image_ICIJK.shape
    asked = (batch.hidden_IIJK & batch.inside_IIJK)[:, None].expand_as(guessed)
    error = (guessed - batch.image_ICIJK).abs()[asked].mean()
    assert torch.isclose(objective(model, batch)["volume"], error)


def test_a_masked_image_leaves_no_trace_in_the_statistics(examples, model):
    batch = batch_of(examples[:2], model, HIDDEN)
    model.train()
    norm = model.image_encoder.stages[0].norm
    before = norm.running_mean.clone()
    MaskedVolume(model.config, settle=False).train()(model, batch)
    assert torch.equal(norm.running_mean, before)
    MaskedVolume(model.config).train()(model, replace(batch, step=4))  # a whole image, every fourth step
    assert not torch.equal(norm.running_mean, before)
    with unrecorded(model):
        assert norm.momentum == 0.0
    assert norm.momentum == 0.1


def test_report_text_is_the_loss_of_the_decoder_alone(examples, model):
    batch = batch_of(examples[:3], model)
    model.eval()
    alone = model(input_ids=batch.ids_TL, labels=batch.labels_TL).losses["lm"]
    objective = ReportText()
    assert torch.isclose(objective(model, batch)["text"], alone)
    assert objective.counts(batch) == {"text": float((batch.labels_TL[:, 1:] != -100).sum())}


def _orthogonal(n: int, width: int) -> torch.Tensor:
    return torch.eye(width)[:n]


def _who(patients: list[int], texts: list[int]) -> torch.Tensor:
    return torch.tensor([patients, texts]).T


def test_embeddings_that_are_all_alike_lose_the_logarithm_of_their_number(model):
    align = Align(model, queue=0).eval()
    same = torch.ones(4, 32) / math.sqrt(32)
    loss = align.contrast(same, same, _who([1, 2, 3, 4], [1, 2, 3, 4]))
    assert loss.item() == pytest.approx(math.log(4), abs=1e-5)


def test_pairs_that_match_lose_almost_nothing(model):
    align = Align(model, queue=0).eval()
    rows = _orthogonal(4, 32)
    loss = align.contrast(rows, rows, _who([1, 2, 3, 4], [1, 2, 3, 4]))
    assert loss.item() < 1e-4


@pytest.mark.parametrize("who", [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [7, 7, 7])])
def test_the_same_patient_and_the_same_words_are_no_negatives(model, who):
    align = Align(model, queue=0).eval()
    same = torch.ones(3, 32) / math.sqrt(32)
    assert align.contrast(same, same, _who(*who)).item() == 0.0


def test_pairs_of_earlier_steps_are_negatives_until_newer_ones_take_their_place(model):
    align = Align(model, queue=6).train()
    same = torch.ones(4, 32) / math.sqrt(32)
    losses = [
        align.contrast(same, same, _who([k] * 4, [k] * 4), keys=(same, same)).item() for k in (1, 2, 3, 4)
    ]
    # the four of a step are of one patient: own pair, and what the queue holds
    assert losses == pytest.approx([0.0, math.log(5), math.log(7), math.log(7)], abs=1e-5)
    assert set(align.queue_who_Q2[:, 0].tolist()) == {3, 4}


def test_what_the_queue_holds_is_said_by_towers_that_follow_the_model(examples, model):
    batch = batch_of(examples[:4], model)
    align = Align(model, queue=8).train()
    assert align.slow is not None
    assert not any(module.training for module in align.slow.modules())
    assert not any(p.requires_grad for p in align.slow.parameters())
    assert not any("decoder" in name for name, _ in align.slow.named_parameters())
    before = align.slow(batch)
    align(model.train(), batch)["contrast"].backward()
    assert model.project_image.weight.grad is not None
    assert torch.equal(align.queue_image_QD[:4], before[0])  # as they said it, and not the model
    with torch.no_grad():
        model.project_image.weight.add_(1.0)
    gaps = []
    for _ in range(20):
        align.after_step(model)
        gap = align.slow.model.project_image.weight - model.project_image.weight
        gaps.append(gap.detach().abs().max().item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.05
    assert not torch.equal(align.slow(batch)[0], before[0])


@pytest.mark.parametrize("queue", [0, 16])
def test_contrast_keeps_images_and_reports_apart(examples, model, queue):
    """Where the queue holds what the learning towers said, they are at 0.46 after these steps, and on larger
    corpora become one point."""
    model.train()
    align = Align(model, queue, findings=False).train()
    some = [batch_of(examples[n : n + 4], model) for n in (0, 4)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(120):
        align(model, some[step % 2])["contrast"].backward()
        optimizer.step()
        optimizer.zero_grad()
        align.after_step(model)
    model.eval()
    with torch.no_grad():
        reports_TD = embed_reports(model, [r for batch in some for r in batch.reports])
    alike = (reports_TD @ reports_TD.T)[~torch.eye(len(reports_TD), dtype=torch.bool)]
    assert alike.mean() < 0.3


def test_contrast_sees_the_image_without_its_request(examples, model):
    batch = batch_of(examples[:4], model)
    model.eval()
    align = Align(model).eval()
    other = replace(batch, contexts=("Nodule in the right lung.",) * 4)
    assert torch.equal(align(model, batch)["contrast"], align(model, other)["contrast"])


def test_a_long_report_is_read_to_its_end(examples, model):
    model.eval()
    short, long = "No nodule.", "The lungs are clear. " * 30
    both = embed_reports(model, [short, long])
    assert torch.allclose(both[:1], model.text_embedding_BD([short]), atol=1e-5)
    assert not torch.allclose(both[1:], embed_reports(model, [long + "A nodule."]), atol=1e-4)
    assert torch.allclose(both[1:], embed_reports(model, [long]), atol=1e-5)


def test_the_hardest_negative_is_the_most_alike_of_those_allowed():
    alike = torch.tensor([[1.0, 0.9, -1.0], [0.9, 1.0, 0.8], [-1.0, 0.8, 1.0]])
    allowed = torch.tensor([[False, False, True], [True, False, True], [False, False, False]])
    drawn = torch.stack([hardest(10 * alike, allowed) for _ in range(50)])
    assert set(drawn[:, 0].tolist()) == {2}
    assert set(drawn[:, 1].tolist()) == {0}  # far more alike than 2
    assert set(drawn[:, 2].tolist()) == {2}  # none is allowed: its own, which is then not asked


def test_matching_asks_for_both_kinds_of_wrong_pairs(examples, model):
    batch = batch_of(examples[:4], model)
    model.train()
    asked = []
    fuse = Fuse(model.config)
    judged = fuse.judged

    def listen(model, fused, images, reports, texts):
        asked.append((images.tolist(), texts.tolist()))
        return judged(model, fused, images, reports, texts)

    fuse.judged = listen
    losses = fuse(model, batch)
    assert {"presence", "lm", "match"} <= set(losses)
    (images, texts), n = asked[0], 4
    assert images[:n] == texts[:n] == [0, 1, 2, 3]
    assert images[n : 2 * n] == texts[2 * n :] == [0, 1, 2, 3]
    wrong = list(zip(images[n:], texts[n:], strict=True))
    assert len(wrong) == 2 * n
    assert all(a != b for a, b in wrong)


def test_without_matching_its_time_is_saved(examples, model):
    assert "match" not in Fuse(model.config, match=0.0)(model, batch_of(examples[:4], model))


def test_an_archive_teaches_what_it_has(examples, model):
    image = replace(examples[0], reports={})
    text = replace(examples[1], image=None, present=())
    dapt = Together(MaskedVolume(model.config), ReportText(), Align(model, 8, findings=False))
    assert set(dapt(model, batch_of([image], model, HIDDEN))) == {"volume"}
    assert set(dapt(model, batch_of([text], model, HIDDEN))) == {"text"}
    mixed = batch_of([image, text, examples[2]], model, HIDDEN)
    assert set(dapt(model, mixed)) == {"volume", "text", "contrast"}
    assert [rows.tolist() for rows in (mixed.image_rows_I, mixed.text_rows_T)] == [[0, 2], [1, 2]]
    assert [places.tolist() for places in mixed.pairs] == [[1], [1]]


def test_a_stage_without_anything_to_learn_from_says_so(examples, model):
    texts = [replace(e, image=None) for e in examples]
    with pytest.raises(ConfigError, match="Does the corpus hold images"):
        batches_of(texts, model, Wanted(texts=False))


def test_findings_that_nobody_knows_teach_nothing(examples, model):
    keys = model.config.finding_keys
    unknown = replace(examples[1], labels="none")
    partly = replace(examples[1], known=("lung_nodule",))
    assert known_targets([unknown], model.config) is None
    presence = known_targets([unknown, partly, examples[1]], model.config).presence_BF
    assert presence[0].isnan().all()
    assert int(presence[1].isnan().sum()) == len(keys) - 1
    assert presence[1, keys.index("lung_nodule")] == 1
    assert not presence[2].isnan().any()


def test_new_tokens_shorten_the_site_and_leave_other_texts_as_they_were(examples, model):
    site = ["双肺未见明显结节影。右肺上叶结节。"] * 4
    old = model.tokenizer
    new, made = extended(old, site, 12)
    assert len(made) == 12
    assert len(new(site[0])["input_ids"]) < len(old(site[0])["input_ids"])
    assert new.decode(new(site[0])["input_ids"]) == site[0]
    for example in examples:
        assert new(example.reports["en"])["input_ids"] == old(example.reports["en"])["input_ids"]
    assert (new.pad_token_id, new.bos_token_id, new.eos_token_id) == (0, 1, 2)


def test_the_row_of_a_new_token_is_the_mean_of_what_it_was_spelt_with(model):
    old, before = model.tokenizer, model.decoder.lm.get_input_embeddings().weight.detach().clone()
    first = len(old)
    made = extend(model, ["双肺未见明显结节影。右肺上叶结节。"] * 4, 300)
    after = model.decoder.lm.get_input_embeddings().weight
    pieces = [token.id for token in old.backend_tokenizer.model.tokenize(made[0])]
    assert torch.allclose(after[first], before[pieces].mean(0), atol=1e-6)
    assert torch.equal(after[: len(before)][:first], before[:first])
    assert model.text_encoder.embed.weight.shape[0] == after.shape[0] == model.config.vocab_size
    assert model.decoder.lm.get_output_embeddings().weight is after
    ids = model.tokenizer("双肺未见明显结节影。", return_tensors="pt")["input_ids"]
    assert torch.isfinite(model.eval()(input_ids=ids, labels=ids).loss)
