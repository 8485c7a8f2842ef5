"""Encoders that people ask for as teachers (tiny random networks of timm's kinds), and means of several layers."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F

from unveil.config import ClipTarget, TimmTarget, UnveilError, ViTConfig
from unveil.models.vit import ViT
from unveil.pretext.targets.clip import ClipTeacher
from unveil.pretext.targets.timm import TimmTeacher
from unveil.weights.openai_clip import ClipTower

PLAIN = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 3}

FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("vit_small_patch14_dinov2", SMALL),
    ("vit_small_patch14_reg4_dinov2", SMALL),
    ("vit_small_patch16_dinov3", SMALL),
    ("vit_base_patch16_siglip_224", SMALL),
    ("vit_base_patch16_siglip_gap_224", SMALL),
    ("vit_base_patch16_224.mae", SMALL),
    ("eva02_tiny_patch14_224", SMALL),
    ("beitv2_base_patch16_224", SMALL),
]


def network(name: str, **settings: object) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **settings).eval()


def images(side: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def pixels(side: int) -> torch.Tensor:
    return images(side) / 127.5 - 1.0


@pytest.mark.parametrize(("name", "settings"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_patch_features_of_each_family(name: str, settings: dict[str, Any]) -> None:
    """As timm's own call for feature maps gives them, final norm included; as many as the student has patches."""
    encoder = network(name, **settings)
    teacher = TimmTeacher(encoder, name=name, grid=(4, 4), precision=torch.float32, **PLAIN)
    side = 4 * encoder.feature_info[-1]["reduction"]
    assert (teacher.dim, teacher.image_size) == (48, side)
    with torch.no_grad():
        expected = encoder.forward_intermediates(
            pixels(side), indices=1, norm=True, intermediates_only=True, output_fmt="NLC"
        )[0]
        if isinstance(getattr(encoder, "fc_norm", None), torch.nn.LayerNorm):
            expected = encoder.fc_norm(expected)
    torch.testing.assert_close(teacher(images(side)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_mean_of_the_last_layers(name: str) -> None:
    """Each block's patches, taken by hooks, whitened, averaged."""
    encoder = network(name, **SMALL)
    teacher = TimmTeacher(encoder, name=name, grid=(4, 4), layers=2, precision=torch.float32, **PLAIN)
    seen: list[torch.Tensor] = []
    for block in encoder.blocks[-2:]:
        block.register_forward_hook(lambda module, given, found: seen.append(found))
    with torch.no_grad():
        encoder.forward_features(pixels(teacher.image_size))
    patches = [F.layer_norm(tokens[:, encoder.num_prefix_tokens :], (48,)) for tokens in seen]
    torch.testing.assert_close(teacher(images(teacher.image_size)), (patches[0] + patches[1]) / 2, atol=1e-4, rtol=1e-4)
    assert "mean of 2 layers" in teacher.name


def test_layers_of_a_convolutional_network_must_have_one_shape() -> None:
    with pytest.raises(UnveilError, match=r"not of one shape.*target\.layers"):
        TimmTeacher(network("convnext_atto"), name="convnext_atto", grid=(2, 2), layers=2, **PLAIN)
    with pytest.raises(UnveilError, match=r"has no 9 layers"):
        TimmTeacher(network("vit_tiny_patch16_224", **SMALL), name="vit", grid=(2, 2), layers=9, **PLAIN)


def test_layers_of_clip() -> None:
    config = ViTConfig(
        image_size=32, patch_size=8, width=24, depth=3, heads=2, mlp_width=48, qkv_bias="all", norm_before_blocks=True
    )
    torch.manual_seed(0)
    vit = ViT(config)
    tower = ClipTower(config=config, state=vit.state_dict(), projection=None)
    teacher = ClipTeacher(tower, name="t", grid=(4, 4), projected=False, layers=3, precision=torch.float32, **PLAIN)
    with torch.no_grad():
        tokens = vit(pixels(32), need=("blocks.0", "blocks.1", "blocks.2")).intermediates
    expected = torch.stack([F.layer_norm(tokens[number][:, 1:], (24,)) for number in range(3)]).mean(dim=0)
    torch.testing.assert_close(teacher(images(32)), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(UnveilError, match="has 3 blocks"):
        ClipTeacher(tower, name="t", grid=(4, 4), projected=False, layers=4, **PLAIN)


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(UnveilError, match="at least 1"):
        TimmTarget(name="vit_tiny_patch16_224", layers=0)
    with pytest.raises(UnveilError, match=r"target\.projected=false"):
        ClipTarget(layers=2)
