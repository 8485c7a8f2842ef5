"""VQ-KD: what gradients reach and that they are right, metrics by hand, what is saved."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.pretext.tokenizers import BATCH, OBJECTIVE, alone, samples, tokenizer_of
from unveil.data.normalization import normalize
from unveil.engine import Task
from unveil.pretext.tokenizer import TokenizerTraining, code_features


def loss_of(task: TokenizerTraining, batch: dict[str, Any]) -> Tensor:
    total, count = task(batch)["loss"]
    return total / count


def straight_through_loss(task: TokenizerTraining, batch: dict[str, Any], held: dict[str, Tensor]) -> Tensor:
    """The function whose gradient straight-through takes: the step from features to codes, and the codes that the
    features are pulled to, are constants."""
    features = code_features(task.backbone, task.code_head, normalize(batch["image"], "half"))
    decoded = task.feature_head(task.decoder((features + held["step"]).transpose(1, 2).unflatten(2, (4, 4))).patches)
    wanted = task.target(batch["image"])
    cosines = (decoded * wanted).sum(2) / decoded.norm(dim=2) / wanted.norm(dim=2)
    pulls = (features - held["codes"]).square().sum(dim=2) / OBJECTIVE.code_dim
    return (1 - cosines + pulls).mean()


@torch.no_grad()
def held_at(task: TokenizerTraining, batch: dict[str, Any]) -> dict[str, Tensor]:
    features = code_features(task.backbone, task.code_head, normalize(batch["image"], "half"))
    codes = task.codebook.codes[torch.cdist(features, task.codebook.codes[None]).argmin(dim=2)]
    return {"codes": codes, "step": codes - features}


@pytest.mark.parametrize("part", ["backbone", "code_head", "decoder", "feature_head"])
def test_gradients_by_finite_differences(part: str) -> None:
    """Along a random direction in the parameters of each part, with what straight-through holds held."""
    task, batch = tokenizer_of(), samples(range(4))
    held = held_at(task, batch)
    loss = loss_of(task, batch)
    torch.testing.assert_close(loss, straight_through_loss(task, batch, held), atol=1e-5, rtol=1e-5)
    loss.backward()
    parameters = list(getattr(task, part).parameters())
    torch.manual_seed(5)
    direction = [torch.randn_like(parameter) * parameter.std().nan_to_num(0.1) for parameter in parameters]
    slope = sum((parameter.grad * step).sum().item() for parameter, step in zip(parameters, direction, strict=True))
    ends = []
    size = 2e-3
    with torch.no_grad():
        for sign in (1.0, -2.0):
            torch._foreach_add_(parameters, direction, alpha=sign * size)
            ends.append(straight_through_loss(task, batch, held).item())
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * size), rel=0.03, abs=2e-4)
    assert abs(slope) > 1e-3, "a direction that nothing depends on would prove nothing"


def test_decoder_sees_codes_only_and_no_gradient_touches_them() -> None:
    task, batch = tokenizer_of(), samples(range(4))
    held = held_at(task, batch)
    seen: list[Tensor] = []
    task.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    before = task.codebook.codes.clone()
    loss_of(task, batch).backward()
    torch.testing.assert_close(seen[0].flatten(2).transpose(1, 2), held["codes"], atol=1e-6, rtol=1e-6)
    assert torch.equal(task.codebook.codes, before)
    assert not list(task.codebook.parameters()) and not task.codebook.codes.requires_grad
    assert all(parameter.grad is not None for parameter in task.parameters())


def test_commitment_pulls_the_encoder_only() -> None:
    """Two weights of the term: the decoder's gradients are the same, the encoder's are not."""
    gradients = []
    for weight in (0.0, 1.0):
        task = tokenizer_of()
        task.commitment = weight
        loss_of(task, samples(range(4))).backward()
        gradients.append({name: parameter.grad for name, parameter in task.named_parameters()})
    for name, first in gradients[0].items():
        same = torch.allclose(first, gradients[1][name], atol=1e-7, rtol=1e-5)
        assert same == name.startswith(("decoder.", "feature_head.")), name


def test_sums_counts_and_parts() -> None:
    task, batch = tokenizer_of(), samples(range(4))
    whole = task(batch)
    assert all(count.item() == 4 * 16 for _, count in whole.values())
    torch.testing.assert_close(whole["loss"][0], whole["reconstruction"][0] + whole["commitment"][0])
    parts = [task(samples(range(*ends)))["loss"][0] for ends in ((0, 1), (1, 4))]
    torch.testing.assert_close(parts[0] + parts[1], whole["loss"][0])


def test_evaluation_by_hand_leaves_padding_out_and_the_codebook_alone() -> None:
    task, batch = tokenizer_of().eval(), samples(range(4))
    batch["valid"] = torch.tensor([True, False, True, True])
    state = task.evaluate(batch)
    metrics = task.compute(state)
    real = {name: value[batch["valid"]] for name, value in batch.items() if isinstance(value, Tensor)}
    with torch.no_grad():
        loss = straight_through_loss(task, real, held_at(task, real))
        features = code_features(task.backbone, task.code_head, normalize(real["image"], "half"))
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
    taken = torch.cdist(features, task.codebook.codes[None]).argmin(dim=2).unique()
    assert metrics["codebook_use"] == pytest.approx(len(taken) / OBJECTIVE.codes)
    halves = [task.evaluate({n: v[part] for n, v in batch.items() if n != "names"}) for part in (slice(2), slice(2, 4))]
    merged = task.compute({name: halves[0][name] + halves[1][name] for name in state})
    assert merged == pytest.approx(metrics, abs=1e-6)
    assert task.codebook._sums == {}


def test_training_and_the_step_move_the_codes_and_the_state_holds_them() -> None:
    task = tokenizer_of()
    assert isinstance(task, Task)
    before = task.codebook.codes.clone()
    task(samples(range(2)))
    task(samples(range(2, 4)))
    assert torch.equal(task.codebook.codes, before)
    metrics = task.after_step(True, alone)
    assert not torch.equal(task.codebook.codes, before) and metrics["codebook_revived"] == OBJECTIVE.codes
    state = task.state_dict()
    assert {"codebook.codes", "codebook.usage"} == {name for name in state if name.startswith("codebook.")}
    other = tokenizer_of()
    other.load_state_dict(state)
    for each in (task, other):
        each(samples(range(BATCH, 2 * BATCH)))
        each.after_step(True, alone)
    assert torch.equal(task.codebook.codes, other.codebook.codes)


def test_every_parameter_is_in_one_group_and_the_teacher_in_none() -> None:
    task = tokenizer_of()
    listed = [name for group in task.layer_groups() for name, _ in group]
    assert sorted(listed) == sorted(name for name, _ in task.named_parameters())
    parts = {"backbone", "code_head", "decoder", "feature_head"}
    assert {name.split(".")[0] for name in listed} == parts
    spared = {"backbone.pos_embed", "backbone.cls_token", "decoder.pos_embed", "decoder.cls_token"}
    assert task.no_weight_decay() == spared
    assert not any(isinstance(module, nn.Dropout) for module in task.modules())


def test_half_precision_finds_the_codes_in_single() -> None:
    task, batch = tokenizer_of(), samples(range(4))
    with torch.autocast("cpu", torch.bfloat16):
        found = task._found(batch)
    assert found.features.dtype == found.patch_losses.dtype == found.commitments.dtype == torch.float32
    torch.testing.assert_close(found.features.norm(dim=2), torch.ones(4, 16))
    nearest = torch.cdist(found.features, task.codebook.codes[None]).argmin(dim=2)
    assert torch.equal(found.taken, nearest)
    assert F.cosine_similarity(found.features[0, 0], task.codebook.codes[found.taken[0, 0]], dim=0) > 0
