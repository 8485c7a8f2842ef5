"""MAE: sizes, start, loss and gradients against the same network put together from timm's parts, image by image."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from unveil.config import AdamWConfig, MaskedAutoencoding, ViTConfig
from unveil.data.normalization import normalize
from unveil.engine import build_optimizer
from unveil.models.randomness import keyed_uniform
from unveil.models.vit import ViT
from unveil.pretext.masked_autoencoding import MaskedAutoencoder, fixed_positions
from unveil.pretext.masked_modelling import pad_hidden
from unveil.pretext.targets.pixels import PixelPatches
from unveil.recipes import mae_base, mae_large, mae_small_cpu

TINY = ViTConfig(image_size=32, patch_size=8, width=32, depth=3, heads=4, mlp_width=128, qkv_bias="all")
LIGHT = MaskedAutoencoding(decoder_width=16, decoder_depth=2, decoder_heads=2)
FIXED = {"backbone.pos_embed", "decoder_pos_embed"}
HIDDEN = 12


class Released(nn.Module):
    """As the released checkpoints name their parts."""

    def __init__(self, model: ViTConfig, objective: MaskedAutoencoding) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        width, light = model.width, objective.decoder_width
        self.patch_embed = PatchEmbed(model.image_size, model.patch_size, 3, width)
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 17, width))
        self.blocks = nn.Sequential(
            *(Block(width, model.heads, 4, qkv_bias=True, norm_layer=norm) for _ in range(model.depth))
        )
        self.norm = norm(width)
        self.decoder_embed = nn.Linear(width, light)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, light))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 17, light))
        self.decoder_blocks = nn.Sequential(
            *(
                Block(light, objective.decoder_heads, 4, qkv_bias=True, norm_layer=norm)
                for _ in range(objective.decoder_depth)
            )
        )
        self.decoder_norm = norm(light)
        self.decoder_pred = nn.Linear(light, model.patch_size**2 * 3)

    def forward(self, image: Tensor, visible: list[int]) -> Tensor:
        """All patches' answers, of one image."""
        patches = self.patch_embed(image[None])[0] + self.pos_embed[0, 1:]
        cls = self.cls_token[0] + self.pos_embed[0, :1]
        tokens = self.decoder_embed(self.norm(self.blocks(torch.cat([cls, patches[visible]])[None])))[0]
        told = dict(zip(visible, tokens[1:], strict=True))
        whole = [tokens[0], *(told.get(place, self.mask_token[0, 0]) for place in range(len(patches)))]
        decoded = self.decoder_blocks(torch.stack(whole)[None] + self.decoder_pos_embed)
        return self.decoder_pred(self.decoder_norm(decoded))[0, 1:]


def task_of(model: ViTConfig = TINY, *, moved: bool = True) -> MaskedAutoencoder:
    torch.manual_seed(3)
    target = PixelPatches(model.grid, patch_size=model.patch_size, normalize=True)
    task = MaskedAutoencoder(ViT(model), target, seed=0, normalization="imagenet", objective=LIGHT)
    if moved:
        # So that no bias is 0 and no norm 1.
        with torch.no_grad():
            for name, parameter in task.named_parameters():
                if name not in FIXED:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return task


def batch_of(count: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)
    mask = torch.rand(count, 16, generator=generator).argsort(dim=1).argsort(dim=1) < HIDDEN
    hidden, weight = pad_hidden(mask, HIDDEN)
    return {
        "image": torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "mask": mask,
        "hidden": hidden,
        "hidden_weight": weight,
        "sample_numbers": torch.arange(100, 100 + count),
        "valid": torch.ones(count, dtype=torch.bool),
    }


