"""The levels of a RevColV2 as features: the same numbers as from the network itself."""

from contextlib import nullcontext
from dataclasses import replace

import torch
from PIL import Image

from unveil.config.revcolv2 import revcolv2_small
from unveil.data.normalization import normalize
from unveil.models.backbone import probed_backbone
from unveil.models.revcolv2 import RevColV2
from unveil.tasks.classification.levels import RAW_SIDE, Level, LevelFeatures

TINY = replace(revcolv2_small(widths=(8, 16, 16), head_width=8), init_std=0.2)


def test_means_and_maps_of_all_levels_whatever_the_network_was_made_to_read() -> None:
    torch.manual_seed(0)
    whole = RevColV2(TINY).eval()
    probed = probed_backbone(TINY).eval()
    probed.load_state_dict(whole.state_dict())
    assert isinstance(probed, RevColV2)
    frozen = LevelFeatures(probed, normalization="imagenet", device=torch.device("cpu"), autocast=nullcontext)
    sizes = [(2, 8), (4, 16), (8, 16)]
    columns = ("bottom_up", "top_down")
    assert list(frozen.levels) == [Level(column, *size) for column in columns for size in sizes]
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    pixels = normalize(images, "imagenet")
    with torch.no_grad():
        found = whole(pixels, need=("bottom_up", "levels"))
    expected = [*found.bottom_up.values(), *whole.feature_maps(pixels).values()]
    features = frozen(images)
    assert features.shape == (2, frozen.width)
    *means, _ = features.split(frozen.widths, dim=1)
    for mean, maps, (_, width), said in zip(means, expected, 2 * sizes, frozen.maps(images), strict=True):
        assert maps.shape[1] == width
        torch.testing.assert_close(mean, maps.mean(dim=(2, 3)))
        torch.testing.assert_close(said, maps)
        assert not said.requires_grad


def test_beside_them_the_image_reduced() -> None:
    frozen = LevelFeatures(RevColV2(TINY), normalization="half", device=torch.device("cpu"), autocast=nullcontext)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    raw = frozen(images).split(frozen.widths, dim=1)[-1].view(3, RAW_SIDE, RAW_SIDE)
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((RAW_SIDE, RAW_SIDE), Image.Resampling.BOX)
    expected = torch.tensor(list(picture.getdata())).T.view(3, RAW_SIDE, RAW_SIDE)
    # Pillow rounds to whole bytes twice; "half" takes 0 to 255 to -1 to 1.
    torch.testing.assert_close((raw + 1) * 127.5, expected.float(), atol=1.01, rtol=0)
