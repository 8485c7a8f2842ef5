"""Whole CLIPs of open_clip's and EVA's design, small and random, as their own libraries make them."""

from typing import Any

import torch
from open_clip.model import CLIP, CustomTextCLIP
from timm.models.eva import Eva
from torch import Tensor, nn

TEXT: dict[str, Any] = {"context_length": 12, "vocab_size": 60, "width": 128, "heads": 2, "layers": 2}
VISION: dict[str, Any] = {"image_size": 28, "patch_size": 7, "width": 128, "head_width": 64, "layers": 2}


def shaken(network: nn.Module) -> nn.Module:
    """Every parameter away from its special starting value, so that each one matters; the temperature a little."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return network.eval()


def plain(*, quick_gelu: bool = False) -> nn.Module:
    """In OpenAI's layout."""
    torch.manual_seed(0)
    return shaken(CLIP(embed_dim=12, vision_cfg=VISION, text_cfg=TEXT, quick_gelu=quick_gelu))


def with_trunk() -> nn.Module:
    """In the layout of open_clip's EVA01-g-14: a network of timm's whose head is the projection."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None}
    network: Any = CustomTextCLIP(embed_dim=12, vision_cfg=vision, text_cfg=TEXT)
    # Its configuration has no place for sizes.
    network.visual.trunk = Eva(
        img_size=28, patch_size=7, embed_dim=128, depth=2, num_heads=2, num_classes=12, global_pool="token"
    )
    return shaken(network)


def eva_clip() -> dict[str, Tensor]:
    """The state dict that EVA-CLIP was released as, of the same numbers as `with_trunk`."""
    state = {}
    for name, value in with_trunk().state_dict().items():
        if name == "logit_scale":
            state["text.logit_scale"] = value
        else:
            state[name.replace("visual.trunk.", "visual.")] = value
    return state


def openais() -> dict[str, Tensor]:
    """What OpenAI released: half precision, with three numbers beside the weights."""
    state = {name: value.half() for name, value in plain(quick_gelu=True).state_dict().items()}
    marks = {"input_resolution": 28, "context_length": 12, "vocab_size": 60}
    return state | {name: torch.tensor(number) for name, number in marks.items()}


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def tokens(count: int = 4) -> Tensor:
    """Texts of different lengths; 59, the highest number, ends each."""
    generator = torch.Generator().manual_seed(2)
    texts = torch.randint(1, 58, (count, 12), generator=generator)
    for row in range(count):
        texts[row, 3 + 2 * row] = 59
        texts[row, 4 + 2 * row :] = 0
    return texts
