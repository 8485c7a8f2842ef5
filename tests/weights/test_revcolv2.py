"""RevColV2 from a file of ours: what is loaded, left out, missed and refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.models.revcolv2_tiny import TINY, tiny
from unveil.config import UnveilError, ViTConfig
from unveil.models.pixel_head import PixelHead
from unveil.models.vit import ViT
from unveil.weights.names import Part
from unveil.weights.revcolv2 import load_columns


@pytest.fixture
def pretrained(tmp_path: Path) -> tuple[nn.Module, Path]:
    network = tiny(mask_token=True)
    file = tmp_path / "model.safetensors"
    task = nn.ModuleDict({"backbone": network, "head": PixelHead(TINY)})
    save_file(task.state_dict(), file)
    return network, file


def test_a_pre_trained_network_goes_whole_into_the_next_task(pretrained: tuple[nn.Module, Path]) -> None:
    before, file = pretrained
    after = tiny(seed=1, image_size=96, reads="top")
    report = load_columns(after, file)
    images = torch.randn(1, 3, 96, 96)
    larger = tiny(seed=1, image_size=96, mask_token=True)
    assert load_columns(larger, file).missing == []
    with torch.no_grad():
        torch.testing.assert_close(after(images).patches, larger(images).patches)
    state = before.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in after.state_dict().items())
    assert report.missing == [] and report.unexpected == []
    assert len(report.left_out[Part.MASK_TOKEN]) == 4
    assert report.left_out[Part.PREDICTOR] == [
        "head.norm.bias",
        "head.norm.weight",
        "head.proj.bias",
        "head.proj.weight",
    ]


def test_mask_tokens_may_be_missing_and_the_rest_may_not(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    state = {f"backbone.{name}": value for name, value in tiny().state_dict().items()}
    save_file(state | {"fc_norm.weight": torch.ones(20), "head.weight": torch.ones(5, 20), "x": torch.ones(1)}, file)
    report = load_columns(tiny(seed=1, mask_token=True), file)
    assert report.missing == [f"mask_tokens.{level}" for level in range(4)]
    assert report.left_out == {Part.HEAD: ["head.weight"], Part.POOLED_NORM: ["fc_norm.weight"]}
    assert report.unexpected == ["x"]


@pytest.mark.parametrize("changes", [{"top_down_columns": 3}, {"bottom_up_columns": 5}, {"widths": (8, 12, 24, 20)}])
def test_networks_of_other_sizes_are_refused(pretrained: tuple[nn.Module, Path], changes: dict[str, object]) -> None:
    network = tiny(seed=1, **changes)
    untouched = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UnveilError, match="other columns, levels or widths than the model"):
        load_columns(network, pretrained[1])
    assert all(torch.equal(value, untouched[name]) for name, value in network.state_dict().items())


def test_a_vit_is_refused(tmp_path: Path) -> None:
    vit = ViT(ViTConfig(image_size=28, patch_size=14, width=16, depth=1, heads=2, mlp_width=16))
    file = tmp_path / "model.safetensors"
    save_file({f"backbone.{name}": value for name, value in vit.state_dict().items()}, file)
    with pytest.raises(UnveilError, match="holds no RevColV2"):
        load_columns(tiny(), file)
