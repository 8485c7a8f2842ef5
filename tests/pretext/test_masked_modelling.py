"""The task of masked modelling: the released code's numbers, sums and counts, randomness, cached targets."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from unveil.config import AdamWConfig, ViTConfig
from unveil.data.sources.base import Sample
from unveil.engine import Task, build_optimizer
from unveil.models.vit import ViT
from unveil.pretext.masked_modelling import MaskedModelling, pad_hidden, stripe_mask
from unveil.pretext.targets.base import Target
from unveil.pretext.targets.cache import TargetCache

GOLDEN = Path(__file__).parents[1] / "golden" / "eva_masked_modelling_tiny.npz"
TINY = ViTConfig(image_size=56, patch_size=14, width=48, depth=3, heads=4, mlp_width=192)
LIMIT = 9
"""More than any of the golden masks hides, so that there is padding."""


class PatchColours:
    """A frozen teacher that can be computed by hand: a fixed map of each patch's mean colour. Counts its calls."""

    name, dim, grid, image_size = "patch colours", 24, (4, 4), 56

    def __init__(self) -> None:
        self.map = nn.Linear(3, 24, bias=False)
        nn.init.normal_(self.map.weight, generator=torch.Generator().manual_seed(1))
        self.calls = 0

    def to(self, place: torch.device | str) -> "PatchColours":
        self.map.to(place)
        return self

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += 1
        side = images.shape[2] // 4
        return self.map(F.avg_pool2d(images.float() - 128, side).flatten(2).transpose(1, 2) / 64)


def task_of(config: ViTConfig = TINY, *, seed: int = 0, target: Target | None = None) -> MaskedModelling:
    torch.manual_seed(3)
    task = MaskedModelling(ViT(config, mask_token=True), target or PatchColours(), seed=seed, normalization="clip")
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return task


def batch_of(count: int = 4, *, limit: int = LIMIT) -> dict[str, Any]:
    """Uneven numbers of hidden patches: 2, 4, 6, ... of 16."""
    generator = torch.Generator().manual_seed(7)
    mask = torch.zeros(count, 16, dtype=torch.bool)
    for row in range(count):
        mask[row, torch.randperm(16, generator=generator)[: 2 + 2 * (row % 4)]] = True
    hidden, weight = pad_hidden(mask, limit)
    return {
        "image": torch.randint(0, 256, (count, 3, 56, 56), generator=generator, dtype=torch.uint8),
        "mask": mask,
        "hidden": hidden,
        "hidden_weight": weight,
        "flipped": torch.zeros(count, dtype=torch.bool),
        "sample_numbers": torch.arange(100, 100 + count),
        "indices": torch.arange(count),
        "valid": torch.ones(count, dtype=torch.bool),
        "names": [str(row) for row in range(count)],
    }


def rows_of(batch: dict[str, Any], places: list[int]) -> dict[str, Any]:
    return {
        name: value[places] if isinstance(value, Tensor) else [value[place] for place in places]
        for name, value in batch.items()
    }


