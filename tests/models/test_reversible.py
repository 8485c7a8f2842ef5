"""What backward keeps and has back: inversion, gradients of the three modes, bytes held, and what is refused."""

import dataclasses
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor

from tests.models.revcolv2_tiny import TINY, gradients, half_hidden, noise_for, tiny
from unveil.config import UnveilError
from unveil.config.revcolv2 import RevColV2Config
from unveil.models.cells import all_cells
from unveil.models.revcolv2 import RevColV2
from unveil.models.reversible import invert

CHAIN = {"reversible": "chain", "gamma_floor": 0.5}


def greatest(errors: list[Tensor]) -> float:
    """NaN if any is, where Python's `max` may pass over it."""
    return torch.stack(errors).max().item()


def furthest(found: dict[int, Tensor], expected: dict[int, Tensor]) -> float:
    """Greatest error, as a share of the greatest feature of its map."""
    assert found.keys() == expected.keys()
    errors = [(found[level] - expected[level]).abs().max() / expected[level].abs().max() for level in expected]
    return greatest(errors)


@torch.no_grad()
def test_all_columns_are_had_back_from_the_last() -> None:
    """float64, gammas of at least 0.5, through the junction, drop path and hidden cells included."""
    network = tiny(mask_token=True, drop_path=0.3).double()
    images, mask, noise = torch.randn(2, 3, 64, 64).double(), half_hidden(2), noise_for(network, 2)
    upward, downward = network._by_column(noise)
    stem, cells = network.embed(images, mask)
    maps: list[dict[int, Tensor]] = [{}]
    for number, column in enumerate(network.bottom_up):
        maps.append(column(cells, maps[-1], stem, upward[:, number]))
    whole = all_cells(16, 16, 4)
    entry = network.junction(maps[-1], cells)
    lower = [entry]
    for number, column in enumerate(network.top_down):
        lower.append(column(whole, lower[-1], None, downward[:, number]))
    current = lower[-1]
    for number in reversed(range(4)):
        current = invert(network.top_down[number], whole, None, downward[:, number], current)
        assert furthest(current, lower[number]) < 1e-9
    current = {
        level: cells[level].held(one - network._positions(level, (cells[level].rows, cells[level].columns)))
        for level, one in current.items()
    }
    for number in reversed(range(1, 4)):
        current = invert(network.bottom_up[number], cells, stem, upward[:, number], current)
        assert furthest(current, maps[number]) < 1e-9
    assert invert(network.bottom_up[0], cells, stem, upward[:, 0], current) == {}


@torch.no_grad()
@pytest.mark.parametrize("direction", ["bottom_up", "top_down"])
def test_one_column_is_had_back_in_float32(direction: str) -> None:
    network = tiny(drop_path=0.3)
    column = getattr(network, direction)[1]
    cells, stem = all_cells(16, 16, 4), torch.randn(2, 256, 8) if direction == "bottom_up" else None
    widths = network.config.widths
    previous = {level: torch.randn(2, 256 >> 2 * level, width) for level, width in enumerate(widths)}
    noise = noise_for(network, 2)[:, :6]
    found = invert(column, cells, stem, noise, column(cells, previous, stem, noise))
    assert furthest(found, previous) < 1e-5


