"""Random tensors -> what the network promises: nothing leaks, nothing is dead, nothing depends on luck."""

from dataclasses import replace

import pytest
import torch

from mla_med.errors import ConfigError
from mla_med.model.attention import (
    ChannelGate,
    DynamicWeightGenerator,
    MaskedTransformerBlock,
    choose_kept,
    keep_gathered,
    keep_masked,
    keep_ratio_loss,
)
from mla_med.model.config import FUSION_TYPES, ModalConfig, base, default, small, tiny
from mla_med.model.findings import (
    FindingTargets,
    any_of,
    finding_loss,
    map_loss,
    present_boxes,
    touches,
)
from mla_med.model.fusion import CrossModalAttentionBridge, DynamicModalAttention
from mla_med.model.image_encoder import Level, cell_positions, frame_of
from mla_med.model.lesion_map import peaks_of
from mla_med.model.mla import MLAModel
from mla_med.report.schema import CHEST_CT

BALL = [{"key": "ball", "sides": ["right", "left"], "sites": ["upper_lobe"], "has_size": True}]


pytestmark = pytest.mark.usefixtures("seed_and_one_thread")


def a_model(**changes):
    return MLAModel(tiny(**changes)).eval()


def images(batch=2, size=(24, 20, 16)):
    return torch.randn(batch, 3, *size)


def findings_differ(one, other, row):
    return (one.presence_logits_BF[row] - other.presence_logits_BF[row]).abs().max().item()


# It runs


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_every_fusion_runs_for_every_batch_size(fusion_type, batch):
    output = a_model(fusion_type=fusion_type)(["cough", "", "a longer text"][:batch], images(batch))
    assert output.findings.presence_logits_BF.shape == (batch, len(CHEST_CT))
    assert output.fused.tokens_BSD.shape[1] != len("cough")
    assert torch.allclose(output.fused.modal_weights_BM.sum(1), torch.ones(batch))


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
def test_the_call_of_the_source_runs_as_printed(fusion_type):
    model = MLAModel(ModalConfig(text_dim=512, image_dim=224, fusion_type=fusion_type))
    output = model("A red car on the road", torch.randn(1, 3, 224, 224))
    assert output.findings.presence_logits_BF.isfinite().all()


def test_an_unknown_fusion_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="Did you mean 'concat'"):
        tiny(fusion_type="concatenate")


def test_an_image_with_other_channels_is_refused_with_its_shape():
    with pytest.raises(ConfigError, match=r"\(1, 2, 8, 8, 8\)"):
        a_model()("", torch.randn(1, 2, 8, 8, 8))


@pytest.mark.parametrize(
    ("size", "least", "most"), [(default, 2e6, 4e6), (small, 2e6, 5e6), (base, 15e6, 30e6)]
)
def test_every_size_runs(size, least, most):
    model = MLAModel(size(image_dim=32)).eval()
    assert least <= sum(p.numel() for p in model.parameters()) <= most
    with torch.no_grad():
        output = model(["cough"], torch.rand(1, model.config.channels, 32, 32, 32))
    assert output.findings.presence_logits_BF.isfinite().all()


def test_two_calls_are_equal():
    model, image = a_model(), images()
    first, second = model("cough", image), model("cough", image)
    assert torch.equal(first.findings.presence_logits_BF, second.findings.presence_logits_BF)
    assert torch.equal(first.fused.tokens_BSD, second.fused.tokens_BSD)


# Everything is trained


def targets_for(model, batch):
    findings = len(model.config.findings)
    presence_BF = (torch.arange(batch * findings).view(batch, findings) % 2 == 0).float()
    boxes_BFL23 = torch.tensor([[4.0, 4, 4], [12, 12, 12]]).expand(batch, findings, 1, 2, 3)
    return FindingTargets(
        presence_BF,
        torch.zeros(batch, findings, dtype=torch.long),
        torch.zeros(batch, findings, dtype=torch.long),
        torch.full((batch, findings), 8.0),
        boxes_BFL23,
    )


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
@pytest.mark.parametrize("masked_training", [False, True])
def test_every_parameter_is_saved_and_learns(fusion_type, masked_training):
    model = a_model(fusion_type=fusion_type, masked_training=masked_training, modality_dropout=(0, 0)).train()
    ids = torch.randint(4, 264, (3, 12))
    present_BC = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 1, 0]])

    def backward():
        model.zero_grad()
        output = model(
            ["cough", "fever", ""],
            images(3, (40, 20, 16)),
            present_BC=present_BC,
            targets=targets_for(model, 3),
            input_ids=ids,
            labels=ids,
        )
        pooled = model.image_embedding_BD(output.fused), model.text_embedding_BD(["cough", "ache"])
        (output.loss + sum(x.square().mul(torch.rand_like(x)).sum() for x in pooled)).backward()

    backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()  # opens the gates of the bridge
    backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert dead == []
    assert {name for name, _ in model.named_parameters()} <= set(model.state_dict())


