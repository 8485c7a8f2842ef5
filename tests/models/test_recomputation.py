"""Activation checkpointing: the same gradients to the bit, and as much arithmetic done again as the setting says."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unveil.config import TextConfig, UnveilError, ViTConfig
from unveil.config.model import ActivationCheckpointing, recomputes
from unveil.models.vit import ViT

DEPTH = 4


def step(setting: ActivationCheckpointing, dtype: torch.dtype) -> tuple[list[torch.Tensor], int]:
    """Gradients of a step with drop path, and its operations in matrix products and attention."""
    torch.manual_seed(0)
    sizes = {"image_size": 28, "patch_size": 7, "width": 32, "depth": DEPTH, "heads": 2, "mlp_width": 64}
    vit = ViT(ViTConfig(**sizes, drop_path=0.3, activation_checkpointing=setting))
    images, noise = torch.randn(2, 3, 28, 28), torch.rand(2, DEPTH, 2)
    with FlopCounterMode(display=False) as counted:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = vit(images, drop_path_noise=noise).patches.float().square().sum()
        loss.backward()
    gradients = [parameter.grad for parameter in vit.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return gradients, counted.get_total_flops()  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_and_blocks_are_done_again(dtype: torch.dtype) -> None:
    expected, once = step(False, dtype)
    again = {}
    for setting in (True, 1, 2, 3, 9, "selective"):
        gradients, operations = step(setting, dtype)
        assert all(torch.equal(*pair) for pair in zip(gradients, expected, strict=True)), setting
        again[setting if setting is not True else "all"] = operations - once
    one = again[3]
    # The first block has no drop path, so nobody asks again for what its last layer answered.
    last_layer = 2 * (2 * 17) * 64 * 32
    assert again["all"] == again[1] == DEPTH * one - last_layer
    assert [again[2], again[9]] == [2 * one, 0]
    assert again["selective"] == 0, "neither matrix products nor attention"


def test_every_second_block_are_the_odd_ones() -> None:
    assert [recomputes(2, number) for number in range(4)] == [False, True, False, True]
    assert all(recomputes(setting, 0) for setting in (True, 1, "selective")) and not recomputes(False, 0)


@pytest.mark.parametrize("kind", [ViTConfig, TextConfig])
def test_no_such_period(kind: type) -> None:
    with pytest.raises(UnveilError, match="1 or more for every k-th"):
        kind(activation_checkpointing=0)