def step(images: Tensor, *, mask: Tensor | None, autocast: bool = False, **changes: object) -> dict[str, Tensor]:
    """Loss and gradients of the same network in the mode asked for."""
    network = tiny(mask_token=mask is not None, drop_path=0.4, **changes).to(images.dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        levels = network(images, mask, drop_path_noise=noise_for(network, len(images))).levels
        loss = torch.stack([level.square().mean() for level in levels.values()]).sum()
    loss.backward()
    found = gradients(network)
    assert found.keys() == dict(network.named_parameters()).keys()
    return {"loss": loss.detach(), **found}


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Greatest relative difference of loss and gradients, tensor by tensor."""
    # Of a block that is dropped for all samples both are zero.
    least = torch.finfo(torch.float32).tiny
    return greatest([(first[name] - second[name]).norm() / first[name].norm().clamp_min(least) for name in first])


@pytest.mark.parametrize("hides", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_column_gives_the_gradients_of_off(hides: bool, autocast: bool) -> None:
    images, mask = torch.randn(3, 3, 64, 64), half_hidden(3) if hides else None
    off, column = (step(images, mask=mask, autocast=autocast, reversible=mode) for mode in ("off", "column"))
    assert distance(off, column) <= 1e-6


@pytest.mark.parametrize("hides", [False, True])
def test_chain_gives_the_gradients_of_off(hides: bool) -> None:
    images, mask = torch.randn(3, 3, 64, 64).double(), half_hidden(3) if hides else None
    off = step(images, mask=mask, reversible="off", gamma_floor=0.5)
    assert distance(off, step(images, mask=mask, **CHAIN)) < 1e-8
    in_fp32 = step(images.float(), mask=mask, **CHAIN)
    assert distance(off, {name: value.double() for name, value in in_fp32.items()}) < 1e-3


def test_chain_under_autocast_needs_float32_functions_and_great_gammas() -> None:
    images, mask = torch.randn(2, 3, 64, 64), half_hidden(2)
    with pytest.raises(UnveilError, match=r"set model\.functions_in_fp32=true, engine\.precision=fp32"):
        step(images, mask=mask, autocast=True, **CHAIN)
    with pytest.raises(UnveilError, match=r"model\.gamma_floor=0\.5"):
        dataclasses.replace(TINY, reversible="chain", gamma_floor=0.49, functions_in_fp32=True)
    off = step(images, mask=mask, autocast=True, reversible="off", gamma_floor=0.5, functions_in_fp32=True)
    chain = step(images, mask=mask, autocast=True, functions_in_fp32=True, **CHAIN)
    # The stem alone is in bfloat16, and rounds its gradient.
    assert torch.equal(off["loss"], chain["loss"])
    assert distance(off, chain) < 1e-2
    assert distance(*({n: v for n, v in one.items() if "patch_embed" not in n} for one in (off, chain))) < 1e-3


def test_functions_in_float32_ignore_autocast() -> None:
    network = tiny(functions_in_fp32=True)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        stem, cells = network.embed(images)
        expected = network.bottom_up[0](cells, {}, stem, None)
        with torch.autocast("cpu", torch.bfloat16):
            found = network.bottom_up[0](cells, {}, stem, None)
    assert all(torch.equal(found[level], expected[level]) for level in expected)


def test_the_stream_stays_in_float32_under_autocast() -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = tiny()(torch.randn(1, 3, 64, 64), need=("levels", "bottom_up"))
    assert {one.dtype for one in [*features.levels.values(), *features.bottom_up.values()]} == {torch.float32}


def bytes_held(config: RevColV2Config) -> int:
    """Of what backward keeps at the end of forward, without the parameters."""
    network = RevColV2(config)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*network.parameters(), *network.buffers()]}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        levels = network(torch.randn(1, 3, 64, 64)).levels
    del levels
    return sum(held.values())


def test_bytes_held_for_backward() -> None:
    """Column: the four maps of every column but the last, beside the stem; chain: those of two columns, however many
    there are; off: several times that."""
    held = {
        (mode, columns): bytes_held(
            dataclasses.replace(TINY, bottom_up_columns=columns, top_down_columns=columns, reversible=mode, **floor)
        )
        for mode, floor in (("off", {}), ("column", {}), ("chain", {"gamma_floor": 0.5}))
        for columns in (2, 4)
    }
    maps = 4 * sum(256 // 4**level * width for level, width in enumerate(TINY.widths))
    assert held["column", 4] - held["column", 2] == 4 * maps
    assert held["chain", 4] == held["chain", 2] < held["column", 4]
    assert held["off", 4] > 5 * held["column", 4]


def test_many_chained_columns_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for columns, warnings in ((5, 0), (6, 1)):
        RevColV2(dataclasses.replace(TINY, bottom_up_columns=columns, **CHAIN))
        assert len(caplog.records) == warnings


COMPILED = """
    import torch
    from unveil.config.revcolv2 import RevColV2Config
    from unveil.models.revcolv2 import RevColV2
    images, noises = torch.randn(2, 3, 32, 32), torch.rand(2, 12, 2)
    mask = torch.tensor([[True, False, True, False], [False, True, True, False]])
    for mode in ("off", "column", "chain"):
        network = RevColV2(
            RevColV2Config(
                image_size=32, patch_size=2, mask_unit=16, widths=(8, 8, 16, 16), layers=(1, 1, 1, 1), head_width=8,
                mlp_ratio=2, bottom_up_columns=2, top_down_columns=1, drop_path=0.3, layer_scale=0.1, init_std=0.1,
                gamma_floor=0.5, reversible=mode,
            ),
            mask_token=True,
        )
        def loss(images, mask, noise):
            return network(images, mask, hidden=2, drop_path_noise=noise).levels[2].square().mean()
        results = []
        for function in (loss, torch.compile(loss, fullgraph=mode != "chain", dynamic=False, backend="aot_eager")):
            network.zero_grad()
            value = function(images, mask, noises)
            value.backward()
            results.append([value.detach()] + [p.grad.clone() for p in network.parameters()])
        for eager, compiled in zip(*results, strict=True):
            torch.testing.assert_close(eager, compiled, atol=1e-5, rtol=1e-4, msg=lambda text: f"{mode}: {text}")
"""
"""Run in a process of its own: the run-time shape checks of the tests are not what is compiled."""


@pytest.mark.slow
def test_traced_all_modes_give_the_same_values_and_gradients() -> None:
    """One graph without breaks, recomputation included; the columns of a chain stay out of it."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(COMPILED)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