def test_the_gates_of_the_bridge_start_closed_and_open_in_one_step():
    bridge = CrossModalAttentionBridge(8, 2)
    image, text = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    there = torch.ones(2, 5), torch.ones(2, 3)
    image_after, text_after, looks_BNL, looks_BLN = bridge(image, there[0], text, there[1])
    assert torch.equal(image_after, image)
    assert torch.equal(text_after, text)
    assert looks_BNL.shape == (2, 5, 3)
    assert looks_BLN.shape == (2, 3, 5)
    (image_after.square().sum() + text_after.square().sum()).backward()
    assert bridge.gates_2.grad.abs().min() > 0


# Level 1


def a_selection(batch=3, tokens=12, padded=4):
    x_BND = torch.randn(batch, tokens, 16)
    mask_BN = torch.ones(batch, tokens, dtype=torch.bool)
    mask_BN[1, -padded:] = False
    return DynamicWeightGenerator(16), x_BND, mask_BN


def test_padding_is_never_kept_and_each_sample_keeps_its_share():
    scorer, x_BND, mask_BN = a_selection()
    for noisy in (False, True):
        keep_BN = choose_kept(scorer(x_BND, mask_BN) - 1e3 * mask_BN, mask_BN, 0.5, 99, noisy)
        assert not (keep_BN & ~mask_BN).any()
        assert keep_BN.sum(1).tolist() == [6, 4, 6]


def test_the_token_budget_caps_what_is_kept():
    scorer, x_BND, mask_BN = a_selection()
    assert choose_kept(scorer(x_BND, mask_BN), mask_BN, 0.5, 5).sum(1).tolist() == [5, 4, 5]


def test_what_stands_in_padding_changes_nothing():
    scorer, x_BND, mask_BN = a_selection()
    other_BND = torch.where(mask_BN.unsqueeze(-1), x_BND, torch.nan)
    scores_BN, others_BN = scorer(x_BND, mask_BN), scorer(other_BND, mask_BN)
    assert torch.equal(scores_BN, others_BN)
    keep_BN = choose_kept(scores_BN, mask_BN, 0.5, 99)
    for keep in (keep_masked, keep_gathered):
        one = keep(x_BND, scores_BN, mask_BN, keep_BN)
        other = keep(other_BND, others_BN, mask_BN, keep_BN)
        assert torch.equal(one.tokens_BSD, other.tokens_BSD)


def test_the_score_of_a_token_depends_on_the_others():
    scorer, x_BND, mask_BN = a_selection()
    changed_BND = x_BND.clone()
    changed_BND[0, 5] += 3
    assert (scorer(x_BND, mask_BN)[0, 0] - scorer(changed_BND, mask_BN)[0, 0]).abs() > 1e-4


def test_masked_and_gathered_agree():
    scorer, x_BND, mask_BN = a_selection()
    scores_BN = scorer(x_BND, mask_BN)
    keep_BN = choose_kept(scores_BN, mask_BN, 0.5, 99)
    blocks = [MaskedTransformerBlock(16, 4), MaskedTransformerBlock(16, 4)]
    masked, gathered = (k(x_BND, scores_BN, mask_BN, keep_BN) for k in (keep_masked, keep_gathered))
    through = []
    for kept in (masked, gathered):
        tokens_BSD = kept.tokens_BSD
        for block in blocks:
            tokens_BSD = block(tokens_BSD, kept.weights_BS)
        through.append(tokens_BSD)
    for row in range(3):
        places = torch.cat([keep_BN[row].nonzero().squeeze(1), torch.tensor([12])])
        slots = torch.cat([torch.arange(int(keep_BN[row].sum())), torch.tensor([-1])])
        assert torch.allclose(through[0][row, places], through[1][row, slots], atol=1e-5)
    assert gathered.tokens_BSD.shape[1] == 7


