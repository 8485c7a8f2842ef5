"""The plain ViT: sizes of the released models, initialisation, positions, features, stochastic depth, recomputation."""

import dataclasses
import math
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unveil.config import UnveilError, ViTConfig
from unveil.config.model import vit_base, vit_giant, vit_large, vit_small, vit_tiny
from unveil.models.randomness import keyed_uniform
from unveil.models.transformer import attend, fused_attention
from unveil.models.vit import ViT, resize_positions, sine_cosine_positions

TINY = ViTConfig(image_size=28, patch_size=7, width=48, depth=3, heads=4, mlp_width=96)


def tiny(seed: int = 0, *, mask_token: bool = False, final_norm: bool = True, **changes: object) -> ViT:
    torch.manual_seed(seed)
    return ViT(dataclasses.replace(TINY, init_std=0.1, **changes), mask_token=mask_token, final_norm=final_norm)


def count(*modules: nn.Module) -> tuple[int, int]:
    parameters = [p for module in modules for p in module.parameters()]
    return sum(p.numel() for p in parameters), len(parameters)


def test_giant_has_the_released_parameter_counts() -> None:
    with torch.device("meta"):
        assert count(ViT(vit_giant(), mask_token=True), nn.Linear(1408, 768)) == (1_012_229_632, 529)
        fc_norm = nn.LayerNorm(1408)
        in_21k = nn.Linear(1408, 21841)
        assert count(ViT(vit_giant(), final_norm=False), fc_norm, in_21k) == (1_041_920_081, 528)
        in_1k = nn.Linear(1408, 1000)
        assert count(ViT(vit_giant(image_size=336), final_norm=False), fc_norm, in_1k) == (1_013_005_672, 528)
        assert count(ViT(vit_giant(image_size=560), final_norm=False), fc_norm, in_1k) == (1_014_447_464, 528)
        assert count(ViT(dataclasses.replace(vit_giant(), mlp_width=6144)), nn.Linear(1408, 1024))[0] == 1_012_588_928


@pytest.mark.parametrize(
    ("build", "name"),
    [(vit_tiny, "vit_tiny"), (vit_small, "vit_small"), (vit_base, "vit_base"), (vit_large, "vit_large")],
)
def test_smaller_sizes_are_timms(build, name: str) -> None:
    import timm

    config = dataclasses.replace(build(image_size=224, patch_size=16), qkv_bias="all")
    with torch.device("meta"):
        assert count(ViT(config)) == count(timm.create_model(f"{name}_patch16_224", num_classes=0))


def test_initialisation_is_cut_at_one_deviation_and_scaled_by_depth() -> None:
    config = dataclasses.replace(vit_giant(), width=352, heads=4, mlp_width=1536, depth=4)
    torch.manual_seed(0)
    vit = ViT(config, mask_token=True)
    for weight in (vit.pos_embed, vit.patch_embed.proj.weight, vit.blocks[2].mlp.fc1.weight):
        assert weight.std().item() == pytest.approx(0.00809, rel=0.01)
        assert weight.abs().max().item() <= 0.015
    for number, block in enumerate(vit.blocks, start=1):
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert weight.std().item() == pytest.approx(0.00809 / math.sqrt(2 * number), rel=0.01)
        assert not block.attn.q_bias.any() and not block.attn.v_bias.any() and not block.mlp.fc1.bias.any()
    assert not vit.patch_embed.proj.bias.any()
    assert 0.0 < vit.mask_token.abs().max().item() <= 0.015


def test_any_image_size_through_bicubic_positions() -> None:
    vit = tiny()
    images = torch.randn(2, 3, 42, 21)
    features = vit(images)
    assert features.grid == (6, 3) and features.patches.shape == (2, 18, 48)
    patches = vit.pos_embed[:, 1:].detach().reshape(1, 4, 4, 48).permute(0, 3, 1, 2)
    expected = F.interpolate(patches, size=(6, 3), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    resized = resize_positions(vit.pos_embed.detach(), (4, 4), (6, 3))
    torch.testing.assert_close(resized[:, 1:], expected.reshape(1, 18, 48))
    torch.testing.assert_close(resized[:, :1], vit.pos_embed[:, :1].detach())
    features.patches.sum().backward()
    assert vit.pos_embed.grad is not None and vit.pos_embed.grad.abs().sum() > 0


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UnveilError, match="30 x 28 pixels does not divide into patches of 7 x 7"):
        tiny()(torch.zeros(1, 3, 30, 28))


