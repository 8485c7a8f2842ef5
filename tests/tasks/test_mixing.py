"""Mixup and CutMix: timm's, drawn from the step, the same however a global batch is split."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor

from unveil.config import AugmentationConfig, ViTConfig
from unveil.data.order import step_seed
from unveil.models.vit import ViT
from unveil.tasks.classification.mixing import Mixing
from unveil.tasks.classification.task import Classification

CLASSES = ("a", "b", "c", "d", "e")
BOTH = AugmentationConfig(mixup=0.8, cutmix=1.0)


def mixing_of(config: AugmentationConfig = BOTH, *, smoothing: float = 0.1, seed: int = 3) -> Mixing:
    return Mixing(config, classes=5, label_smoothing=smoothing, seed=seed)


def batch_of(count: int = 8, size: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, size, size, generator=generator), torch.arange(count) % 5


def mixed(mixing: Mixing, step: int) -> tuple[Tensor, Tensor]:
    images, labels = batch_of()
    return mixing(images.clone(), labels, step)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (BOTH, {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}),
        (AugmentationConfig(mixup=0.4), {"mixup_alpha": 0.4}),
        (
            AugmentationConfig(cutmix=1.0, mix_probability=0.5),
            {"mixup_alpha": 0.0, "cutmix_alpha": 1.0, "prob": 0.5},
        ),
        (
            AugmentationConfig(mixup=0.2, cutmix=0.3, switch_probability=0.9),
            {"mixup_alpha": 0.2, "cutmix_alpha": 0.3, "switch_prob": 0.9},
        ),
    ],
    ids=["both", "mixup", "cutmix, now and then", "mostly cutmix"],
)
def test_equals_timm_on_the_same_draws(
    config: AugmentationConfig, settings: dict[str, float], smoothing: float
) -> None:
    theirs = Mixup(label_smoothing=smoothing, num_classes=5, **settings)
    for step in range(12):
        images, labels = batch_of()
        key = step_seed(3, step)
        np.random.seed([key & 0xFFFFFFFF, key >> 32])
        wanted = theirs(images.clone(), labels)
        found = mixed(mixing_of(config, smoothing=smoothing), step)
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
        torch.testing.assert_close(found[1].sum(1), torch.ones(8))


def test_shares_of_pixels_are_shares_of_labels() -> None:
    """Also where the box of CutMix is cut off at the border."""
    kinds = set()
    for step in range(40):
        images = torch.zeros(4, 3, 20, 20)
        images[:2] = 1.0
        found, shares = mixing_of(smoothing=0.0)(images, torch.tensor([0, 0, 1, 1]), step)
        torch.testing.assert_close(found[:2].mean(dim=(1, 2, 3)), shares[:2, 0])
        torch.testing.assert_close(found[2:].mean(dim=(1, 2, 3)), shares[2:, 0])
        kinds.add(found.unique().tolist() == [0.0, 1.0])
    assert kinds == {True, False}


def test_draws_depend_on_seed_and_step_and_disturb_nobody() -> None:
    random.seed(0)
    np.random.seed(0)
    undisturbed = random.random(), np.random.rand()
    random.seed(0)
    np.random.seed(0)
    one = mixed(mixing_of(), 7)
    assert (random.random(), np.random.rand()) == undisturbed
    np.random.seed(9)
    again = mixed(mixing_of(), 7)
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1])
    assert not torch.equal(one[0], mixed(mixing_of(), 8)[0])
    assert not torch.equal(one[0], mixed(mixing_of(seed=4), 7)[0])


def task_of(mixing: Mixing | None, *, smoothing: float = 0.1) -> Classification:
    torch.manual_seed(2)
    sizes: dict[str, Any] = {"image_size": 28, "patch_size": 14, "width": 32, "depth": 2, "heads": 2, "mlp_width": 64}
    return Classification(
        ViT(ViTConfig(**sizes, drop_path=0.3), final_norm=False),
        CLASSES,
        seed=3,
        normalization="clip",
        label_smoothing=smoothing,
        head_init_scale=1.0,
        mixing=mixing,
    ).double()


def bytes_of(count: int = 8) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randint(0, 256, (count, 3, 28, 28), generator=generator, dtype=torch.uint8),
        "label": torch.arange(count) % 5,
        "valid": torch.ones(count, dtype=torch.bool),
        "sample_numbers": torch.arange(count) + 5 * count,
        "step": 5,
    }


def rows_of(batch: dict[str, Any], places: list[int]) -> dict[str, Any]:
    return {name: value[places] if isinstance(value, Tensor) else value for name, value in batch.items()}


class Doubled(torch.nn.Module):
    """float64, so that sums of parts can be compared closely."""

    def __init__(self, mixing: Mixing) -> None:
        super().__init__()
        self.mixing = mixing

    def forward(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        images, shares = self.mixing(images, labels, step)
        return images.double(), shares.double()


def test_a_step_is_the_same_however_its_batch_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    for config in (AugmentationConfig(mixup=0.8), AugmentationConfig(cutmix=1.0)):
        gradients, losses = [], []
        for layout in ([[0, 1, 2, 3, 4, 5, 6, 7]], [[0, 1, 6, 7], [2, 3, 4, 5]], [[2, 5], [0, 7], [3, 4], [1, 6]]):
            task = task_of(None)
            task.mixing = Doubled(mixing_of(config))  # type: ignore[assignment]
            parts = [task(rows_of(bytes_of(), places)) for places in layout]
            assert all(part.keys() == {"loss"} for part in parts)
            loss = sum(part["loss"][0] for part in parts)
            loss.backward()
            losses.append(loss.item())
            gradients.append([parameter.grad for parameter in task.parameters()])
            assert sum(part["loss"][1].item() for part in parts) == 8
        assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
        for one, *others in zip(*gradients, strict=True):
            for other in others:
                torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)


def test_the_loss_is_timm_s_and_evaluation_mixes_nothing() -> None:
    batch, mixing = bytes_of(), mixing_of(AugmentationConfig(mixup=0.8))
    task = task_of(None).float()
    plain = task_of(mixing).float()
    plain.load_state_dict(task.state_dict())
    assert torch.equal(task.eval()(batch)["loss"][0], plain.eval()(batch)["loss"][0])
    seen, logits = [], plain.logits
    plain.train().logits = lambda images, noise: seen.append(logits(images, noise)) or seen[-1]  # type: ignore
    loss, count = plain(batch)["loss"]
    _, shares = mixing(torch.zeros(8, 3, 28, 28), batch["label"], 5)
    torch.testing.assert_close(loss / count, SoftTargetCrossEntropy()(seen[0], shares))