def test_the_whole_model_says_the_same_masked_and_gathered(monkeypatch):
    model, image = a_model(masked_training=True), images()
    gathered = model("cough", image)
    monkeypatch.setattr(model.fusion, "training", True)
    monkeypatch.setattr(
        "mla_med.model.fusion.choose_kept", lambda *a, noisy=False, **more: choose_kept(*a, **more)
    )
    masked = model("cough", image)
    assert masked.fused.tokens_BSD.shape[1] > gathered.fused.tokens_BSD.shape[1]
    assert findings_differ(masked.findings, gathered.findings, slice(None)) < 1e-5


def test_the_keep_ratio_is_learned():
    scorer, x_BND, mask_BN = a_selection()
    scores_BN = scorer(x_BND, mask_BN)
    keep_BN = choose_kept(scores_BN, mask_BN, 0.25, 99)
    loss = keep_ratio_loss(scores_BN, mask_BN, keep_BN)
    loss.backward()
    assert loss > 0
    assert scorer.score.weight.grad.abs().max() > 0


# Level 2


def test_channel_gates_differ_between_inputs_and_learn():
    gate, x = ChannelGate(8), torch.randn(4, 8, 4, 4, 1) + torch.randn(4, 8, 1, 1, 1)
    assert gate.weights_BC(x).var(0).min() > 0
    gate(x).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in gate.parameters())


def test_the_gates_of_the_encoder_differ_between_images():
    model, seen = a_model(), []
    for stage in model.image_encoder.stages:
        stage.gate.register_forward_hook(lambda gate, x, _: seen.append(gate.weights_BC(x[0])))
    model("", images(3) * torch.tensor([0.2, 1, 5])[:, None, None, None, None])
    assert len(seen) == 4
    assert all(gates_BC.var(0).max() > 0 for gates_BC in seen)


# No patient changes another


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
def test_changing_one_patients_image_changes_that_patient_alone(fusion_type):
    model, image = a_model(fusion_type=fusion_type), images(3)
    torch.nn.init.ones_(next(p for n, p in model.named_parameters() if "queries_FD" in n))
    for module in model.modules():
        if isinstance(module, CrossModalAttentionBridge):
            torch.nn.init.ones_(module.gates_2)
    changed = image.clone()
    changed[1] += 2 * torch.randn_like(changed[1])
    one, other = (model(["a", "bcd", "ef"], x).findings for x in (image, changed))
    assert findings_differ(one, other, 1) > 1e-5
    assert findings_differ(one, other, [0, 2]) < 1e-6


def test_what_stands_in_padded_text_changes_nothing():
    model, image = a_model(), images()
    torch.nn.init.ones_(model.fusion.bridges[1].gates_2)
    mask_BL = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    ids_BL = torch.tensor([[9, 8, 7, 6], [5, 6, 7, 8]])
    others_BL = torch.where(mask_BL, ids_BL, 77)
    one, other = (model(ids, image, text_mask_BL=mask_BL).findings for ids in (ids_BL, others_BL))
    assert torch.equal(one.presence_logits_BF, other.presence_logits_BF)


def test_the_text_matters():
    model, image = a_model(), images()
    assert findings_differ(model("cough", image).findings, model("trauma", image).findings, 0) > 1e-6


def test_a_blank_image_moves_the_findings():
    model, image = a_model(), images()
    assert findings_differ(model("", image).findings, model("", 0 * image).findings, 0) > 1e-5


# What is absent is absent


def test_an_absent_modality_has_weight_zero_and_nan_in_it_is_harmless():
    attention = DynamicModalAttention((6, 4, 3), 8).eval()
    pooled = [torch.randn(2, dim) for dim in (6, 4, 3)]
    pooled[1][0] = torch.nan
    present_BM = torch.tensor([[True, False, True], [True, True, True]])
    fused_BD, weights_BMD = attention(pooled, present_BM)
    assert torch.equal(weights_BMD[0, 1], torch.zeros(8))
    assert torch.allclose(weights_BMD.sum(1), torch.ones(2, 8))
    fused_BD.sum().backward()
    assert fused_BD.isfinite().all()
    assert all(p.grad.isfinite().all() for p in attention.parameters())


