"""RevColV2: published sizes, columns against their equations on whole maps, hidden pixels, what is needed, layers."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.models.revcolv2_tiny import TINY, gradients, half_hidden, half_of_base, noise_for, tiny
from unveil.config import UnveilError
from unveil.config.revcolv2 import RevColV2Config, revcolv2_base, revcolv2_large
from unveil.models.revcolv2 import RevColV2
from unveil.models.revcolv2_blocks import Column, ConvBlock, Level


def size_of(config: RevColV2Config) -> tuple[float, float]:
    """Millions of parameters, and 10^9 multiply-adds at 224: all columns, with a norm and a head of 1000 classes."""
    with torch.device("meta"), torch.no_grad():
        network = RevColV2(config)
        head = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, 1000))
        images = torch.empty(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counter:
            head(network(images, need=("top", "levels")).patches.mean(dim=1))
    parameters = sum(p.numel() for module in (network, head) for p in module.parameters())
    return parameters / 1e6, counter.get_total_flops() / 2e9


def test_published_sizes() -> None:
    """Supplement, Table 5."""
    millions, giga = size_of(revcolv2_base())
    assert millions == pytest.approx(88.0, abs=0.5) and giga == pytest.approx(19.0, abs=0.5)
    millions, giga = size_of(revcolv2_large())
    assert millions == pytest.approx(327.0, abs=0.5) and giga == pytest.approx(67.0, abs=0.7)


def test_other_layouts_have_the_sizes_that_another_implementation_counted() -> None:
    """To the last digit that it gave: 7 x 7 convolutions and attention at two levels; three levels, 2 + 1 columns."""
    convolution, transformer = "convolution", "transformer"
    deep = dataclasses.replace(
        revcolv2_base(),
        widths=(64, 128, 320, 320),
        layers=(1, 2, 10, 1),
        kinds=(convolution, convolution, transformer, transformer),
        bottom_up_columns=3,
        top_down_columns=3,
        kernel_size=7,
    )
    assert size_of(deep) == pytest.approx((88.00, 18.84), abs=0.01)
    three_levels = dataclasses.replace(
        revcolv2_base(),
        mask_unit=16,
        widths=(64, 128, 512),
        layers=(1, 2, 9),
        kinds=(convolution, convolution, transformer),
        bottom_up_columns=2,
        top_down_columns=1,
    )
    assert size_of(three_levels) == pytest.approx((87.57, 18.92), abs=0.01)


class OnMaps:
    """The same network on whole maps with torch's own convolutions, every level written out; nothing is hidden."""

    def __init__(self, network: RevColV2) -> None:
        self.network = network
        self.last = len(network.config.widths) - 1

    def levels(self, images: Tensor) -> list[Tensor]:
        network, last, strides = self.network, self.last, self.network.config.strides
        stem = network.patch_embed
        weight = stem.proj.weight.unflatten(1, (3, stem.patch_size, stem.patch_size))
        x = norm(F.conv2d(images, weight, stem.proj.bias, stride=stem.patch_size), stem.norm)
        previous: list[Tensor] = []
        for column in network.bottom_up:
            current: list[Tensor] = []
            for level in range(last + 1):
                fused = x if level == 0 else self.down(column.levels[level], current[level - 1])
                if previous and level < last:
                    fused = fused + self.up(column.levels[level], previous[level + 1])
                if not previous and strides[level] == 16:
                    fused = fused + self.positions(level)
                current.append(self.blocks(column.levels[level], fused))
                if previous:
                    current[level] = current[level] + column.gamma[level][:, None, None] * previous[level]
            previous = current
        previous = [one + self.positions(level) for level, one in enumerate(previous)]
        for column in network.top_down:
            current = [torch.empty(0)] * (last + 1)
            for level in reversed(range(last + 1)):
                parts = []
                if level < last:
                    parts.append(self.up(column.levels[level], current[level + 1]))
                if level > 0:
                    parts.append(self.down(column.levels[level], previous[level - 1]))
                current[level] = self.blocks(column.levels[level], sum(parts))
                current[level] = current[level] + column.gamma[level][:, None, None] * previous[level]
            previous = current
        return previous

    def positions(self, level: int) -> Tensor:
        table = self.network.get_buffer(f"positions_{level}")
        side = self.network.config.image_size // self.network.config.strides[level]
        return table.T.unflatten(1, (side, side))

    def down(self, level: Level, x: Tensor) -> Tensor:
        weight = level.down.proj.weight.unflatten(1, (2, 2, -1)).permute(0, 3, 1, 2)
        return norm(F.conv2d(x, weight, level.down.proj.bias, stride=2), level.down.norm)

    def up(self, level: Level, x: Tensor) -> Tensor:
        projected = F.conv2d(x, level.up.proj.weight[:, :, None, None], level.up.proj.bias)
        return F.interpolate(norm(projected, level.up.norm), scale_factor=2.0, mode="nearest")

    def blocks(self, level: Level, x: Tensor) -> Tensor:
        for block in level.blocks:
            if isinstance(block, ConvBlock):
                inner = norm(block.depthwise(x), block.norm).permute(0, 2, 3, 1)
                inner = block.fc2(F.gelu(block.fc1(inner))) * block.layer_scale
                x = x + inner.permute(0, 3, 1, 2)
            else:
                x = block(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])
        return x


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_columns_follow_their_equations() -> None:
    network = tiny()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = OnMaps(network).levels(images)
        found = network.feature_maps(images)
    assert [tuple(found[stride].shape) for stride in (4, 8, 16, 32)] == [
        (2, 8, 16, 16), (2, 12, 8, 8), (2, 16, 4, 4), (2, 20, 2, 2),
    ]  # fmt: skip
    for level, stride in enumerate((4, 8, 16, 32)):
        torch.testing.assert_close(found[stride], expected[level], atol=1e-4, rtol=1e-4)


