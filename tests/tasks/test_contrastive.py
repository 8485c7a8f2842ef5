"""The task: splits of a batch, locking, dropped patches, rates by tower, held-out scores."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.toy import CPU
from tests.tasks.toy_pairs import MODEL, ToyPairs, batch_of, config
from unveil.build import build_contrastive
from unveil.config import ContrastiveConfig, LAMBConfig, TowerOptimization, UnveilError
from unveil.data.sources.base import Source
from unveil.engine import Precision, Task, build_optimizer
from unveil.engine.optimizer import set_learning_rate
from unveil.engine.step import backpropagate
from unveil.engine.task import HasTowers, RelatesSamples
from unveil.tasks.contrastive.held_out import pair_scores
from unveil.tasks.contrastive.task import Contrastive


def gradients(task: Contrastive, splits: list[range], precision: str = "fp32") -> tuple[Tensor, dict[str, Tensor]]:
    """Sums of the losses, and the gradient of their mean, of the pairs in micro-batches."""
    how = Precision.of(precision, CPU.device)
    losses = backpropagate(
        task,
        task,
        [batch_of(split) for split in splits],
        divisor=sum(map(len, splits)),
        precision=how,
        scaler=how.gradient_scaler(500),
        parallel=CPU,
    )
    found = {name: parameter.grad.clone() for name, parameter in task.named_parameters() if parameter.grad is not None}
    task.zero_grad(set_to_none=True)
    return losses.totals, found


def test_it_is_what_the_engine_asks_for() -> None:
    task = build_contrastive(config())
    assert isinstance(task, Task) and isinstance(task, RelatesSamples) and isinstance(task, HasTowers)
    assert isinstance(ToyPairs(3), Source)


@pytest.mark.parametrize("local", [True, False])
def test_micro_batches_change_nothing(local: bool) -> None:
    """With paths and patches dropped; against plain automatic differentiation of the whole batch."""
    task = build_contrastive(config(local_loss=local))
    totals, whole = gradients(task, [range(8)])
    assert whole.keys() == dict(task.named_parameters()).keys()
    for size in (4, 2, 1):
        splits = [range(start, start + size) for start in range(0, 8, size)]
        found_totals, found = gradients(task, splits)
        torch.testing.assert_close(found_totals, totals, atol=1e-5, rtol=1e-5)
        for name, gradient in whole.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda text, n=name: n + text)


def test_micro_batches_in_half_precision_get_gradients_for_every_weight() -> None:
    """Weights that were cast without gradients must not be taken for those of the pass that has them."""
    task = build_contrastive(config())
    _, exact = gradients(task, [range(8)])
    _, found = gradients(task, [range(4), range(4, 8)], "bf16")
    for name, gradient in exact.items():
        assert (found[name] - gradient).norm() <= 0.1 * gradient.norm() + 1e-4, name


def test_the_reported_loss_is_open_clip_s() -> None:
    from open_clip.loss import ClipLoss

    task = build_contrastive(config()).eval()
    batch = batch_of(range(6))
    images, texts = task.features(batch)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(6))
    loss, count = task(batch)["loss"]
    torch.testing.assert_close(loss / count, ClipLoss()(images, texts, task.clip.logit_scale.exp()))


def test_what_is_dropped_depends_on_the_sample_alone() -> None:
    task = build_contrastive(config(patch_dropout=0.5))
    patches = MODEL.vision.grid[0] * MODEL.vision.grid[1]
    kept = task._kept_patches(torch.arange(6))
    assert kept is not None and kept.shape == (6, patches // 2)
    assert all(len(set(row)) == patches // 2 and min(row) >= 0 and max(row) < patches for row in kept.tolist())
    assert len({tuple(sorted(row)) for row in kept.tolist()}) > 1
    assert torch.equal(task._kept_patches(torch.tensor([4, 2])), kept[[4, 2]])
    task.eval()
    assert task._kept_patches(torch.arange(6)) is None and task._drop_path_noise(torch.arange(6)) is None


def test_every_patch_is_dropped_as_often() -> None:
    task = build_contrastive(config(patch_dropout=0.5))
    kept = task._kept_patches(torch.arange(4000))
    shares = kept.flatten().bincount(minlength=16) / 4000
    assert shares.min() > 0.46 and shares.max() < 0.54


@pytest.mark.parametrize(
    ("given", "frozen"),
    [
        ({"visual": TowerOptimization(locked="all")}, ("visual.", "visual_projection.")),
        ({"text": TowerOptimization(locked="all")}, ("text.",)),
        ({"visual": TowerOptimization(locked=2)}, ("visual.cls", "visual.pos", "visual.patch", "visual.blocks.0.")),
        ({"text": TowerOptimization(locked=1)}, ("text.token_embedding", "text.positional_embedding")),
    ],
)
def test_locked_layers_do_not_learn(given: dict[str, Any], frozen: tuple[str, ...]) -> None:
    task = build_contrastive(config(**given))
    expected = {name for name, _ in task.clip.named_parameters() if not name.startswith(frozen)}
    listed = [name.removeprefix("clip.") for layer in task.layer_groups() for name, _ in layer]
    assert sorted(listed) == sorted(expected)
    for splits in ([range(8)], [range(4), range(4, 8)]):
        _, found = gradients(task, splits)
        assert {name.removeprefix("clip.") for name in found} == expected
    build_optimizer(task, LAMBConfig())
    if given.get("visual") == TowerOptimization(locked="all"):
        assert task._kept_patches(torch.arange(2)) is None and task._drop_path_noise(torch.arange(2)) is None


def test_locking_more_than_there_is() -> None:
    with pytest.raises(UnveilError, match="image tower has 4 layers .* 4 locked ones leave none to learn; give fewer"):
        build_contrastive(config(visual=TowerOptimization(locked=4)))
    with pytest.raises(UnveilError, match="both towers are locked"):
        config(visual=TowerOptimization(locked="all"), text=TowerOptimization(locked="all"))


def test_rates_are_those_of_the_released_rule() -> None:
    """Embeddings are layer 0, blocks 1 to depth, the rest above, in each tower by itself; the temperature in none."""
    task = build_contrastive(
        config(
            visual=TowerOptimization(learning_rate=4e-4, layer_decay=0.85),
            text=TowerOptimization(learning_rate=4e-5, layer_decay=0.75),
        )
    )
    optimizer = build_optimizer(task, LAMBConfig(learning_rate=5e-4, weight_decay=0.05))
    set_learning_rate(optimizer, 5e-4)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    decay = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]}
    for name, rate in {
        "visual.pos_embed": 4e-4 * 0.85**3,
        "visual.blocks.0.attn.qkv.weight": 4e-4 * 0.85**2,
        "visual.blocks.1.mlp.fc2.bias": 4e-4 * 0.85,
        "visual.norm.weight": 4e-4,
        "visual_projection.weight": 4e-4,
        "text.token_embedding.weight": 4e-5 * 0.75**3,
        "text.blocks.1.attn.qkv.weight": 4e-5 * 0.75,
        "text.projection.weight": 4e-5,
        "logit_scale": 5e-4,
    }.items():
        assert rates[f"clip.{name}"] == pytest.approx(rate), name
    spared = {name.removeprefix("clip.") for name, value in decay.items() if value == 0.0}
    assert spared >= {"visual.pos_embed", "visual.cls_token", "text.positional_embedding", "logit_scale"}
    assert not spared & {"visual_projection.weight", "text.projection.weight", "text.token_embedding.weight"}


def test_held_out_scores_are_a_brute_force_count() -> None:
    generator = torch.Generator().manual_seed(3)
    images, texts = (torch.nn.functional.normalize(torch.randn(9, 4, generator=generator), dim=1) for _ in range(2))
    texts[5] = texts[2]
    captions = torch.tensor([0, 1, 2, 3, 4, 2, 6, 7, 8])
    scores = pair_scores(images, texts, captions, 7.0)
    found = {"image_to_text_r1": 0, "text_to_image_r1": 0}
    loss = 0.0
    for way, queries, keys in (("image_to_text_r1", images, texts), ("text_to_image_r1", texts, images)):
        for place, query in enumerate(queries.tolist()):
            logits = [7.0 * sum(a * b for a, b in zip(query, key, strict=True)) for key in keys.tolist()]
            best = max(range(9), key=lambda other: logits[other])
            found[way] += captions[best] == captions[place]
            loss += (math.log(sum(map(math.exp, logits))) - logits[place]) / 18
    assert scores["loss"] == pytest.approx(loss, rel=1e-5)
    assert {name: scores[name] for name in found} == {
        name: pytest.approx(int(hits) / 9) for name, hits in found.items()
    }


def test_evaluation_does_not_depend_on_its_batches() -> None:
    task = build_contrastive(config(), held_out=7).eval()
    every = batch_of(range(7))

    def scores(splits: list[list[int]]) -> dict[str, float]:
        """Of batches whose last rows may be padding, which repeats a pair."""
        state: dict[str, Tensor] = {}
        for rows in splits:
            chosen = [abs(row) for row in rows]
            batch = {name: value[chosen] for name, value in every.items() if isinstance(value, Tensor)}
            batch["valid"] = torch.tensor([row >= 0 for row in rows])
            state = {name: state.get(name, 0) + value for name, value in task.evaluate(batch).items()}
        return task.compute(state)

    whole = scores([[0, 1, 2, 3, 4, 5, 6]])
    assert whole.keys() == {"loss", "image_to_text_r1", "text_to_image_r1"}
    assert scores([[0, 1, 2], [3, 4, 5], [6, -6, -6]]) == pytest.approx(whole, abs=1e-5)
    images, texts = task.features(every)
    expected = pair_scores(images.detach(), texts.detach(), every["caption_id"], 1 / 0.07)
    assert whole == pytest.approx(expected, abs=1e-5)
    # A pair that could not be read is no pair.
    without = pair_scores(images[:6].detach(), texts[:6].detach(), every["caption_id"][:6], 1 / 0.07)
    assert scores([[0, 1, 2], [3, 4, 5], [-5, -5, -5]]) == pytest.approx(without, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"patch_dropout": 1.0}, r"patch_dropout 1.0 is not in \[0, 1\)"),
        ({"init_from": "a", "text_init": "b"}, "either the one or the others"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnveilError, match=sentence):
        config(**changes)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"learning_rate": -1.0}, "learning_rate of a tower is -1.0"),
        ({"weight_decay": -1.0}, "weight_decay of a tower is -1.0"),
        ({"layer_decay": 0.0}, "layer_decay of a tower is 0.0"),
        ({"locked": -1}, "give 0 or more, or all"),
    ],
)
def test_towers_that_cannot_be(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnveilError, match=sentence):
        TowerOptimization(**values)


def test_rates_of_towers_need_one_to_follow() -> None:
    with pytest.raises(UnveilError, match="rise and fall with optimization.optimizer.learning_rate, which is 0"):
        config(optimization={"optimizer": LAMBConfig(learning_rate=0.0)}, visual=TowerOptimization(learning_rate=1e-3))
    assert isinstance(config(optimization={"optimizer": LAMBConfig(learning_rate=0.0)}), ContrastiveConfig)