def released_losses(network: Released, batch: dict[str, Any]) -> Tensor:
    """At each hidden patch, cut out of the picture by its place."""
    losses = []
    pixels = normalize(batch["image"], "imagenet")
    for image, raw, mask in zip(pixels, batch["image"], batch["mask"], strict=True):
        answers = network(image, [place for place in range(16) if not mask[place]])
        for place in mask.nonzero().flatten().tolist():
            rows, columns = (slice(8 * at, 8 * at + 8) for at in divmod(place, 4))
            wanted = (raw[:, rows, columns] / 127.5 - 1.0).permute(1, 2, 0).flatten()
            wanted = (wanted - wanted.mean()) / (wanted.var() + 1e-6).sqrt()
            losses.append((answers[place] - wanted).square().mean())
    return torch.stack(losses)


def bare(name: str) -> str:
    return name.removeprefix("backbone.")


def test_loss_and_gradients_are_those_of_timm_s_parts() -> None:
    """And the released names, all of them, are ours."""
    task, batch = task_of(), batch_of()
    network = Released(TINY, LIGHT)
    network.load_state_dict({bare(name): value for name, value in task.state_dict().items()})
    expected = released_losses(network, batch)
    expected.mean().backward()
    total, count = task(batch)["loss"]
    assert count == len(expected) == 3 * HIDDEN
    torch.testing.assert_close(total / count, expected.mean(), atol=1e-5, rtol=1e-5)
    (total / count).backward()
    theirs = dict(network.named_parameters())
    for name, parameter in task.named_parameters():
        if name not in FIXED:
            torch.testing.assert_close(parameter.grad, theirs[bare(name)].grad, atol=1e-5, rtol=1e-4, msg=name)


def released_size(width: int, depth: int, *, patches: int = 196, decoder: int = 512, blocks: int = 8) -> int:
    """Parameters of the released networks by hand, with both tables."""

    def block(wide: int) -> int:
        return 12 * wide * wide + 13 * wide

    pixels = 16 * 16 * 3
    encoder = pixels * width + width + width + (1 + patches) * width + depth * block(width) + 2 * width
    told = width * decoder + decoder + decoder + (1 + patches) * decoder + blocks * block(decoder) + 2 * decoder
    return encoder + told + decoder * pixels + pixels


@pytest.mark.parametrize(
    ("recipe", "width", "depth", "size"), [(mae_base, 768, 12, 111_907_840), (mae_large, 1024, 24, 329_541_888)]
)
def test_sizes_of_the_released_networks(recipe: Any, width: int, depth: int, size: int) -> None:
    config = recipe()
    with torch.device("meta"):
        target = PixelPatches(config.model.grid, patch_size=16, normalize=True)
        task = MaskedAutoencoder(
            ViT(config.model), target, seed=0, normalization="imagenet", objective=config.objective
        )
    assert sum(parameter.numel() for parameter in task.parameters()) == released_size(width, depth) == size
    learned = sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad)
    assert learned == size - 197 * (width + 512)


def test_the_small_one_is_as_large_as_the_columns_it_is_compared_with() -> None:
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in ViT(mae_small_cpu().model).parameters())
    assert parameters == pytest.approx(4.1e6, rel=0.02)


def test_positions_are_the_released_table() -> None:
    """Cell by cell: sines, then cosines, of the column in the first half and of the row in the second."""
    table = fixed_positions((3, 5), 16)
    assert table.shape == (1, 16, 16) and not table[0, 0].any()
    for row in range(3):
        for column in range(5):
            rates = [1 / 10_000 ** (k / 4) for k in range(4)]
            expected = [
                wave(place * rate) for place in (column, row) for wave in (math.sin, math.cos) for rate in rates
            ]
            torch.testing.assert_close(table[0, 1 + 5 * row + column], torch.tensor(expected), atol=1e-6, rtol=0)


def test_it_begins_as_the_released_code_does() -> None:
    """Uniform between bounds of Xavier's, the patch embedding as one matrix."""
    task = task_of(moved=False)
    for name, value in task.named_parameters():
        if value.ndim >= 2 and name.endswith("weight"):
            outside, inside = value.shape[0], value[0].numel()
            bound = math.sqrt(6 / (inside + outside))
            assert 0.9 * bound < value.abs().max() <= bound, name
            assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1), name
        elif name.endswith("bias"):
            assert not value.any(), name
    assert torch.equal(task.backbone.pos_embed, fixed_positions((4, 4), 32))
    assert 0.01 < task.mask_token.std() < 0.04 and 0.01 < task.backbone.cls_token.std() < 0.04


