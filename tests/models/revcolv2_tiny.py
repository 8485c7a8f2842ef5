"""A tiny RevColV2 whose every part does something: layer scales and gammas are drawn, not left at their start."""

import dataclasses

import torch
from torch import Tensor, nn

from unveil.config.revcolv2 import RevColV2Config
from unveil.models.randomness import keyed_uniform
from unveil.models.revcolv2 import Need, RevColV2

TINY = RevColV2Config(
    image_size=64,
    widths=(8, 12, 16, 20),
    layers=(1, 2, 2, 1),
    head_width=8,
    mlp_ratio=2,
    layer_scale=0.1,
    init_std=0.1,
)


def half_of_base(*, image_size: int = 224, mask_unit: int = 32, drop_path: float = 0.0) -> RevColV2Config:
    """As wide as half of base, two columns each way."""
    return RevColV2Config(
        image_size=image_size,
        mask_unit=mask_unit,
        patch_size=mask_unit // 8,
        widths=(48, 96, 256, 256),
        bottom_up_columns=2,
        top_down_columns=2,
        drop_path=drop_path,
    )


def tiny(
    *, seed: int = 0, mask_token: bool = False, reads: Need = "levels", least_gamma: float = 0.5, **changes: object
) -> RevColV2:
    """With gammas between `least_gamma` and that and a half, of either sign."""
    torch.manual_seed(seed)
    network = RevColV2(dataclasses.replace(TINY, **changes), mask_token=mask_token, reads=reads)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "gamma." in name and ".blocks." not in name:
                sign = torch.where(torch.rand_like(parameter) < 0.2, -1.0, 1.0)
                parameter.copy_(sign * (least_gamma + 0.5 * torch.rand_like(parameter)))
    return network


def noise_for(network: RevColV2, samples: int) -> Tensor:
    return keyed_uniform(0, torch.arange(samples), 2 * network.config.depth).view(samples, -1, 2)


def half_hidden(samples: int, units: int = 4) -> Tensor:
    """Other units of each sample."""
    generator = torch.Generator().manual_seed(3)
    order = torch.rand(samples, units, generator=generator).argsort(dim=1)
    return order < units // 2


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