def test_a_mask_that_hides_nothing_changes_nothing() -> None:
    """The order of held cells is another one, the features are the same."""
    network = tiny(mask_token=True)
    images, mask = torch.randn(2, 3, 64, 96), torch.zeros(2, 6, dtype=torch.bool)
    with torch.no_grad():
        expected, found = (network(images, m, need=("levels", "bottom_up")) for m in (None, mask))
    for stride in network.config.strides:
        torch.testing.assert_close(found.bottom_up[stride], expected.bottom_up[stride], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.levels[stride], expected.levels[stride], atol=1e-4, rtol=1e-4)


def test_hidden_pixels_have_no_influence_to_the_bit() -> None:
    network, mask = tiny(mask_token=True), half_hidden(3)
    images = torch.randn(3, 3, 64, 64)
    hidden = mask.view(3, 1, 2, 2).repeat_interleave(32, 2).repeat_interleave(32, 3)
    changed = torch.where(hidden, 100.0 * torch.randn_like(images), images)
    with torch.no_grad():
        first, second = (network(x, mask, need=("levels", "bottom_up")) for x in (images, changed))
    for stride in network.config.strides:
        assert torch.equal(first.bottom_up[stride], second.bottom_up[stride])
        assert torch.equal(first.levels[stride], second.levels[stride])
        there = hidden[:, :, ::stride, ::stride]
        assert not (first.bottom_up[stride] * there).any()
        assert first.levels[stride].masked_select(there).abs().min() > 0.0
    with torch.no_grad():
        seen = network(torch.where(hidden, images, images + 1.0), mask, need=("bottom_up",))
    assert not torch.equal(first.bottom_up[32], seen.bottom_up[32])


