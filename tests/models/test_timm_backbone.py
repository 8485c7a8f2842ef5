"""timm's encoders behind our seams: their own features, layers in order, statistics that stay."""

import pytest
import timm
import torch
from torch import Tensor

from unveil.config import AdamWConfig
from unveil.data.normalization import MEAN_AND_STD, normalize
from unveil.engine import build_optimizer
from unveil.models.timm_backbone import TimmBackbone
from unveil.tasks.classification.task import Classification

ONES, ZEROS = torch.ones(3), torch.zeros(3)


SMALL_SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **(SMALL_SWIN if name.startswith("swin") else {})).eval()


def images() -> Tensor:
    return torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def classifier(name: str) -> Classification:
    backbone = TimmBackbone(network(name), name=name, image_size=64, scale=ONES, shift=ZEROS)
    torch.manual_seed(3)
    return Classification(
        backbone,
        ("a", "b", "c"),
        seed=0,
        normalization="imagenet",
        label_smoothing=0.0,
        head_init_scale=1.0,
    )


def test_the_features_are_timm_s_own_and_of_pixels_as_it_knows_them() -> None:
    """Given CLIP's normalisation, it sees its own."""
    own = network("resnet18")
    given_mean, given_std = (torch.tensor(values) for values in MEAN_AND_STD["clip"])
    own_mean, own_std = (torch.tensor(values) for values in MEAN_AND_STD["imagenet"])
    backbone = TimmBackbone(
        network("resnet18"),
        name="resnet18",
        image_size=64,
        scale=given_std / own_std,
        shift=(given_mean - own_mean) / own_std,
    )
    with torch.no_grad():
        expected = own.forward_features(normalize(images(), "imagenet"))
        found = backbone(normalize(images(), "clip"))
    assert found.grid == (2, 2) and backbone.config.width == 512
    torch.testing.assert_close(found.patches, expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.cls, expected.mean(dim=(2, 3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_the_mean_of_a_map_is_what_its_own_head_would_see(name: str) -> None:
    """Channels first in the one, last in the other."""
    own = network(name)
    backbone = TimmBackbone(network(name), name=name, image_size=64, scale=ONES, shift=ZEROS)
    pixels = normalize(images(), "imagenet")
    with torch.no_grad():
        pooled = own.forward_head(own.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(backbone(pixels).cls, pooled, rtol=1e-3, atol=1e-4)


def test_layer_decay_falls_from_stage_to_stage() -> None:
    """ResNet-18: a stem, four stages, the head: 0.5 to the 5th, 4th, ... and 0."""
    task = classifier("resnet18")
    optimizer = build_optimizer(task, AdamWConfig(), layer_decay=0.5)
    scales = {name: group["lr_scale"] for group in optimizer.param_groups for name in group["param_names"]}
    assert set(scales) == {name for name, _ in task.named_parameters()}
    assert scales["backbone.network.conv1.weight"] == 0.5**5
    assert scales["backbone.network.layer1.0.conv1.weight"] == 0.5**4
    assert scales["backbone.network.layer4.1.bn2.bias"] == 0.5
    assert scales["head.weight"] == scales["fc_norm.bias"] == 1.0
    decayed = {name for group in optimizer.param_groups if group["weight_decay"] for name in group["param_names"]}
    assert "backbone.network.layer1.0.conv1.weight" in decayed and "backbone.network.bn1.weight" not in decayed


def test_in_training_statistics_stay_and_a_step_is_the_same_however_it_is_split() -> None:
    whole, split = (classifier("mobilenetv3_small_050").train() for _ in range(2))
    before = {name: value.clone() for name, value in whole.named_buffers()}
    batch = {"image": images(), "label": torch.arange(4) % 3, "sample_numbers": torch.arange(4)}
    whole(batch)["loss"][0].backward()
    for places in ([0], [1, 2, 3]):
        split({name: value[places] for name, value in batch.items()})["loss"][0].backward()
    for (name, one), other in zip(whole.named_parameters(), split.parameters(), strict=True):
        behind_the_map = "conv_head" in name
        assert one.requires_grad is not behind_the_map
        if behind_the_map:
            continue
        assert one.grad is not None and one.grad.abs().sum() > 0, name
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert all(torch.equal(value, before[name]) for name, value in whole.named_buffers())


@pytest.mark.parametrize(
    ("name", "first", "count"),
    [
        ("resnet18", "layer1", 4),
        ("swin_tiny_patch4_window7_224", "layers.0", 4),
        ("vit_tiny_patch16_224", "blocks.0", 12),
        ("mobilenetv3_small_050", "bn1", 7),
    ],
)
def test_units_of_sharding_are_called_once_and_hold_most_weights(name: str, first: str, count: int) -> None:
    settings = {"dynamic_img_size": True} if name.startswith("vit") else {}
    backbone = TimmBackbone(
        timm.create_model(name, **settings) if settings else network(name),
        name=name,
        image_size=64,
        scale=ONES,
        shift=ZEROS,
    )
    units = backbone.shard_units()
    assert len(units) == count and units[0] is backbone.network.get_submodule(first)
    parts = [part for unit in units for part in unit.modules()]
    assert len(parts) == len(set(parts)), "none lies within another"
    held = sum(parameter.numel() for unit in units for parameter in unit.parameters() if parameter.requires_grad)
    assert held > 0.8 * sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad)
    calls = []
    for unit in units:
        unit.register_forward_hook(lambda unit, *_: calls.append(unit))
    backbone(normalize(images(), "imagenet"))
    assert calls == units