def by_hand(task: MaskedModelling, batch: dict[str, Any], mask: Tensor) -> Tensor:
    """The loss of each hidden patch, by boolean indexing over the batch."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    predictions = task.head(task.backbone((batch["image"] / 255 - mean) / std, mask).patches[mask])
    targets = PatchColours()(batch["image"])[mask].detach()
    return -(predictions * targets).sum(1) / predictions.norm(dim=1) / targets.norm(dim=1)


@pytest.fixture
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture
def released(golden: dict[str, Tensor]) -> MaskedModelling:
    task = task_of()
    task.load_state_dict({ours(name): value for name, value in golden.items() if name.startswith("weight/")})
    return task


def ours(name: str) -> str:
    """Our name of a released parameter."""
    _, _, bare = name.partition("/")
    return f"head.{bare.removeprefix('lm_head.')}" if bare.startswith("lm_head.") else f"backbone.{bare}"


def released_loss(task: MaskedModelling, golden: dict[str, Tensor]) -> Tensor:
    """As `forward` sums it; the golden images are normalised floats already, which `regress` takes."""
    hidden, weight = pad_hidden(golden["mask"], LIMIT)
    losses = task.regress(golden["image"], golden["mask"], hidden, at(golden["target"], hidden), None)
    return (losses * weight).sum() / weight.sum()


def test_predictions_loss_and_every_gradient(released: MaskedModelling, golden: dict[str, Tensor]) -> None:
    hidden, weight = pad_hidden(golden["mask"], LIMIT)
    predictions = released.predict_hidden(golden["image"], golden["mask"], hidden)
    torch.testing.assert_close(predictions[weight > 0], golden["output_hidden"], atol=1e-5, rtol=1e-5)
    loss = released_loss(released, golden)
    torch.testing.assert_close(loss, golden["loss"], atol=1e-5, rtol=1e-5)
    loss.backward()
    expected = {ours(name): value for name, value in golden.items() if name.startswith("grad/")}
    assert expected.keys() == dict(released.named_parameters()).keys()
    for name, parameter in released.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name], atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n} {m}"
        )


def test_three_adamw_steps_with_clipping(released: MaskedModelling, golden: dict[str, Tensor]) -> None:
    config = AdamWConfig(learning_rate=1e-3, betas=(0.9, 0.98), epsilon=1e-6, weight_decay=0.05)
    optimizer = build_optimizer(released, config)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = released_loss(released, golden)
        loss.backward()
        nn.utils.clip_grad_norm_(released.parameters(), 3.0)
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, golden["adamw_losses"], atol=1e-5)
    weights = released.state_dict()
    for name, value in golden.items():
        if name.startswith("weight_after_3/"):
            torch.testing.assert_close(
                weights[ours(name)], value, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n} {m}"
            )


def test_the_mask_token_is_decayed_positions_and_cls_are_not(released: MaskedModelling) -> None:
    """Released code: 3-dimensional and not on its list. Depth 3: 4 matrices a block, patch embedding, head, token."""
    groups = build_optimizer(released, AdamWConfig(weight_decay=0.05)).param_groups
    decayed = {name for group in groups if group["weight_decay"] for name in group["param_names"]}
    assert len(decayed) == 4 * 3 + 3 and "backbone.mask_token" in decayed
    assert not {"backbone.pos_embed", "backbone.cls_token"} & decayed


def test_forward_is_the_sum_over_all_hidden_patches() -> None:
    task, batch = task_of(), batch_of()
    losses = by_hand(task, batch, batch["mask"])
    total, count = task(batch)["loss"]
    assert count.item() == len(losses) == 2 + 4 + 6 + 8
    torch.testing.assert_close(total / count, losses.mean(), atol=1e-5, rtol=1e-5)
    means = torch.stack([part.mean() for part in losses.split(batch["mask"].sum(1).tolist())])
    assert abs(means.mean() - losses.mean()) > 1e-3, "these masks must tell the mean from the mean of means"


def test_micro_batches_add_up() -> None:
    task, batch = task_of(), batch_of()
    whole = task(batch)["loss"]
    parts = [task(rows_of(batch, places))["loss"] for places in ([0], [1, 2, 3])]
    for place in range(2):
        torch.testing.assert_close(parts[0][place] + parts[1][place], whole[place])


@pytest.mark.parametrize("limit", [8, 15])
def test_padding_changes_neither_loss_nor_gradient(limit: int) -> None:
    gradients = []
    for width in (LIMIT, limit):
        task = task_of()
        total, count = task(batch_of(limit=width))["loss"]
        (total / count).backward()
        gradients.append([total / count, *(parameter.grad for parameter in task.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-5)


def at(features: Tensor, hidden: Tensor) -> Tensor:
    return torch.stack([row[numbers] for row, numbers in zip(features, hidden, strict=True)])


def test_nothing_flows_from_patches_that_are_seen() -> None:
    task, batch = task_of(), batch_of()
    targets = torch.randn(4, 16, 24, requires_grad=True)
    images = torch.randn(4, 3, 56, 56)
    losses = task.regress(images, batch["mask"], batch["hidden"], at(targets, batch["hidden"]), None)
    (losses * batch["hidden_weight"]).sum().backward()
    assert (targets.grad[~batch["mask"]] == 0).all() and (targets.grad[batch["mask"]].norm(dim=1) > 0).all()


def test_pad_hidden() -> None:
    masks = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    hidden, weight = pad_hidden(masks, 3)
    assert hidden.tolist() == [[1, 3, 4], [0, 0, 0], [0, 0, 0]]
    assert weight.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]


def test_the_teacher_sees_its_own_view_whole() -> None:
    """Where there is a view of the teacher's resolution, targets come from it; the mask does not touch it."""
    task, batch = task_of(), batch_of()
    larger = batch | {"teacher_image": batch["image"].repeat_interleave(2, 2).repeat_interleave(2, 3)}
    torch.testing.assert_close(task.targets(larger), task.targets(batch))
    assert not torch.equal(task.targets(larger | {"teacher_image": 255 - batch["image"]}), task.targets(batch))
    assert torch.equal(task.targets(batch | {"mask": ~batch["mask"]}), task.targets(batch))
    assert not task.targets(batch).requires_grad


def test_the_teacher_is_no_part_of_the_network() -> None:
    task = task_of()
    assert isinstance(task, Task) and isinstance(task.target, Target)
    names = {*task.state_dict(), *(name for name, _ in task.named_parameters())}
    assert {name.split(".")[0] for name in names} == {"backbone", "head"}
    assert not {id(p) for p in task.parameters()} & {id(p) for p in PatchColours().map.parameters()}
    assert all(module is not task.target.map for module in task.modules())


def test_layer_groups_hold_every_parameter_once() -> None:
    task = task_of()
    listed = [name for group in task.layer_groups() for name, _ in group]
    assert sorted(listed) == sorted(name for name, _ in task.named_parameters())
    assert task.no_weight_decay() == {"backbone.pos_embed", "backbone.cls_token"}


