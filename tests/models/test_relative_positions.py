"""Shared relative positions: BEiT's of timm, on any grid, in the attention that pictures show."""

import dataclasses

import pytest
import timm
import torch
import torch.nn.functional as F

from unveil.config import UnveilError, ViTConfig
from unveil.models.transformer import RelativePositionBias, attend
from unveil.models.vit import ViT
from unveil.weights.load import fill_backbone
from unveil.weights.resize import fit_relative_positions
from unveil.weights.timm_network import timm_network

TINY = ViTConfig(
    image_size=32, patch_size=8, width=24, depth=2, heads=3, mlp_width=48, init_std=0.1, relative_positions="shared"
)


def tiny(seed: int = 0, **changes: object) -> ViT:
    torch.manual_seed(seed)
    vit = ViT(dataclasses.replace(TINY, **changes))
    with torch.no_grad():
        vit.rel_pos_bias.relative_position_bias_table.normal_()
    return vit


def test_the_same_as_timm_s_beit() -> None:
    """Same names, same tokens, same gradients."""
    ours = tiny(layer_scale=0.1)
    theirs = timm.create_model(
        "beit_base_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=3,
        mlp_ratio=2,
        init_values=0.1,
        use_abs_pos_emb=True,
        use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True,
        num_classes=0,
        global_pool="token",
    )
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not missing and not unexpected
    images = torch.randn(2, 3, 32, 32)
    features = ours(images)
    expected = theirs.forward_features(images)
    torch.testing.assert_close(torch.cat((features.cls[:, None], features.patches), dim=1), expected)
    features.patches.square().sum().backward()
    expected[:, 1:].square().sum().backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-4, rtol=1e-4)


def test_offsets_one_by_one() -> None:
    rows, columns, heads = 2, 3, 2
    bias = RelativePositionBias(heads, (rows, columns))
    table = bias.relative_position_bias_table
    with torch.no_grad():
        table.copy_(torch.arange(table.numel()).view(table.shape))
    found = bias((rows, columns))
    assert len(table) == 3 * 5 + 3
    assert torch.equal(found[:, 0, 0], table[-1])
    for i in range(6):
        assert torch.equal(found[:, 0, 1 + i], table[-3]) and torch.equal(found[:, 1 + i, 0], table[-2])
        for j in range(6):
            down, right = i // 3 - j // 3, i % 3 - j % 3
            assert torch.equal(found[:, 1 + i, 1 + j], table[(down + 1) * 5 + right + 2])


def test_another_grid_is_interpolated_and_cls_kept() -> None:
    vit = tiny()
    assert vit(torch.randn(1, 3, 48, 24)).grid == (6, 3)
    table = vit.rel_pos_bias.relative_position_bias_table.detach()
    image = table[:-3].T.reshape(1, 3, 7, 7)
    expected = F.interpolate(image, size=(11, 11), mode="bicubic", align_corners=False)[0].reshape(3, 121).T
    fitted = fit_relative_positions(table, (6, 6))
    torch.testing.assert_close(fitted[:-3], expected)
    assert torch.equal(fitted[-3:], table[-3:])


def test_weights_are_fitted_to_another_size() -> None:
    old, new = tiny(), tiny(1, image_size=48)
    report = fill_backbone(new, {f"backbone.{name}": value for name, value in old.state_dict().items()}, source="old")
    assert "rel_pos_bias.relative_position_bias_table" in report.resized
    images = torch.randn(1, 3, 48, 48)
    torch.testing.assert_close(new(images).patches, old(images).patches)
    with pytest.raises(UnveilError, match="not those of a square grid"):
        fit_relative_positions(torch.zeros(50, 3), (4, 4))


def test_pictures_of_attention_show_it() -> None:
    vit = tiny()
    shown = vit(torch.randn(1, 3, 32, 32), need=("blocks.0.attn",)).attention[0]
    vit.rel_pos_bias.relative_position_bias_table.data.zero_()
    assert not torch.allclose(vit(torch.randn(1, 3, 32, 32), need=("blocks.0.attn",)).attention[0], shown)
    query, key, value = (torch.randn(2, 3, 17, 8) for _ in range(3))
    bias = torch.randn(3, 17, 17)
    expected = (query @ key.transpose(2, 3) / 8**0.5 + bias).softmax(dim=-1) @ value
    torch.testing.assert_close(attend(query, key, value, bias), expected, atol=1e-5, rtol=1e-5)
    written_out = attend(*(part.bfloat16().requires_grad_() for part in (query, key, value)), bias)
    torch.testing.assert_close(written_out.float(), expected, atol=0.05, rtol=0.05)


def test_recomputation_changes_nothing() -> None:
    images, results = torch.randn(2, 3, 32, 32), []
    for checkpointing in (False, True):
        vit = tiny(activation_checkpointing=checkpointing)
        vit(images).patches.square().sum().backward()
        results.append([parameter.grad for name, parameter in vit.named_parameters() if name != "norm.bias"])
    torch.testing.assert_close(results[0], results[1])


class Patches(torch.nn.Module):
    def __init__(self, vit: ViT) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.vit(images).patches


def test_it_can_be_exported_but_not_as_timm_s_vit() -> None:
    network, images = Patches(tiny().eval()), torch.randn(2, 3, 32, 32)
    exported = torch.export.export(network, (images,)).module()
    torch.testing.assert_close(exported(images), network(images))
    with pytest.raises(UnveilError, match=r"relative positions.*safetensors or onnx"):
        timm_network(network.vit.config, classes=0, pooling="cls", pooled_norm=False, separate_biases=True)