def test_convolutions_see_zeros_where_cells_are_hidden() -> None:
    """A bottom-up column without attention, against maps that are multiplied with the mask before each convolution."""
    network = tiny(mask_token=True, kinds=("convolution",) * 4)
    column, mask = network.bottom_up[0], half_hidden(2)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        stem, cells = network.embed(images, mask)
        found = column(cells, {}, stem, None)
        x = OnMaps(network)
        current = cells[0].to_map(stem)
        for level in range(4):
            visible = (~mask).float().view(2, 1, 2, 2).repeat_interleave(8 >> level, 2).repeat_interleave(8 >> level, 3)
            if level:
                current = x.down(column.levels[level], current)
            for block in column.levels[level].blocks:
                inner = norm(block.depthwise(current * visible), block.norm).permute(0, 2, 3, 1)
                inner = block.fc2(F.gelu(block.fc1(inner))) * block.layer_scale
                current = current + inner.permute(0, 3, 1, 2)
            torch.testing.assert_close(cells[level].to_map(found[level]), current * visible, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("columns", [2, 5])
@pytest.mark.parametrize("mode", ["off", "column", "chain"])
def test_the_top_needs_a_part_which_alone_is_computed_and_learns(columns: int, mode: str) -> None:
    """By autograd on the whole network: exactly the parameters that the top level depends on are not frozen."""
    sizes = {"top_down_columns": columns, "gamma_floor": 0.5}
    images = torch.randn(1, 3, 64, 64)
    whole = tiny(**sizes, reversible="off")
    expected = whole(images, need=("levels",)).levels[32]
    expected.square().sum().backward()
    part = tiny(**sizes, reads="top", reversible=mode)
    found = part(images)
    assert not found.levels and not found.bottom_up and found.grid == (2, 2)
    torch.testing.assert_close(found.patches.transpose(1, 2).unflatten(2, (2, 2)), expected)
    found.patches.square().sum().backward()
    learning = {name for name, parameter in part.named_parameters() if parameter.requires_grad}
    assert learning == gradients(part).keys() == gradients(whole).keys()
    for name, gradient in gradients(part).items():
        torch.testing.assert_close(gradient, gradients(whole)[name], atol=1e-3, rtol=1e-3)


def test_the_linear_probe_reads_the_bottom_up_columns_alone() -> None:
    network = tiny(reads="bottom_up")
    features = network(torch.randn(1, 3, 64, 64))
    assert features.bottom_up[32].shape == (1, 20, 2, 2) and not features.levels
    assert torch.equal(features.patches, features.bottom_up[32].flatten(2).transpose(1, 2))
    torch.testing.assert_close(features.cls, features.bottom_up[32].mean(dim=(2, 3)))
    features.patches.sum().backward()
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert learning == gradients(network).keys() and not any(name.startswith("top_down") for name in learning)


def test_every_parameter_learns_from_the_pixels_of_the_finest_level() -> None:
    network = tiny(mask_token=True)
    network(torch.randn(2, 3, 64, 64), half_hidden(2)).levels[4].square().sum().backward()
    missing = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert not missing


def test_drop_path_depends_on_the_sample_and_not_on_its_batch() -> None:
    network = tiny(drop_path=0.5)
    images, noise = torch.randn(3, 3, 64, 64), noise_for(network, 3)
    with torch.no_grad():
        together = network(images, drop_path_noise=noise, need=("top",)).patches
        alone = [network(images[i : i + 1], drop_path_noise=noise[i : i + 1], need=("top",)).patches for i in range(3)]
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(together, network(images, need=("top",)).patches, atol=1e-2)


def test_drop_path_rises_within_each_column_in_the_order_of_its_blocks() -> None:
    network = tiny(drop_path=0.5)
    for column in (network.bottom_up[1], network.top_down[1]):
        rates = [block.drop_path for level in column.order for block in column.levels[level].blocks]
        assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    block = network.bottom_up[0].levels[3].blocks[0]
    assert isinstance(block, ConvBlock) and block.drop_path == pytest.approx(0.5)
    _, cells = network.embed(torch.zeros(1, 3, 64, 64))
    x = torch.randn(1, 4, 20)
    assert torch.equal(block(x, cells[3], torch.tensor([[0.4, 0.9]])), x)
    kept = x + 2.0 * (block(x, cells[3]) - x)
    torch.testing.assert_close(block(x, cells[3], torch.tensor([[0.6, 0.0]])), kept)


def test_gamma_stays_away_from_zero_and_finds_its_way_back() -> None:
    column = Column(dataclasses.replace(TINY, gamma_floor=0.25), "top_down")
    with torch.no_grad():
        column.gamma[0][:5] = torch.tensor([0.1, -0.1, 0.0, 2.0, -2.0])
    scale = column.scale(0)
    assert scale[:5].tolist() == [0.25, -0.25, 0.25, 2.0, -2.0]
    scale.sum().backward()
    assert torch.equal(column.gamma[0].grad, torch.ones(8))


def test_layer_groups_count_the_shortest_way() -> None:
    """RevCol's released code: a grid of blocks and columns, each a step from the one below and the one before."""
    network = tiny(mask_token=True)
    groups = network.layer_groups()
    names = [name for group in groups for name, _ in group]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())
    steps = [[0] * 8 for _ in range(6)]
    for block in range(6):
        for column in range(8):
            before = [steps[block - 1][column]] * (block > 0) + [steps[block][column - 1]] * (column > 0)
            steps[block][column] = min(before) + 1 if before else 0
    assert len(groups) == steps[-1][-1] + 3 and groups[-1] == []
    of = {name: number for number, group in enumerate(groups) for name, _ in group}
    assert {name.split(".")[0] for name, _ in groups[0]} == {"patch_embed", "mask_tokens"}
    # Blocks of a column of the levels 1, 2, 2, 1: bottom-up from the finest level, top-down from the coarsest.
    assert of["bottom_up.2.levels.0.blocks.0.fc1.weight"] == steps[0][2] + 1
    assert of["bottom_up.2.levels.2.blocks.1.mlp.fc1.weight"] == steps[4][2] + 1
    assert of["bottom_up.2.levels.2.down.proj.weight"] == steps[3][2] + 1
    assert of["bottom_up.2.gamma.3"] == steps[0][2] + 1
    assert of["top_down.3.levels.3.blocks.0.fc1.weight"] == steps[0][7] + 1
    assert of["top_down.3.levels.0.blocks.0.fc1.weight"] == steps[5][7] + 1
    assert network.no_weight_decay() == set() and all(p.ndim == 1 for name, p in groups[1] if ".gamma." in name)
    assert network.shard_units() == [*network.bottom_up, *network.top_down]