def test_modal_weights_differ_between_samples_and_features():
    _, weights_BMD = DynamicModalAttention((6, 4), 8)(
        [torch.randn(5, 6), torch.randn(5, 4)], torch.ones(5, 2).bool()
    )
    assert weights_BMD[:, 0].var(0).min() > 0
    assert weights_BMD[:, 0].var(1).min() > 0


def test_modality_dropout_hides_some_but_never_all():
    attention = DynamicModalAttention((6, 4), 8, dropout=(0.5, 0.5)).train()
    _, weights_BMD = attention([torch.randn(200, 6), torch.randn(200, 4)], torch.ones(200, 2).bool())
    hidden_BM = weights_BMD.mean(-1) == 0
    assert hidden_BM.any(0).all()
    assert not hidden_BM.all(1).any()


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
@pytest.mark.parametrize("masked_training", [False, True])
def test_a_batch_without_any_image_is_told_by_its_words(fusion_type, masked_training):
    model = a_model(fusion_type=fusion_type, masked_training=masked_training)
    for training in (False, True):
        output = model.train(training)(["61 years", "cough"], images(2), present_BC=torch.zeros(2, 3))
        assert output.findings.presence_logits_BF.isfinite().all()


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
def test_a_missing_sequence_or_text_or_image_is_harmless(fusion_type):
    model, image = a_model(fusion_type=fusion_type), images(3)
    present_BC = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 0, 0]])
    blank = torch.where(present_BC.bool()[:, :, None, None, None], image, torch.nan)
    one, other = (model(["a", "", "bc"], x, present_BC=present_BC) for x in (image, blank))
    # equal weights at other addresses: a product may differ in its last bit
    torch.testing.assert_close(one.findings.presence_logits_BF, other.findings.presence_logits_BF)
    assert other.findings.presence_logits_BF.isfinite().all()
    weights_BM = other.fused.modal_weights_BM
    assert weights_BM[1].tolist() == [1.0, 0.0]
    assert weights_BM[2].tolist() == [0.0, 1.0]
    assert 0 < weights_BM[0, 0] < 1


# Where things lie


def test_cells_lie_where_the_affine_says():
    affine_B44 = torch.diag(torch.tensor([-2.0, 2.0, 3.0, 1.0]))[None]
    affine_B44[0, :3, 3] = torch.tensor([100.0, -50.0, 10.0])
    frame = frame_of(torch.zeros(1, 3, 16, 8, 12), affine_B44)
    positions_BN3, half_BN3 = cell_positions(Level(torch.zeros(1, 5, 2, 1, 2), 8), frame)
    assert positions_BN3[0, 0].tolist() == [93.0, -43.0, 20.5]
    assert positions_BN3[0, 3].tolist() == [77.0, -43.0, 38.5]  # cut by the border: voxels 8 to 11
    assert half_BN3[0, 0].tolist() == [8.0, 8.0, 12.0]
    assert half_BN3[0, 3].tolist() == [8.0, 8.0, 6.0]
    assert frame.centre_B3()[0].tolist() == [85.0, -43.0, 26.5]