def test_hidden_pixels_do_not_reach_the_network() -> None:
    task, batch = task_of().eval(), batch_of()
    other = batch["image"].clone()
    squares = batch["mask"].view(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other[squares.expand_as(other)] ^= 255
    with torch.no_grad():
        first, second = (
            task.predict_hidden(normalize(images, "imagenet"), batch["mask"], batch["hidden"])
            for images in (batch["image"], other)
        )
        assert torch.equal(first, second)
        seen = other.clone()
        seen[~squares.expand_as(other)] ^= 255
        third = task.predict_hidden(normalize(seen, "imagenet"), batch["mask"], batch["hidden"])
    assert not torch.allclose(first, third)


def test_all_learn_but_the_positions_and_tokens_are_decayed() -> None:
    task, batch = task_of(), batch_of()
    task(batch)["loss"][0].backward()
    names = dict(task.named_parameters())
    assert {name for name, value in names.items() if value.grad is None or not value.grad.any()} == FIXED
    optimizer = build_optimizer(task, AdamWConfig(learning_rate=1.0, weight_decay=0.1))
    decayed = {name for group in optimizer.param_groups if group["weight_decay"] for name in group["param_names"]}
    assert decayed == {name for name, value in names.items() if value.ndim > 1 and name not in FIXED}
    assert {"mask_token", "backbone.cls_token"} <= decayed
    assert {name.split(".")[0] for name, _ in task.layer_groups()[-1]} >= {"mask_token", "decoder_blocks", "backbone"}
    assert len(task.shard_units()) == TINY.depth + LIGHT.decoder_depth


def test_evaluation_is_on_the_stripes_and_all_patches_can_be_asked_for() -> None:
    task, batch = task_of().eval(), batch_of()
    state = task.evaluate(batch)
    stripes = (torch.arange(16) % 2 == 0).expand(3, -1)
    expected = dict(batch, mask=stripes, hidden=torch.arange(0, 16, 2).expand(3, -1), hidden_weight=torch.ones(3, 8))
    with torch.no_grad():
        torch.testing.assert_close(state["loss_sum"], task(expected)["loss"][0])
        assert state["count"] == 3 * 8
        images = normalize(batch["image"], "imagenet")
        everywhere = task.predict_hidden(images, batch["mask"], torch.arange(16).expand(3, -1))
        asked = task.predict_hidden(images, batch["mask"], batch["hidden"])
    torch.testing.assert_close(everywhere[torch.arange(3)[:, None], batch["hidden"]], asked)


def test_drop_path_is_the_encoder_s_and_keyed_on_the_samples() -> None:
    task, batch = task_of(replace(TINY, drop_path=0.5)), batch_of()
    noise = keyed_uniform(0, batch["sample_numbers"], 2 * TINY.depth).view(3, TINY.depth, 2)
    images, wanted = normalize(batch["image"], "imagenet"), task.targets(batch, batch["hidden"])
    with torch.no_grad():
        losses = task.regress(images, batch["mask"], batch["hidden"], wanted, noise)
        torch.testing.assert_close(task(batch)["loss"][0], losses.sum())
        assert not torch.allclose(task.eval()(batch)["loss"][0], losses.sum())


def test_computing_blocks_again_changes_no_gradient() -> None:
    batch, found = batch_of(), []
    for setting in (False, True):
        task = task_of(replace(TINY, activation_checkpointing=setting))
        task(batch)["loss"][0].backward()
        found.append([value.grad for value in task.parameters() if value.grad is not None])
    for kept, again in zip(*found, strict=True):
        assert torch.equal(kept, again)


def test_under_autocast_it_is_nearly_the_same() -> None:
    task, batch = task_of(), batch_of()
    with torch.no_grad():
        expected = task(batch)["loss"][0]
        with torch.autocast("cpu", torch.bfloat16):
            found = task(batch)["loss"][0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=0)