def test_images_and_tokens_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UnveilError, match="48 x 64 pixels does not divide into units of 32 x 32"):
        tiny()(torch.zeros(1, 3, 48, 64))
    with pytest.raises(ValueError, match="without mask tokens"):
        tiny()(torch.zeros(1, 3, 64, 64), torch.tensor([[True, False, False, True]]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (1, 2, 2)}, "name 4, 3 and 4"),
        ({"top_down_columns": 0}, "at least 1"),
        ({"kernel_size": 4}, "is even"),
        ({"mask_unit": 16}, "not a multiple of the coarsest cell, 32 pixels; try 32"),
        ({"image_size": 100}, "not a multiple of model.mask_unit 32; try 96"),
        ({"widths": (8, 12, 16, 18)}, "18 is not one"),
        ({"widths": (8, 12, 20, 20)}, "20 channels does not divide into heads"),
        ({"drop_path": 1.0}, "not in"),
        ({"gamma_floor": 0.9}, "at most model.gamma_init 0.5"),
        ({"reversible": "chain"}, "set model.gamma_floor=0.5 and model.gamma_init=1.0, or model.reversible=column"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UnveilError, match=message):
        dataclasses.replace(TINY, **changes)


def test_other_configurations_are_a_change_of_numbers() -> None:
    """Three levels with units of 16 pixels; all convolutions; units larger than the coarsest cell; small images."""
    three = RevColV2Config(
        image_size=32,
        mask_unit=16,
        widths=(8, 8, 16),
        layers=(1, 1, 3),
        kinds=("convolution", "convolution", "transformer"),
        bottom_up_columns=2,
        top_down_columns=1,
        head_width=8,
    )
    coarse = dataclasses.replace(TINY, mask_unit=64, image_size=128, layer_scale=None, kernel_size=7)
    for config in (three, coarse, half_of_base(image_size=32, mask_unit=8)):
        images = torch.randn(2, 3, config.image_size, config.image_size)
        network = RevColV2(config, mask_token=True)
        units = config.grid[0] * config.grid[1]
        with torch.no_grad():
            maps = network(images, half_hidden(2, units)).levels
        assert list(maps) == list(config.strides) and maps[config.strides[0]].isfinite().all()
        assert maps[config.strides[-1]].shape[2] == config.image_size // config.strides[-1]
