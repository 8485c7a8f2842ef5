"""Tiny networks of timm with random weights: the same outputs and gradients, through the loader."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from unveil.config import ViTConfig
from unveil.models.vit import ViT
from unveil.weights.load import load_backbone

SIZES = {
    "img_size": 28,
    "patch_size": 7,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 4,
    "num_classes": 0,
    "global_pool": "",
}


def shaken(network: nn.Module) -> nn.Module:
    """Every parameter away from its special starting value, so that each one matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network.eval()


def ours(**changes: object) -> ViT:
    return ViT(
        ViTConfig(
            **({"image_size": 28, "patch_size": 7, "width": 48, "depth": 2, "heads": 4, "mlp_width": 192} | changes)
        )
    )


CASES = {
    "eva": (lambda: Eva(**SIZES, mlp_ratio=4), {}),
    "eva_layer_scale": (lambda: Eva(**SIZES, mlp_ratio=4, init_values=0.5), {"layer_scale": 0.5}),
    "vit": (lambda: VisionTransformer(**SIZES), {"qkv_bias": "all"}),
    "vit_without_qkv_bias": (lambda: VisionTransformer(**SIZES, qkv_bias=False), {"qkv_bias": "none"}),
    "vit_layer_scale": (lambda: VisionTransformer(**SIZES, init_values=0.5), {"qkv_bias": "all", "layer_scale": 0.5}),
    "vit_norm_before": (
        lambda: VisionTransformer(**SIZES, pre_norm=True, norm_layer=partial(nn.LayerNorm, eps=1e-5)),
        {"qkv_bias": "all", "norm_before_blocks": True, "patch_bias": False, "norm_epsilon": 1e-5},
    ),
    "joint_biases_into_separate": (lambda: VisionTransformer(**SIZES), {}),
    "separate_biases_into_joint": (lambda: Eva(**SIZES, mlp_ratio=4), {"qkv_bias": "all"}),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients(case: str, tmp_path: Path) -> None:
    build, changes = CASES[case]
    theirs, vit = shaken(build()), ours(**changes)
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    report = load_backbone(vit, tmp_path / "timm.safetensors")
    assert not report.missing and not report.unexpected
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(2, 17, 48, generator=torch.Generator().manual_seed(2))
    features = vit(images)
    tokens = torch.cat((features.cls[:, None], features.patches), dim=1)
    expected = theirs.forward_features(images)
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)
    (tokens * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in vit.named_parameters():
        their_name = name.replace("gamma_", "ls") + ".gamma" if "gamma" in name and "vit" in case else name
        if their_name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[their_name], atol=1e-4, rtol=1e-4)
        else:
            assert name.endswith(("q_bias", "v_bias", "qkv.bias"))
    assert len(gradients) == len(list(vit.parameters())) or "biases" in case


def test_attention_map_is_timms_softmax() -> None:
    """timm's unfused attention multiplies values with the map that ours reports."""
    theirs, vit = shaken(VisionTransformer(**SIZES)), ours(qkv_bias="all")
    vit.load_state_dict(theirs.state_dict())
    attention = theirs.blocks[1].attn
    attention.fused_attn = False
    seen = []
    attention.attn_drop.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.randn(2, 3, 28, 28)
    theirs.forward_features(images)
    torch.testing.assert_close(vit(images, need=("blocks.1.attn",)).attention[1], seen[0], atol=1e-5, rtol=1e-5)
