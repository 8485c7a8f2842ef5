"""The released EVA code's numbers on tiny networks: values to 1e-5, gradients to 1e-4."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unveil.config import ViTConfig
from unveil.models.vit import ViT
from unveil.weights.openai_clip import openai_from_tower, tower_from_openai

GOLDEN = Path(__file__).parents[1] / "golden"
TRUNK = ViTConfig(image_size=56, patch_size=14, width=48, depth=3, heads=4, mlp_width=192)


def load(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def part(golden: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{kind}/"): value for key, value in golden.items() if key.startswith(f"{kind}/")}


class MaskedNetwork(nn.Module):
    """Trunk and head with the released parameter names."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = ViT(TRUNK, mask_token=True)
        self.lm_head = nn.Linear(48, 24)

    def released(self) -> dict[str, nn.Parameter]:
        return {name.removeprefix("trunk."): value for name, value in self.named_parameters()}

    def fill(self, weights: dict[str, Tensor]) -> None:
        assert self.released().keys() == weights.keys()
        self.load_state_dict({(k if k.startswith("lm_head") else f"trunk.{k}"): v for k, v in weights.items()})

    def forward(self, golden: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        features = self.trunk(golden["image"], golden["mask"])
        hidden = self.lm_head(features.patches[golden["mask"]])
        loss = -F.cosine_similarity(hidden, golden["target"][golden["mask"]], dim=-1).mean()
        return torch.cat((features.cls[:, None], features.patches), dim=1), hidden, loss


@pytest.fixture
def masked() -> tuple[MaskedNetwork, dict[str, Tensor]]:
    golden = load("eva_masked_modelling_tiny")
    network = MaskedNetwork()
    network.fill(part(golden, "weight"))
    return network, golden


def test_masked_modelling_values_and_every_gradient(masked: tuple[MaskedNetwork, dict[str, Tensor]]) -> None:
    network, golden = masked
    features, hidden, loss = network(golden)
    torch.testing.assert_close(features, golden["features"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hidden, golden["output_hidden"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, golden["loss"], atol=1e-5, rtol=1e-5)
    loss.backward()
    expected = part(golden, "grad")
    assert expected.keys() == network.released().keys()
    for name, parameter in network.released().items():
        torch.testing.assert_close(
            parameter.grad, expected[name], atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_three_adamw_steps_with_the_weight_decay_exclusions(masked: tuple[MaskedNetwork, dict[str, Tensor]]) -> None:
    network, golden = masked
    spared = network.trunk.no_weight_decay()
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in network.released().items():
        groups[parameter.ndim > 1 and name not in spared].append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": 0.05}, {"params": groups[False], "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = network(golden)[2]
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 3.0)
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, golden["adamw_losses"], atol=1e-5)
    for name, expected in part(golden, "weight_after_3").items():
        torch.testing.assert_close(network.released()[name].data, expected, atol=1e-5, rtol=1e-4)


def test_clip_teacher_patch_features_and_the_way_back() -> None:
    golden = load("clip_teacher_tiny")
    weights = part(golden, "weight")
    tower = tower_from_openai(weights, activation="quick_gelu")
    vit = ViT(tower.config)
    vit.load_state_dict(tower.state)
    features = vit(golden["image"]).patches @ tower.projection
    torch.testing.assert_close(features, golden["patch_features"], atol=1e-5, rtol=1e-5)
    back = openai_from_tower(vit.state_dict(), tower.projection)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_classifier_on_mean_pooled_patches() -> None:
    golden = load("eva_classifier_tiny")
    weights = part(golden, "weight")
    trunk, norm, head = ViT(TRUNK, final_norm=False), nn.LayerNorm(48, eps=1e-6), nn.Linear(48, 5)
    names = {f"fc_norm.{name}": p for name, p in norm.named_parameters()}
    names |= {f"head.{name}": p for name, p in head.named_parameters()} | dict(trunk.named_parameters())
    assert names.keys() == weights.keys()
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(weights[name])
    logits = head(norm(trunk(golden["image"]).patches.mean(dim=1)))
    loss = F.cross_entropy(logits, golden["label"])
    torch.testing.assert_close(logits, golden["logits"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, golden["loss"], atol=1e-5, rtol=1e-5)
    loss.backward()
    for name, expected in part(golden, "grad").items():
        torch.testing.assert_close(names[name].grad, expected, atol=1e-6, rtol=1e-4)
