"""What the data workers make of images with captions."""

import random
import struct
from collections import Counter
from hashlib import blake2b
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop as TorchvisionCenterCrop
from torchvision.transforms import Compose, InterpolationMode, Resize

from unveil.config import CenterCrop, RandomResizedCrop, UnveilError
from unveil.data.crops import crop_box, resize_crop
from unveil.data.loader import EvaluationLoader, TrainingLoader
from unveil.data.sources.base import Sample
from unveil.tasks.contrastive.tokens import Tokenizer
from unveil.tasks.contrastive.view import CaptionedCollate, CaptionedView, caption_number

SIZE = 24
CAPTIONS = (("a cat",), ("two dogs", "some dogs", "dogs " * 20), ("a Cat",), ("a bird", "a small bird"))


def photo(number: int = 0) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC)


class Pairs:
    def __len__(self) -> int:
        return len(CAPTIONS)

    def __getitem__(self, index: int) -> Sample:
        return Sample(photo(index), f"photo {index}", None, index, CAPTIONS[index])

    def digest(self) -> dict[str, dict[str, Any]]:
        return {}


def view_of(**changes: Any) -> CaptionedView:
    settings = {"crop": RandomResizedCrop(scale=(0.9, 1.0)), "flip": False, "image_size": SIZE}
    return CaptionedView(**settings | {"tokenizer": Tokenizer(16)} | changes)


def test_a_view() -> None:
    sample = Pairs()[1]
    for seed in range(10):
        rng = random.Random(seed)
        wanted = resize_crop(sample.image, crop_box((48, 40), RandomResizedCrop(scale=(0.9, 1.0)), rng), SIZE, False)
        caption = rng.choice(sample.captions)
        view = view_of()(sample, random.Random(seed))
        assert torch.equal(view["image"], wanted)
        assert torch.equal(view["tokens"], open_clip.tokenize([caption], context_length=16)[0])
        assert view["cut"] == (caption == sample.captions[2])


def test_every_caption_has_the_same_chance() -> None:
    sample, view = Sample(photo(), "x", None, 0, ("one", "two", "three")), view_of()
    counts = Counter(view(sample, random.Random(seed))["caption_id"] for seed in range(300))
    assert len(counts) == 3 and all(70 < count < 130 for count in counts.values())


def test_mirrored_where_asked_for() -> None:
    sample = Pairs()[0]
    crop = CenterCrop()
    plain = view_of(crop=crop)(sample, random.Random(0))["image"]
    found = [view_of(crop=crop, flip=True)(sample, random.Random(seed))["image"] for seed in range(20)]
    assert {torch.equal(image, plain) for image in found} == {True, False}
    assert all(torch.equal(image, plain) or torch.equal(image, plain.flip(2)) for image in found)


def test_evaluation_sees_what_open_clip_shows_its_models() -> None:
    """Resize and CenterCrop, bicubic; at the edges of the crop theirs sees a little beyond them."""
    theirs = Compose([Resize(SIZE, InterpolationMode.BICUBIC), TorchvisionCenterCrop(SIZE)])
    image = photo(3).resize((64, 48))
    found = view_of(crop=CenterCrop())(Sample(image, "x", None, 0, ("a",)), random.Random(0))["image"]
    wanted = torch.from_numpy(np.array(theirs(image))).permute(2, 0, 1)
    inside = slice(2, -2)
    assert torch.equal(found[:, :, inside], wanted[:, :, inside])


def test_one_number_for_what_the_text_tower_cannot_tell_apart() -> None:
    def number(text: str) -> int:
        return caption_number(Tokenizer(16)([text])[0])

    assert number("a cat") == number(" A  Cat") != number("a rat")
    assert number("dogs " * 20) == number("dogs " * 30)
    # Of nothing but the tokens: processes of one run must agree on it.
    row = [49406, 320, 2368, 49407, *[0] * 12]
    assert number("a cat") == struct.unpack("<q", blake2b(struct.pack("<16q", *row), digest_size=8).digest())[0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_same_however_a_batch_is_split() -> None:
    def batches(workers: int, micro_batch_size: int) -> dict[str, torch.Tensor]:
        settings = {"seed": 4, "global_batch_size": 4, "micro_batch_size": micro_batch_size, "workers": workers}
        loader = TrainingLoader(Pairs(), view_of(flip=True), CaptionedCollate(), **settings)
        found = [batch for step in loader.steps(0, 12) for batch in step]
        return {name: torch.cat([batch[name] for batch in found]) for name in ("image", "tokens", "caption_id", "cut")}

    one = batches(0, 4)
    assert one["image"].shape == (48, 3, SIZE, SIZE) and one["image"].dtype == torch.uint8
    assert one["tokens"].shape == (48, 16) and one["tokens"].dtype == one["caption_id"].dtype == torch.int64
    assert one["cut"].dtype == torch.bool and 0 < int(one["cut"].sum()) < 12
    # Two photos have the same caption but for its letters' case.
    assert len(one["caption_id"].unique()) == 6
    for workers, micro_batch_size in ((2, 1), (1, 2)):
        other = batches(workers, micro_batch_size)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_evaluation_draws_the_same_captions_every_time() -> None:
    def ids(batch_size: int) -> list[int]:
        loader = EvaluationLoader(Pairs(), view_of(crop=CenterCrop()), CaptionedCollate(), batch_size=batch_size)
        return [number for batch in loader for number in batch["caption_id"][batch["valid"]].tolist()]

    assert ids(4) == ids(3) == ids(1)


def test_an_image_without_a_caption_is_refused() -> None:
    with pytest.raises(UnveilError, match="photo has no caption; give pairs, such as a .csv of path,caption"):
        view_of()(Sample(photo(), "photo", None, 0), random.Random(0))