def test_hidden_patches_have_no_influence_and_get_positions() -> None:
    vit = tiny(mask_token=True)
    images = torch.randn(1, 3, 28, 28)
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, [0, 5]] = True
    changed = images.clone()
    changed[:, :, :7, :7] += 1.0
    changed[:, :, 7:14, 7:14] -= 2.0
    torch.testing.assert_close(vit(images, mask).patches, vit(changed, mask).patches)
    embedded = vit.embed(images, mask)
    torch.testing.assert_close(embedded[0, 6], vit.mask_token[0, 0] + vit.pos_embed[0, 6])
    assert not torch.allclose(vit(images, mask).patches, vit(images).patches)
    with pytest.raises(ValueError, match="without a mask token"):
        tiny()(images, mask)


def test_intermediates_levels_and_attention_without_hooks() -> None:
    vit = tiny()
    images = torch.randn(2, 3, 28, 35)
    features = vit(images, need=("blocks.0", "blocks.2", "blocks.1.attn", "levels"))
    assert features.intermediates.keys() == {0, 2} and features.attention.keys() == {1}
    tokens = vit.embed(images)
    first = vit.blocks[0](tokens)
    torch.testing.assert_close(features.intermediates[0], first)
    finished = vit.finish(features.intermediates[2])
    torch.testing.assert_close(finished[:, 0], features.cls)
    torch.testing.assert_close(finished[:, 1:], features.patches)
    attention = features.attention[1]
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 4, 21))
    level = features.levels[7]
    assert level.shape == (2, 48, 4, 5)
    torch.testing.assert_close(level[:, :, 1, 2], features.patches[:, 7])
    plain = vit(images)
    assert not plain.intermediates and not plain.attention and not plain.levels
    for name in ("blocks.3", "blocks.-1", "blocks.0.mlp", "norm"):
        with pytest.raises(UnveilError, match="a ViT with 3 blocks has no"):
            vit(images, need=(name,))


def test_without_final_norm_tokens_leave_as_the_last_block_made_them() -> None:
    vit = tiny(final_norm=False)
    features = vit(torch.randn(1, 3, 28, 28), need=("blocks.2",))
    assert torch.equal(features.intermediates[2][:, 1:], features.patches)
    assert vit.layer_groups()[-1] == []


def test_layer_groups_hold_every_parameter_once_input_side_first() -> None:
    vit = tiny(mask_token=True, norm_before_blocks=True, layer_scale=1e-5)
    groups = vit.layer_groups()
    names = [name for group in groups for name, _ in group]
    assert len(groups) == 5 and sorted(names) == sorted(name for name, _ in vit.named_parameters())
    assert {name.split(".")[0] for name, _ in groups[0]} == {
        "cls_token", "mask_token", "pos_embed", "patch_embed", "norm_pre",
    }  # fmt: skip
    assert all(name.startswith("blocks.1.") for name, _ in groups[2])
    assert [name for name, _ in groups[-1]] == ["norm.weight", "norm.bias"]
    assert vit.no_weight_decay() < set(names)
    assert vit.shard_units() == list(vit.blocks)


def test_keyed_uniform_is_uniform_and_known_by_its_key_alone() -> None:
    numbers = torch.tensor([7, 0, 2**40, 123456])
    noise = keyed_uniform(3, numbers, 6)
    assert torch.equal(noise[2:3], keyed_uniform(3, torch.tensor([2**40]), 6))
    assert torch.equal(noise[:, :4], keyed_uniform(3, numbers, 4))
    assert not torch.equal(noise, keyed_uniform(4, numbers, 6))
    many = keyed_uniform(0, torch.arange(20_000), 10).double()
    assert many.min() >= 0.0 and many.max() < 1.0
    assert many.mean().item() == pytest.approx(0.5, abs=0.002)
    assert many.var().item() == pytest.approx(1 / 12, abs=0.001)
    correlation = torch.corrcoef(torch.cat((many, many.roll(1, dims=0)), dim=1).T)
    assert (correlation - torch.eye(20)).abs().max() < 0.04


