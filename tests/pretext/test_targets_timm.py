"""timm encoders as teachers, and open_clip's CLIPs that have them inside."""

from pathlib import Path

import pytest
import torch

from unveil.config import ClipTarget, TimmTarget, UnveilError
from unveil.pretext.targets.build import build_target
from unveil.pretext.targets.clip import load_clip
from unveil.pretext.targets.timm import TimmTeacher, load_open_clip_trunk, load_timm

PLAIN = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def network(name: str, **settings: object) -> torch.nn.Module:
    import timm

    torch.manual_seed(0)
    return timm.create_model(name, **settings).eval()


def tiny_vit(**settings: object) -> torch.nn.Module:
    return network("vit_tiny_patch16_224", **{"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3} | settings)


def images(side: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_vit_drops_its_prefix() -> None:
    vit = tiny_vit()
    teacher = TimmTeacher(vit, name="t", grid=(14, 14), precision=torch.float32, **PLAIN)
    assert (teacher.dim, teacher.image_size) == (48, 224)
    with torch.no_grad():
        expected = vit.forward_features(images(224) / 127.5 - 1.0)[:, 1:]
    assert torch.allclose(teacher(images(224)), expected, atol=1e-4)


def test_vit_fits_another_grid() -> None:
    teacher = load_timm("vit_tiny_patch16_224", grid=(3, 3), projected=False, pretrained=False)
    assert teacher.image_size == 48 and teacher(images(32)).shape == (2, 9, 192)


def test_two_prefix_tokens() -> None:
    teacher = TimmTeacher(network("deit_tiny_distilled_patch16_224"), name="t", grid=(2, 2), **PLAIN)
    assert teacher(images(32)).shape == (2, 4, 192)


def test_maps_become_rows() -> None:
    convolutional = network("convnext_atto")
    teacher = TimmTeacher(convolutional, name="t", grid=(2, 3), precision=torch.float32, **PLAIN)
    pixels = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        cells = convolutional.forward_features(pixels / 127.5 - 1.0)
        expected = convolutional.head.norm(cells).flatten(2).transpose(1, 2)
    assert torch.allclose(teacher(pixels), expected, atol=1e-4)


def test_maps_with_channels_last() -> None:
    window = network("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), embed_dim=24)
    teacher = TimmTeacher(window, name="t", grid=(7, 7), precision=torch.float32, **PLAIN)
    with torch.no_grad():
        cells = window.forward_features(images(224) / 127.5 - 1.0)
    assert teacher.dim == 192
    assert torch.allclose(teacher(images(224))[:, 8], cells[:, 1, 1], atol=1e-4)


def test_a_grid_that_does_not_fit_is_named() -> None:
    """CaiT's positions cannot be resized by timm: 14 x 14 it is."""
    fixed = network("cait_xxs24_224", depth=1, depth_token_only=1)
    with pytest.raises(UnveilError, match=r"14 x 14.*8 x 8.*target\.resize_grid=true"):
        TimmTeacher(fixed, name="cait", grid=(8, 8), **PLAIN)
    resized = TimmTeacher(fixed, name="cait", grid=(8, 8), resize_grid=True, **PLAIN)
    assert resized.image_size == 224 and resized(images(64)).shape == (2, 64, 192)


def test_features_without_places_are_refused() -> None:
    flat = network("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24, num_heads=3)
    flat.num_prefix_tokens = 0
    with pytest.raises(UnveilError, match=r"not one for each of 2 x 2"):
        TimmTeacher(flat, name="t", grid=(2, 2), **PLAIN)


def test_weights_from_a_file(tmp_path: Path) -> None:
    reference = network("vit_tiny_patch16_224")
    torch.save(reference.state_dict(), tmp_path / "vit.pth")
    target = TimmTarget(name="vit_tiny_patch16_224", file=str(tmp_path / "vit.pth"))
    teacher = build_target(target, grid=(14, 14), patch_size=16)
    with torch.no_grad():
        expected = reference.forward_features(images(224) / 127.5 - 1.0)[:, 1:]
    similarity = torch.nn.functional.cosine_similarity(teacher(images(224)), expected, dim=-1)
    assert similarity.min() > 0.99
    with pytest.raises(UnveilError, match="not a file"):
        load_timm("vit_tiny_patch16_224", grid=(14, 14), projected=False, file=str(tmp_path / "none.pth"))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "wrong.pth")
    with pytest.raises(UnveilError, match="do not fit"):
        load_timm("vit_tiny_patch16_224", grid=(14, 14), projected=False, file=str(tmp_path / "wrong.pth"))


@pytest.mark.parametrize(
    ("vision", "side"),
    [
        ({"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear"}, 32),
        ({"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear"}, 32),
        ({"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "mlp"}, 32),
        ({"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": None}, 32),
    ],
)
def test_open_clip_trunk_projects_each_feature(vision: dict[str, object], side: int) -> None:
    """On an image of one cell pooling does nothing, so the patch feature is the image's own embedding."""
    from open_clip.timm_model import TimmModel

    torch.manual_seed(0)
    tower = TimmModel(
        vision["timm_model_name"], 12, pool=vision["timm_pool"], proj=vision["timm_proj"], image_size=side
    ).eval()
    state = {f"visual.{name}": value for name, value in tower.state_dict().items()} | {"logit_scale": torch.ones(())}
    teacher = load_open_clip_trunk("t", vision, 12, state, grid=(1, 1), projected=True, resize_grid=False, **PLAIN)
    teacher._precision = torch.float32
    with torch.no_grad():
        expected = tower(images(side) / 127.5 - 1.0)
    assert teacher.dim == 12
    assert torch.allclose(teacher(images(side))[:, 0], expected, atol=1e-4)


def test_eva_clip_projects_each_patch() -> None:
    """EVA-CLIP's layout: timm's Eva, cls pooling, its head is the projection."""
    from open_clip.timm_model import TimmModel

    torch.manual_seed(0)
    vision = {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": None}
    tower = TimmModel(vision["timm_model_name"], 12, pool="token", proj=None).eval()
    state = {f"visual.{name}": value for name, value in tower.state_dict().items()}
    teacher = load_open_clip_trunk("t", vision, 12, state, grid=(16, 16), projected=True, resize_grid=False, **PLAIN)
    teacher._precision = torch.float32
    with torch.no_grad():
        expected = tower.trunk.head(tower.trunk.forward_features(images(224) / 127.5 - 1.0)[:, 1:])
    assert teacher(images(224)).shape == (2, 256, 12)
    assert torch.allclose(teacher(images(224)), expected, atol=1e-4)


def test_attention_pooling_has_no_projection_for_patches() -> None:
    from open_clip.timm_model import TimmModel

    vision = {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "none"}
    with torch.device("cpu"):
        state = TimmModel(vision["timm_model_name"], 768, pool="map", proj="none").state_dict()
    with pytest.raises(UnveilError, match=r"target\.projected=false"):
        load_open_clip_trunk("t", vision, 768, state, grid=(2, 2), projected=True, resize_grid=False, **PLAIN)


def test_weights_for_another_trunk_are_refused(tmp_path: Path) -> None:
    torch.save({"visual.trunk.weight": torch.zeros(2)}, tmp_path / "trunk.pt")
    with pytest.raises(UnveilError, match="do not fit"):
        load_clip(ClipTarget(name=f"convnext_tiny/{tmp_path / 'trunk.pt'}"), grid=(2, 2))


def test_quick_gelu_weights_are_sent_to_their_network() -> None:
    with pytest.raises(UnveilError, match=r"vit_base_patch32_clip_quickgelu_224\.openai"):
        load_clip(ClipTarget(name="vit_base_patch32_clip_224.openai"), grid=(7, 7))