def test_kept_tokens_keep_their_place():
    fused = a_model()("", images(2, (32, 32, 32))).fused
    kept = (fused.strides_BS[0] == 8) & (fused.index_BS[0] >= 0)
    places = fused.index_BS[0, kept]
    assert 0 < kept.sum() < 64
    expected = torch.stack([places // 16, places // 4 % 4, places % 4], 1) * 8 + 3.5
    assert torch.equal(fused.positions_BS3[0, kept], expected)


def test_evidence_is_rewarded_inside_the_lesion_only():
    model = a_model()
    output = model("", images())
    targets, nowhere = targets_for(model, 2), targets_for(model, 2)
    nowhere = FindingTargets(
        nowhere.presence_BF, lesion_boxes_BFL23=torch.full((2, len(CHEST_CT), 1, 2, 3), torch.nan)
    )
    assert finding_loss(output.findings, targets, output.fused)["evidence"] > 0
    assert finding_loss(output.findings, nowhere, output.fused)["evidence"] == 0


def test_unknown_targets_teach_nothing():
    model = a_model()
    output = model("", images())
    unknown = torch.full((2, len(CHEST_CT)), torch.nan)
    none = torch.full((2, len(CHEST_CT)), -1)
    losses = finding_loss(output.findings, FindingTargets(unknown, none, none, unknown), output.fused)
    assert {name: loss.item() for name, loss in losses.items()} == dict.fromkeys(
        ["presence", "side", "site", "size"], 0.0
    )


def test_a_side_that_a_code_does_not_know_is_never_stated():
    model = a_model()
    sides_BF = model("", images()).findings.side_logits_BF3.argmax(-1)
    nodule = model.config.finding_keys.index("lung_nodule")
    assert (model("", images()).findings.side_logits_BF3[:, nodule, 2] < -1e3).all()
    assert sides_BF[:, nodule].max() < 2


# Checkpoints


def test_save_and_load_round_trip_in_safetensors(tmp_path):
    model, image = a_model(preprocessing={"spacing_mm": [3.0, 3.0, 3.0]}), images()
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert "model.safetensors" in names
    assert not any(name.endswith((".bin", ".pt")) for name in names)
    loaded = MLAModel.from_pretrained(tmp_path).eval()
    assert loaded.config.preprocessing == {"spacing_mm": [3.0, 3.0, 3.0]}
    assert all(torch.equal(a, loaded.state_dict()[name]) for name, a in model.state_dict().items())
    ids = torch.tensor([[1, 5, 6], [1, 9, 9]])
    one, other = (m("cough", image, input_ids=ids) for m in (model, loaded))
    # weights lie elsewhere in memory, and sums of another order differ in the last digit
    torch.testing.assert_close(one.findings.presence_logits_BF, other.findings.presence_logits_BF)
    torch.testing.assert_close(one.logits, other.logits)
    head, table = loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight
    assert head.data_ptr() == table.data_ptr()


# Words


def test_generation_is_deterministic_and_the_same_alone_and_in_a_batch():
    model, image = a_model(), images(3)
    wish = {
        "max_new_tokens": 10,
        "min_new_tokens": 10,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    texts = ["cough", "", "short of breath"]
    first, again = (model.generate(image_BCIJK=image, text=texts, **wish) for _ in range(2))
    assert torch.equal(first.sequences, again.sequences)
    for row in range(3):
        alone = model.generate(image_BCIJK=image[row : row + 1], text=texts[row : row + 1], **wish)
        assert torch.equal(alone.sequences[0], first.sequences[row])
        logits = [torch.stack(g.logits)[:, r] for g, r in ((alone, 0), (first, row))]
        assert torch.allclose(*logits, atol=1e-4)


def test_the_cache_changes_no_word():
    model, image = a_model(), images()
    with_cache, without = (
        model.generate(image_BCIJK=image, max_new_tokens=8, min_new_tokens=8, use_cache=use)
        for use in (True, False)
    )
    assert torch.equal(with_cache, without)


def test_constraints_and_beams_reach_the_decoder():
    model = a_model()
    fused = model.encode(images(), "cough")
    prompt = torch.tensor([[1, 30], [1, 31]])
    allowed = [40, 41, 42]
    for beams in (1, 3):
        ids = model.generate(
            prompt,
            fused=fused,
            num_beams=beams,
            max_new_tokens=5,
            prefix_allowed_tokens_fn=lambda row, ids: allowed,
        )
        assert torch.equal(ids[:, :2], prompt)
        assert set(ids[:, 2:].flatten().tolist()) <= set(allowed)


def test_without_an_image_the_decoder_is_a_plain_language_model():
    ids = torch.randint(4, 264, (2, 9))
    output = a_model()(input_ids=ids, labels=ids)
    assert output.logits.shape == (2, 9, 264)
    assert list(output.losses) == ["lm"]


# It learns


def ball_world():
    """Eight volumes: a bright ball on the right (+x), on the left, or nowhere."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(32.0)] * 3, indexing="ij"), -1)
    image, box = 0.1 * torch.randn(8, 3, 32, 32, 32), torch.full((8, 1, 2, 3), torch.nan)
    presence, side = torch.zeros(8, 1), torch.full((8, 1), -1)
    for row in range(6):
        centre = torch.tensor([24.0 if row % 2 == 0 else 8.0, 10.0 + 2 * row, 16.0])
        image[row, :, (grid - centre).norm(dim=-1) < 4] += 3
        box[row, 0] = torch.stack([centre - 4, centre + 4])
        presence[row], side[row] = 1, row % 2
    size = torch.where(presence > 0, 8.0, torch.nan)
    return image, FindingTargets(presence, side, side.clamp(max=0), size, box[:, :, None])


def test_the_loss_falls_and_the_side_of_a_ball_is_learned():
    image, targets = ball_world()
    model = a_model(findings=BALL, widths=(8, 16, 16, 16)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = model("", image, targets=targets).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    found = model.eval()("", image, targets=targets)
    assert found.losses["side"] < 0.5
    assert found.losses["evidence"] < 2.0


def a_lesion(model: MLAModel, *corners: float) -> FindingTargets:
    """The first finding, in a box from `low` to `high` along each axis for each pair of corners."""
    lesions = torch.full((1, len(model.config.finding_keys), len(corners) // 2, 2, 3), torch.nan)
    for n, corner in enumerate(corners):
        lesions[0, 0, n // 2, n % 2] = corner
    presence = torch.zeros(lesions.shape[:2])
    presence[0, 0] = 1
    return FindingTargets(presence, lesion_boxes_BFL23=lesions)


def test_the_map_is_taught_where_lesions_are_and_absent_findings_nowhere():
    """A perfect map costs nothing, an inverted one much; slivers at a cell's border teach neither."""
    model = a_model(fusion_type="full").eval()
    lesions = model.encode(images(1, (32, 32, 32)), "cough").lesions
    targets = a_lesion(model, 9.0, 10.0)
    patient_P, finding_P, boxes_P23 = present_boxes(targets)
    inside_PN = touches(lesions.positions_BN3, lesions.half_cells_BN3, patient_P, boxes_P23)
    assert inside_PN.sum() == 1  # cell (2, 2, 2) covers voxels 8 to 11
    perfect = torch.where(any_of(inside_PN, patient_P, finding_P, targets), 12.0, -12.0)
    assert map_loss(replace(lesions, logits_BFN=perfect), targets) < 1e-3
    assert map_loss(replace(lesions, logits_BFN=-perfect), targets) > 10
    peaks = peaks_of(replace(lesions, logits_BFN=perfect))
    assert peaks.logit_BF[0].tolist() == [12.0] + [-12.0] * (len(CHEST_CT) - 1)
    assert peaks.position_BF3[0, 0].tolist() == [9.5, 9.5, 9.5]
    sliver = map_loss(replace(lesions, logits_BFN=perfect), a_lesion(model, 8.2, 11.9))
    assert sliver < 1e-3  # 11.9 is over the border of cell 3, at 11.5, by a tenth of it


def test_a_new_map_says_that_there_is_nothing():
    lesions = a_model(fusion_type="full").encode(images(1, (32, 32, 32)), "cough").lesions
    assert lesions.logits_BFN.sigmoid().mean() < 0.05


def test_every_lesion_is_taught_and_one_seen_cell_of_each_is_enough():
    """A box holds more than the lesion: specks of calcium lie in a few of its cells."""
    model = a_model(fusion_type="full").eval()
    lesions = model.encode(images(1, (32, 32, 32)), "cough").lesions
    targets = a_lesion(model, 1.0, 10.0, 21.0, 30.0)
    places_N = lesions.positions_BN3[0, :, 0] + 100 * lesions.positions_BN3[0].var(-1)
    logits = torch.full_like(lesions.logits_BFN, -12.0)
    logits[0, 0, (places_N - 5.5).abs().argmin()] = 12.0
    one = map_loss(replace(lesions, logits_BFN=logits), targets)
    assert 6 < one < 7  # one of two lesions is missed, by 12
    logits[0, 0, (places_N - 25.5).abs().argmin()] = 12.0
    assert map_loss(replace(lesions, logits_BFN=logits), targets) < 1.3


def test_the_signal_does_not_vanish_with_length():
    """The source divided by the number of tokens twice: ten times the tokens, a tenth of the signal."""
    from mla_med.model.attention import FindingQueries, masked_mean

    queries, token_D = FindingQueries(3, 16, 4).eval(), torch.randn(16)
    answers = []
    for count in (10, 1000):
        tokens_1ND = token_D.expand(1, count, 16)
        weights_1N = torch.ones(1, count)
        assert torch.allclose(masked_mean(tokens_1ND, weights_1N)[0], token_D, atol=1e-5)
        answers.append(queries(tokens_1ND, weights_1N)[0])
    assert torch.allclose(*answers, atol=1e-5)
