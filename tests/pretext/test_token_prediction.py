"""Predicting codes: the loss by hand, both heads, where gradients go, the frozen tokeniser and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.pretext.tokenizers import OBJECTIVE, TINY, samples, save_tokenizer, tokenizer_of
from unveil.config import MaskedTokenPrediction, PatchAggregation, UnveilError, ViTConfig
from unveil.data.normalization import normalize
from unveil.engine import Task
from unveil.models.vit import ViT
from unveil.pretext.masked_modelling import pad_hidden
from unveil.pretext.targets.codes import FrozenTokenizer, load_tokenizer
from unveil.pretext.targets.inference import fast_precision
from unveil.pretext.token_prediction import Aggregation, TokenPrediction

LIMIT = 9
TWO_HEADS = PatchAggregation(after_block=2, depth=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> FrozenTokenizer:
    return load_tokenizer(str(save_tokenizer(tmp_path_factory.mktemp("vqkd") / "run")))


def task_of(
    tokenizer: FrozenTokenizer, aggregation: PatchAggregation | None = None, config: ViTConfig = TINY
) -> TokenPrediction:
    torch.manual_seed(4)
    return TokenPrediction(
        ViT(config, mask_token=True),
        tokenizer,
        seed=0,
        normalization="clip",
        objective=MaskedTokenPrediction(tokenizer=tokenizer.name, aggregation=aggregation),
    )


def batch_of(count: int = 4, first: int = 0) -> dict[str, Any]:
    """Uneven numbers of hidden patches: 2, 4, 6, ... of 16."""
    generator = torch.Generator().manual_seed(7)
    mask = torch.zeros(first + count, 16, dtype=torch.bool)
    for row in range(first + count):
        mask[row, torch.randperm(16, generator=generator)[: 2 + 2 * (row % 4)]] = True
    hidden, weight = pad_hidden(mask[first:], LIMIT)
    return samples(range(first, first + count)) | {"mask": mask[first:], "hidden": hidden, "hidden_weight": weight}


def by_hand(task: TokenPrediction, batch: dict[str, Any], mask: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and rightness of the first head at each hidden patch, by boolean indexing."""
    logits = task.head(task.backbone(normalize(batch["image"], "clip"), mask).patches[mask])
    codes = task.target(batch["image"])[mask]
    losses = logits.exp().sum(1).log() - logits[torch.arange(len(codes)), codes]
    return losses, logits.argmax(1) == codes


