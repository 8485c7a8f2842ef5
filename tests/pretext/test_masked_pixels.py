"""Masked modelling with RevColV2: the loss by hand, and what it depends on."""

from typing import Any

import torch

from tests.models.revcolv2_tiny import TINY, half_hidden, noise_for, tiny
from unveil.data.normalization import normalize
from unveil.models.randomness import keyed_uniform
from unveil.pretext.masked_modelling import pad_hidden
from unveil.pretext.masked_pixels import MaskedPixels
from unveil.pretext.targets.pixels import PixelPatches


def task_of(**changes: object) -> MaskedPixels:
    target = PixelPatches((2, 2), patch_size=32, normalize=True)
    return MaskedPixels(tiny(mask_token=True, **changes), target, seed=0, normalization="imagenet")


def batch_of(count: int = 3) -> dict[str, Any]:
    mask = half_hidden(count)
    hidden, weight = pad_hidden(mask, 2)
    generator = torch.Generator().manual_seed(7)
    return {
        "image": torch.randint(0, 256, (count, 3, 64, 64), generator=generator, dtype=torch.uint8),
        "mask": mask,
        "hidden": hidden,
        "hidden_weight": weight,
        "sample_numbers": torch.arange(100, 100 + count),
        "valid": torch.ones(count, dtype=torch.bool),
    }


def test_the_loss_by_hand() -> None:
    """Cell by cell: the head's 4 x 4 pixels laid into a picture, against the picture, each hidden unit normalised."""
    task, batch = task_of(), batch_of()
    with torch.no_grad():
        features = task.backbone(normalize(batch["image"], "imagenet"), batch["mask"])
        cells = task.head.proj(task.head.norm(features.levels[4].permute(0, 2, 3, 1)))
        losses = []
        for image, picture, mask in zip(batch["image"], cells, batch["mask"], strict=True):
            painted = picture.unflatten(2, (4, 4, 3)).transpose(1, 2).reshape(64, 64, 3)
            for unit in mask.nonzero().flatten().tolist():
                rows, columns = (slice(32 * place, 32 * place + 32) for place in divmod(unit, 2))
                wanted = (image[:, rows, columns] / 127.5 - 1.0).permute(1, 2, 0)
                wanted = (wanted - wanted.mean()) / (wanted.var() + 1e-6).sqrt()
                losses.append((painted[rows, columns] - wanted).square().mean())
        total, count = task(batch)["loss"]
    assert count == len(losses) == 6
    torch.testing.assert_close(total, torch.stack(losses).sum(), atol=1e-4, rtol=1e-5)


def test_every_weight_learns_and_visible_pixels_are_no_target() -> None:
    task, batch = task_of(), batch_of()
    before, _ = task(batch)["loss"]
    before.backward()
    assert [name for name, value in task.named_parameters() if value.grad is None or not value.grad.any()] == []
    with torch.no_grad():
        wanted = task.targets(batch, batch["hidden"])
        seen = task.backbone(normalize(batch["image"], "imagenet"), batch["mask"], need=("bottom_up",)).bottom_up
        other = dict(batch, image=batch["image"].clone())
        hidden = batch["mask"].view(-1, 1, 2, 2).repeat_interleave(32, 2).repeat_interleave(32, 3)
        other["image"][hidden.expand_as(other["image"])] ^= 255
        same = task.backbone(normalize(other["image"], "imagenet"), batch["mask"], need=("bottom_up",)).bottom_up
        assert all(torch.equal(seen[stride], same[stride]) for stride in seen)
        assert not torch.equal(task.targets(other, batch["hidden"]), wanted)


def test_drop_path_is_keyed_on_the_samples() -> None:
    task, batch = task_of(drop_path=0.5), batch_of()
    depth = task.backbone.config.depth
    noise = keyed_uniform(0, batch["sample_numbers"], 2 * depth).view(3, depth, 2)
    assert noise.shape == noise_for(task.backbone, 3).shape
    images = normalize(batch["image"], "imagenet")
    with torch.no_grad():
        losses = task.regress(images, batch["mask"], batch["hidden"], task.targets(batch, batch["hidden"]), noise)
        torch.testing.assert_close(task(batch)["loss"][0], losses.sum())
        assert not torch.allclose(task.eval()(batch)["loss"][0], losses.sum())


def test_evaluation_is_on_the_stripes_and_all_units_can_be_asked_for() -> None:
    task, batch = task_of(), batch_of()
    task.eval()
    state = task.evaluate(batch)
    stripes = torch.tensor([[True, False, True, False]]).expand(3, -1)
    expected = dict(batch, mask=stripes, hidden=torch.tensor([[0, 2]]).expand(3, -1))
    with torch.no_grad():
        torch.testing.assert_close(state["loss_sum"], task(expected)["loss"][0])
        assert state["count"] == 6
        images = normalize(batch["image"], "imagenet")
        everywhere = task.predict_hidden(images, batch["mask"], torch.arange(4).expand(3, -1))
        asked = task.predict_hidden(images, batch["mask"], batch["hidden"])
    rows = torch.arange(3)[:, None]
    torch.testing.assert_close(everywhere[rows, batch["hidden"]], asked)


def test_groups_go_from_the_stem_to_the_head() -> None:
    task = task_of()
    groups = task.layer_groups()
    assert len(groups) == TINY.blocks_of_column + TINY.columns + 1
    assert sorted(name for group in groups for name, _ in group) == sorted(name for name, _ in task.named_parameters())
    assert {name.split(".")[0] for name, _ in groups[-1]} == {"head"}
