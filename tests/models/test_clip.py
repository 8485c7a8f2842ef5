"""The two towers: what they see, what they drop, how their parameters are grouped."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from unveil.config import ClipModelConfig, TextConfig, UnveilError, ViTConfig, eva_clip_giant
from unveil.models.clip import Clip
from unveil.models.text import TextTower
from unveil.models.transformer import attend
from unveil.models.vit import ViT

VISION = ViTConfig(image_size=28, patch_size=7, width=32, depth=2, heads=2, mlp_width=64, drop_path=0.5)
TEXT = TextConfig(context_length=10, vocabulary_size=30, width=32, heads=2, depth=3, mlp_width=64)
CONFIG = ClipModelConfig(vision=VISION, text=TEXT, embedding_width=12)


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    network = Clip(CONFIG)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def tokens() -> Tensor:
    """Three texts; 29 ends each."""
    return torch.tensor([[28, 3, 29, 0, 0, 0, 0, 0, 0, 0], [28, 4, 5, 6, 7, 8, 9, 10, 11, 29], [28, 29, *[0] * 8]])


def test_eva_clip_giant_has_as_many_parameters_as_the_released_one() -> None:
    with torch.device("meta"):
        network = Clip(eva_clip_giant())
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_136_435_841


def test_features_are_unit_vectors(clip: Clip) -> None:
    for features in (clip.encode_images(images()), clip.encode_texts(tokens())):
        assert features.shape == (3, 12) and features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=1), torch.ones(3))


def test_a_text_is_its_tokens_up_to_the_end(clip: Clip) -> None:
    whole = clip.encode_texts(tokens())
    noise = tokens()
    noise[0, 3:] = torch.tensor([5, 9, 1, 2, 17, 3, 11])
    torch.testing.assert_close(clip.encode_texts(noise), whole)
    torch.testing.assert_close(clip.encode_texts(tokens()[[0, 2], :3]), whole[[0, 2]])
    changed = tokens()
    changed[0, 1] = 7
    assert not torch.allclose(clip.encode_texts(changed)[0], whole[0], atol=1e-3)


def test_a_text_that_is_too_long(clip: Clip) -> None:
    with pytest.raises(UnveilError, match="11 tokens do not fit a text tower of 10"):
        clip.encode_texts(torch.zeros(1, 11, dtype=torch.int64))


def test_causal_attention_written_out_is_the_fused_one() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 7, 8, generator=generator) for _ in range(3))
    rows = []
    for place in range(7):
        logits = (query[:, :, place, None] * key[:, :, : place + 1]).sum(dim=3) / math.sqrt(8)
        rows.append((logits.softmax(dim=2)[..., None] * value[:, :, : place + 1]).sum(dim=2))
    expected = torch.stack(rows, dim=2)
    torch.testing.assert_close(attend(query, key, value, causal=True), expected)
    half = [part.bfloat16().requires_grad_() for part in (query, key, value)]
    torch.testing.assert_close(attend(*half, causal=True).float(), expected, atol=0.03, rtol=0.03)


def test_patch_dropout_leaves_the_cls_token_and_the_patches_that_are_kept(clip: Clip) -> None:
    kept = torch.tensor([[0, 5, 15], [3, 2, 1], [7, 8, 9]])
    vit = clip.visual
    patches = vit.patch_embed(images()) + vit.pos_embed[:, 1:]
    chosen = torch.stack([patches[row, places] for row, places in enumerate(kept)])
    states = torch.cat(((vit.cls_token + vit.pos_embed[:, :1]).expand(3, -1, -1), chosen), dim=1)
    for block in vit.blocks:
        states = block(states)
    found = vit(images(), kept=kept)
    torch.testing.assert_close(found.cls, vit.norm(states)[:, 0])
    torch.testing.assert_close(found.patches, vit.norm(states)[:, 1:])
    expected = clip.visual_projection(vit.norm(states)[:, 0])
    torch.testing.assert_close(clip.encode_images(images(), kept=kept), expected / expected.norm(dim=1, keepdim=True))


def test_all_patches_kept_in_another_order_change_nothing(clip: Clip) -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2)).expand(3, -1)
    torch.testing.assert_close(clip.encode_images(images(), kept=order), clip.encode_images(images()))


def test_feature_maps_and_relative_positions_need_all_patches(clip: Clip) -> None:
    kept = torch.zeros(3, 1, dtype=torch.int64)
    with pytest.raises(UnveilError, match="turn patch dropout off"):
        clip.visual(images(), kept=kept, need=("levels",))
    with pytest.raises(UnveilError, match="turn patch dropout off"):
        ViT(dataclasses.replace(VISION, relative_positions="shared"))(images(), kept=kept)


def test_dropped_paths_reach_the_image_tower(clip: Clip) -> None:
    dropped = clip.encode_images(images(), drop_path_noise=torch.zeros(3, 2, 2))
    kept = clip.encode_images(images(), drop_path_noise=torch.full((3, 2, 2), 0.99))
    assert not torch.allclose(dropped, kept, atol=1e-3)


def test_the_temperature_stays_in_its_bounds(clip: Clip) -> None:
    assert Clip(CONFIG).logit_scale.exp().item() == pytest.approx(1 / 0.07)
    network = Clip(CONFIG)
    for value, clamped in ((7.0, math.log(100)), (-1.0, 0.0), (3.0, 3.0)):
        with torch.no_grad():
            network.logit_scale.fill_(value)
        network.clamp_logit_scale()
        assert network.logit_scale.item() == pytest.approx(clamped)


def test_groups_hold_every_parameter_but_the_temperature_once(clip: Clip) -> None:
    visual, text = clip.visual_groups(), clip.text_groups()
    assert len(visual) == 2 + 2 and len(text) == 3 + 2
    listed = [name for group in visual + text for name, _ in group]
    assert sorted([*listed, "logit_scale"]) == sorted(name for name, _ in clip.named_parameters())
    parameters = dict(clip.named_parameters())
    assert all(parameters[name] is parameter for group in visual + text for name, parameter in group)
    assert {name for name, _ in visual[0]} == {
        "visual.cls_token",
        "visual.pos_embed",
        "visual.patch_embed.proj.weight",
        "visual.patch_embed.proj.bias",
    }
    assert {name.rpartition(".")[0] for name, _ in visual[-1]} == {"visual.norm", "visual_projection"}
    assert {name for name, _ in text[0]} == {"text.token_embedding.weight", "text.positional_embedding"}
    assert {name.rpartition(".")[0] for name, _ in text[-1]} == {"text.norm", "text.projection"}
    assert all(name.startswith("text.blocks.1.") for name, _ in text[2])
    assert clip.no_weight_decay() == {"visual.pos_embed", "visual.cls_token", "text.positional_embedding"}
    assert clip.no_weight_decay() < parameters.keys()


def test_recomputing_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    plain = TextTower(TEXT, 12)
    recomputing = TextTower(dataclasses.replace(TEXT, activation_checkpointing=True), 12)
    recomputing.load_state_dict(plain.state_dict())
    for tower in (plain, recomputing):
        tower(tokens()).square().sum().backward()
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, dict(recomputing.named_parameters())[name].grad), name


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: TextConfig(width=30, heads=4), "model.text.width 30 is not a multiple of model.text.heads 4"),
        (lambda: TextConfig(depth=0), "every size of the text tower must be at least 1"),
        (lambda: ClipModelConfig(vision=VISION, embedding_width=0), "model.embedding_width is 0"),
        (lambda: ClipModelConfig(vision=VISION, projection_init_std=0.0), "model.projection_init_std is 0.0"),
    ],
)
def test_impossible_sizes(build: object, words: str) -> None:
    assert callable(build)
    with pytest.raises(UnveilError, match=words):
        build()