def test_the_stripes_are_the_released_ones() -> None:
    assert torch.equal(stripe_mask(16, 16).view(16, 16)[:, ::2], torch.ones(16, 8, dtype=torch.bool))
    assert not stripe_mask(16, 16).view(16, 16)[:, 1::2].any()
    assert stripe_mask(3, 3).tolist() == [True, False] * 4 + [True]


def test_evaluation_by_hand() -> None:
    task, batch = task_of().eval(), batch_of()
    batch["valid"] = torch.tensor([True, True, False, True])
    mask = torch.zeros(4, 16, dtype=torch.bool)
    mask[:, 0::2] = True
    losses = by_hand(task, batch, mask).view(4, 8)[[0, 1, 3]]
    state = task.evaluate(batch)
    assert state["count"].item() == 24
    assert task.compute(state)["loss"] == pytest.approx(losses.mean().item(), abs=1e-5)
    parts = [task.evaluate(rows_of(batch, places)) for places in ([0, 1], [2, 3])]
    merged = {name: parts[0][name] + parts[1][name] for name in state}
    assert task.compute(merged)["loss"] == pytest.approx(task.compute(state)["loss"], abs=1e-6)
    assert not state["loss_sum"].requires_grad


DROPPING = ViTConfig(image_size=56, patch_size=14, width=48, depth=3, heads=4, mlp_width=192, drop_path=0.6)


def test_drop_path_depends_on_the_sample_and_not_on_the_batch() -> None:
    task, batch = task_of(DROPPING), batch_of()
    alone = [task(rows_of(batch, [place]))["loss"][0] for place in range(4)]
    pairs = [task(rows_of(batch, places))["loss"][0] for places in ([3, 0], [2, 1])]
    torch.testing.assert_close(pairs[0], alone[3] + alone[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pairs[1], alone[2] + alone[1], atol=1e-5, rtol=1e-5)


def test_drop_path_is_drawn_anew_for_each_sample_number_and_seed() -> None:
    batch = batch_of()
    total = task_of(DROPPING)(batch)["loss"][0]
    later = task_of(DROPPING)(batch | {"sample_numbers": batch["sample_numbers"] + 4})["loss"][0]
    seeded = task_of(DROPPING, seed=1)(batch)["loss"][0]
    assert not torch.isclose(total, later) and not torch.isclose(total, seeded)
    # The global generator has no part in it.
    torch.rand(5)
    assert torch.equal(task_of(DROPPING)(batch)["loss"][0], total)


def test_no_drop_path_in_evaluation() -> None:
    torch.testing.assert_close(task_of(DROPPING).eval()(batch_of())["loss"], task_of()(batch_of())["loss"])


class Pictures:
    """The batch's images as a source."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return Sample(Image.fromarray(self.images[index].permute(1, 2, 0).numpy()), str(index), None, index)

    def digest(self) -> dict[str, dict[str, Any]]:
        return {}


def test_cached_targets_are_used_in_training_only() -> None:
    task, batch = task_of(), batch_of()
    seen = batch["image"].clone()
    batch["flipped"] = torch.tensor([False, True, False, True])
    batch["image"][batch["flipped"]] = seen[batch["flipped"]].flip(3)
    live = task(batch)["loss"][0]
    task.cache = TargetCache(task.target, 4, flips=True, random_crops=False)
    task.cache.fill(
        Pictures(seen),
        lambda sample: torch.from_numpy(np.array(sample.image)).permute(2, 0, 1),
        "cpu",
        lambda done, total: None,
    )
    task.target.calls = 0
    # A sum of 20 cosines, each with features rounded to fp16 (a relative 2^-12).
    torch.testing.assert_close(task(batch)["loss"][0], live, atol=1e-3, rtol=0)
    assert task.target.calls == 0
    turned = task(batch | {"flipped": ~batch["flipped"]})["loss"][0]
    assert abs(turned - live) > 0.1
    shuffled = rows_of(batch, [2, 0, 3, 1])
    torch.testing.assert_close(task(shuffled)["loss"][0], live, atol=1e-3, rtol=0)
    task.eval()
    before = task.evaluate(batch)
    assert task.target.calls == 1
    task.cache = None
    torch.testing.assert_close(task.evaluate(batch), before)


def compare_compiled() -> None:
    results = []
    for compiled in (False, True):
        task = task_of(DROPPING)
        if compiled:
            task.compile_()
        total, count = task(batch_of())["loss"]
        (total / count).backward()
        results.append([total, *(parameter.grad for parameter in task.parameters())])
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler")
def test_compiled_gives_the_same_loss_and_gradients() -> None:
    """In a process of its own, since the shape checks that the tests switch on would be compiled too."""
    program = "import test_masked_modelling; test_masked_modelling.compare_compiled()"
    answer = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