def test_keyed_uniform_is_splitmix64() -> None:
    """Against the finaliser in exact integer arithmetic."""

    def mix(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    for seed in (0, 5, -1, 2**63 + 9):
        expected = [[mix(mix(mix(seed % 2**64) ^ n) ^ j) >> 40 for j in range(3)] for n in (0, 1, 2**50)]
        numbers = keyed_uniform(seed, torch.tensor([0, 1, 2**50]), 3)
        assert (numbers.double() * 2**24).to(torch.int64).tolist() == expected


def test_drop_path_depends_on_the_sample_and_not_on_its_batch() -> None:
    vit = tiny(drop_path=0.5)
    images, numbers = torch.randn(6, 3, 28, 28), torch.arange(100, 106)
    noise = keyed_uniform(1, numbers, 6).view(6, 3, 2)
    together = vit(images, drop_path_noise=noise).patches
    alone = torch.cat([vit(images[i : i + 1], drop_path_noise=noise[i : i + 1]).patches for i in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together, vit(images).patches)


def test_drop_path_ramp_zeroes_and_keeps_the_expectation() -> None:
    vit = tiny(drop_path=0.5)
    assert [block.drop_path for block in vit.blocks] == [0.0, 0.25, 0.5]
    block, x = vit.blocks[2], torch.randn(1, 5, 48)
    low, high = torch.tensor([[0.1, 0.1]]), torch.tensor([[0.5, 0.5]])
    assert torch.equal(block(x, low), x)
    attended = x + 2.0 * block.attn(block.norm1(x))
    torch.testing.assert_close(block(x, torch.tensor([[0.9, 0.2]])), attended)
    torch.testing.assert_close(block(x, high), attended + 2.0 * block.mlp(block.norm2(attended)))
    assert torch.equal(vit.blocks[0](x, low), vit.blocks[0](x))
    noise = keyed_uniform(0, torch.arange(4000), 2)
    one_branch = torch.stack((torch.zeros(4000), noise[:, 1]), dim=1)
    mean = block(x.expand(4000, -1, -1), one_branch).mean(dim=0, keepdim=True)
    torch.testing.assert_close(mean, x + block.mlp(block.norm2(x)), atol=0.05, rtol=0.05)


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    images, noise = torch.randn(2, 3, 28, 28), torch.rand(2, 3, 2)
    gradients = []
    for recompute in (False, True):
        vit = tiny(drop_path=0.3, activation_checkpointing=recompute)
        vit(images, drop_path_noise=noise).patches.square().sum().backward()
        gradients.append([parameter.grad for parameter in vit.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("tokens", [5, 50])
def test_written_out_attention_agrees_with_the_fused_one(tokens: int) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, tokens, 16).bfloat16().unbind(0)
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    with torch.enable_grad():
        written = attend(query, key, value)
    with torch.no_grad():
        fused = attend(query, key, value)
    assert written.dtype == fused.dtype == torch.bfloat16
    torch.testing.assert_close(written.double(), expected, atol=0.02, rtol=0.02)
    torch.testing.assert_close(fused.double(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("width", "padding"), [(88, 8), (88, 40), (20, 4)])
@pytest.mark.parametrize("kind", ["plain", "causal", "biased"])
def test_heads_padded_for_a_kernel_attend_as_they_are(width: int, padding: int, kind: str) -> None:
    """Values and gradients of softmax(q k / sqrt(width)) v, written out in double precision."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 7, width).unbind(0)
    bias = torch.randn(2, 7, 7) if kind == "biased" else None
    results = []
    for padded in (False, True):
        parts = [part.to(torch.float32 if padded else torch.float64).requires_grad_() for part in (query, key, value)]
        if padded:
            found = fused_attention(*parts, bias, causal=kind == "causal", padding=padding)
        else:
            logits = parts[0] @ parts[1].transpose(2, 3) / math.sqrt(width)
            logits = logits if bias is None else logits + bias
            logits = logits.masked_fill(torch.ones(7, 7).triu(1).bool(), -math.inf) if kind == "causal" else logits
            found = logits.softmax(dim=-1) @ parts[2]
        found.square().sum().backward()
        results.append([found.detach(), *(part.grad for part in parts)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"relative_positions": "shared", "layer_scale": 0.3, "qkv_bias": "all", "drop_path": 0.4},
        {"qkv_bias": "none", "norm_before_blocks": True, "activation_checkpointing": True},
    ],
    ids=["plain", "relative positions, scaled, dropped", "recomputed"],
)
def test_features_of_some_patches_are_those_of_all(changes: dict[str, object]) -> None:
    """Values and every gradient; a number may come twice, as padding does."""
    images, noise = torch.randn(2, 3, 28, 28), torch.rand(2, 3, 2)
    only = torch.tensor([[3, 15, 0, 0], [7, 2, 9, 0]])
    results = []
    for chosen in (False, True):
        vit = tiny(**changes)
        if vit.rel_pos_bias is not None:
            nn.init.normal_(vit.rel_pos_bias.relative_position_bias_table)
        features = vit(images, only=only if chosen else None, drop_path_noise=noise, need=("blocks.0",))
        patches = features.patches
        if not chosen:
            patches = torch.stack([row[numbers] for row, numbers in zip(patches, only, strict=True)])
        (patches.square().sum() + features.cls.sum()).backward()
        assert features.intermediates[0].shape == (2, 17, 48)
        results.append([patches.detach(), features.cls.detach(), *(parameter.grad for parameter in vit.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_some_patches_make_no_feature_map() -> None:
    with pytest.raises(ValueError, match="no feature map"):
        tiny()(torch.randn(1, 3, 28, 28), only=torch.tensor([[1]]), need=("levels",))


def test_bf16_autocast_stays_near_fp32() -> None:
    vit, images = tiny(), torch.randn(2, 3, 28, 28)
    expected = vit(images).patches
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = vit(images)
    features.patches.float().sum().backward()
    assert F.cosine_similarity(features.patches.float(), expected, dim=-1).min() > 0.995


COMPILED = """
    import torch
    from unveil.config import ViTConfig
    from unveil.models.vit import ViT
    images, mask, noise = torch.randn(2, 3, 28, 28), torch.rand(2, 16) > 0.5, torch.rand(2, 2, 2)
    for checkpointing in CHECKPOINTING:
        vit = ViT(ViTConfig(image_size=28, patch_size=7, width=32, depth=2, heads=2, mlp_width=64, drop_path=0.3,
                            activation_checkpointing=checkpointing), mask_token=True)
        def loss(images, mask, noise):
            return vit(images, mask, drop_path_noise=noise).patches.square().mean()
        results = []
        for function in (loss, torch.compile(loss, fullgraph=True, dynamic=False, backend=BACKEND)):
            vit.zero_grad()
            value = function(images, mask, noise)
            value.backward()
            results.append([value.detach()] + [p.grad.clone() for p in vit.parameters()])
        for eager, compiled in zip(*results, strict=True):
            torch.testing.assert_close(eager, compiled, atol=1e-5, rtol=1e-4)
"""
"""Run in a process of its own: the run-time shape checks of the tests are not what is compiled."""


def run_compiled(backend: str, *checkpointing: bool) -> None:
    code = textwrap.dedent(COMPILED).replace("BACKEND", repr(backend)).replace("CHECKPOINTING", repr(checkpointing))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_traced_whole_gives_the_same_values_and_gradients() -> None:
    """One graph without breaks, with and without recomputation; no compiler is needed to trace it."""
    run_compiled("aot_eager", False, True)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compiled_whole_gives_the_same_values_and_gradients() -> None:
    run_compiled("inductor", False)


def test_attention_maps_are_float32_under_autocast() -> None:
    config = ViTConfig(image_size=28, patch_size=14, width=16, depth=1, heads=2, mlp_width=32)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = ViT(config)(torch.randn(2, 3, 28, 28), need=("blocks.0.attn",)).attention[0]
    assert found.dtype == torch.float32
    assert torch.allclose(found.sum(dim=-1), torch.ones(2, 2, 5), atol=1e-6)


def test_sine_cosine_positions_tell_rows_from_columns() -> None:
    table = sine_cosine_positions((4, 4), 16).view(4, 4, 16)
    assert torch.equal(table[:, 0, 8:], table[:1, 0, 8:].expand(4, -1))
    assert torch.equal(table[0, :, :8], table[0, :1, :8].expand(4, -1))
    expected = torch.sin(torch.tensor(3.0) * 10_000.0 ** -torch.tensor([0.0, 0.25, 0.5, 0.75]))
    assert torch.allclose(table[3, 0, :4], expected)
    with pytest.raises(UnveilError, match="multiple of 4"):
        sine_cosine_positions((4, 4), 18)


def test_sine_cosine_positions_start_as_large_as_the_patches() -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=28, patch_size=4, width=192, depth=1, heads=3, mlp_width=8, position_init="sine_cosine"
    )
    vit = ViT(config)
    patches = vit.patch_embed(torch.randn(16, 3, 28, 28))
    root_mean_square = vit.pos_embed[:, 1:].square().mean().sqrt().item()
    assert root_mean_square == pytest.approx(patches.square().mean().sqrt().item(), rel=0.1)