def test_forward_is_the_cross_entropy_at_all_hidden_patches(tokenizer: FrozenTokenizer) -> None:
    task, batch = task_of(tokenizer), batch_of()
    losses, right = by_hand(task, batch, batch["mask"])
    found = task(batch)
    assert found.keys() == {"loss", "code_accuracy"}
    assert found["loss"][1].item() == found["code_accuracy"][1].item() == len(losses) == 20
    torch.testing.assert_close(found["loss"][0], losses.sum(), atol=1e-4, rtol=1e-5)
    assert found["code_accuracy"][0].item() == right.sum().item()
    parts = [task(batch_of(1))["loss"][0], task(batch_of(3, first=1))["loss"][0]]
    torch.testing.assert_close(parts[0] + parts[1], found["loss"][0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("aggregation", [None, TWO_HEADS])
def test_gradients_by_finite_differences(tokenizer: FrozenTokenizer, aggregation: PatchAggregation | None) -> None:
    task, batch = task_of(tokenizer, aggregation, replace(TINY, relative_positions="shared")), batch_of()
    loss, count = task(batch)["loss"]
    (loss / count).backward()
    parameters = list(task.parameters())
    assert all(parameter.grad is not None for parameter in parameters)
    torch.manual_seed(5)
    direction = [torch.randn_like(parameter) * 0.1 for parameter in parameters]
    slope = sum((parameter.grad * step).sum().item() for parameter, step in zip(parameters, direction, strict=True))
    ends = []
    with torch.no_grad():
        for sign in (1.0, -2.0):
            torch._foreach_add_(parameters, direction, alpha=sign * 2e-3)
            ends.append((task(batch)["loss"][0] / count).item())
    assert slope == pytest.approx((ends[0] - ends[1]) / 4e-3, rel=0.03)
    assert abs(slope) > 1e-2


def test_the_tokeniser_sees_the_whole_image_and_learns_nothing(tokenizer: FrozenTokenizer) -> None:
    task, batch = task_of(tokenizer), batch_of()
    assert isinstance(task, Task)
    assert {name.split(".")[0] for name in task.state_dict()} == {"backbone", "head"}
    assert torch.equal(task.codes(batch), task.codes(batch | {"mask": ~batch["mask"]}))
    own_view = batch | {"teacher_image": 255 - batch["image"]}
    assert torch.equal(task.codes(own_view), tokenizer(255 - batch["image"]))
    task(batch)["loss"][0].backward()
    assert all(parameter.grad is None for parameter in tokenizer._backbone.parameters())


def test_codes_of_some_patches_are_those_of_all(tokenizer: FrozenTokenizer) -> None:
    batch = batch_of()
    everywhere, told = tokenizer(batch["image"]), tokenizer(batch["image"], batch["hidden"])
    assert told.tolist() == [row[numbers].tolist() for row, numbers in zip(everywhere, batch["hidden"], strict=True)]


def test_frozen_codes_are_those_of_the_run(tokenizer: FrozenTokenizer) -> None:
    task, batch = tokenizer_of().eval(), samples(range(6))
    # Computed as it computes: a code that is nearest by little is another one in another precision, or for autograd.
    precision = fast_precision(torch.device("cpu"))
    with torch.inference_mode(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
        found = task._found(batch).taken
    assert torch.equal(tokenizer(batch["image"]), found)
    assert (tokenizer.codes, tokenizer.grid, tokenizer.image_size) == (OBJECTIVE.codes, (4, 4), 16)


def test_evaluation_by_hand_on_the_stripes(tokenizer: FrozenTokenizer) -> None:
    task, batch = task_of(tokenizer, TWO_HEADS).eval(), batch_of()
    batch["valid"] = torch.tensor([True, True, False, True])
    mask = torch.zeros(4, 16, dtype=torch.bool)
    mask[:, 0::2] = True
    losses, right = (value.view(4, 8)[[0, 1, 3]].float() for value in by_hand(task, batch, mask))
    metrics = task.compute(task.evaluate(batch))
    assert metrics["loss"] == pytest.approx(losses.mean().item(), abs=1e-4)
    assert metrics["code_accuracy"] == pytest.approx(right.mean().item(), abs=1e-6)


def test_the_second_head_by_hand(tokenizer: FrozenTokenizer) -> None:
    """Its blocks see the last cls token and the patches of block 2; norm and classifier are the first head's."""
    task, batch = task_of(tokenizer, TWO_HEADS), batch_of()
    first, _ = by_hand(task, batch, batch["mask"])
    found = task.backbone(normalize(batch["image"], "clip"), batch["mask"], need=("blocks.1", "blocks.2"))
    x = torch.cat((found.intermediates[2][:, :1], found.intermediates[1][:, 1:]), dim=1)
    assert task.aggregation is not None
    for block in task.aggregation.blocks:
        x = block(x)
    logits = task.head(task.backbone.norm(x)[:, 1:][batch["mask"]])
    codes = task.target(batch["image"])[batch["mask"]]
    second = logits.logsumexp(1) - logits[torch.arange(20), codes]
    sums = task(batch)
    torch.testing.assert_close(sums["aggregation_loss"][0], second.sum(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(sums["loss"][0], first.sum() + second.sum(), atol=1e-4, rtol=1e-5)


def test_the_second_head_s_blocks_are_made_as_the_backbone_s_of_their_number() -> None:
    config = replace(TINY, width=64, depth=6, drop_path=0.5)
    torch.manual_seed(0)
    blocks = Aggregation(config, PatchAggregation(after_block=4, depth=3)).blocks
    backbone = ViT(config)
    assert [block.drop_path for block in blocks] == pytest.approx([0.5 * number / 6 for number in (4, 5, 6)])
    for number, block in zip((4, 5), blocks, strict=False):
        for name in ("attn.proj.weight", "mlp.fc2.weight", "attn.qkv.weight"):
            ours, theirs = block.get_parameter(name), backbone.blocks[number].get_parameter(name)
            assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.1)


def test_drop_path_of_both_heads_depends_on_the_sample_alone(tokenizer: FrozenTokenizer) -> None:
    task = task_of(tokenizer, TWO_HEADS, replace(TINY, drop_path=0.6))
    whole = task(batch_of())["loss"][0]
    parts = [task(batch_of(1))["loss"][0], task(batch_of(3, first=1))["loss"][0]]
    torch.testing.assert_close(parts[0] + parts[1], whole, atol=1e-4, rtol=1e-5)
    later = batch_of()
    assert not torch.isclose(task(later | {"sample_numbers": later["sample_numbers"] + 4})["loss"][0], whole)


def test_layer_groups_hold_every_parameter_once(tokenizer: FrozenTokenizer) -> None:
    task = task_of(tokenizer, TWO_HEADS)
    listed = [name for group in task.layer_groups() for name, _ in group]
    assert sorted(listed) == sorted(name for name, _ in task.named_parameters())
    assert task.no_weight_decay() == {"backbone.pos_embed", "backbone.cls_token"}


def test_what_is_refused(tokenizer: FrozenTokenizer, tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match=r"codes for 4 x 4 patches, the network 8 x 8; train another tokeniser"):
        task_of(tokenizer, config=replace(TINY, patch_size=2))
    with pytest.raises(UnveilError, match=r"after_block is 3, which must be less than the network's 3 blocks"):
        task_of(tokenizer, PatchAggregation(after_block=3))
    with pytest.raises(UnveilError, match=r"no tokeniser at runs/none; train one \(unveil pretrain IMAGES --recipe vq"):
        load_tokenizer("runs/none")
    run = save_tokenizer(tmp_path / "run")
    said = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(said | {"objective": {"kind": "MaskedRegression"}}))
    with pytest.raises(UnveilError, match="trained no tokeniser \\(its objective is MaskedRegression\\)"):
        load_tokenizer(str(run))
    said["model"]["width"] = 32
    (run / "config.json").write_text(json.dumps(said))
    with pytest.raises(UnveilError, match="does not fit the run's config.json"):
        load_tokenizer(str(run))
    (run / "config.json").unlink()
    with pytest.raises(UnveilError, match="cannot be read .* give the folder of its run"):
        load_tokenizer(str(run))
