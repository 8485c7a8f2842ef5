"""Images decoded and cropped per second of one core: ours against torchvision's ImageFolder, alternating in one run.

    uv run python benchmarks/loader.py [--images 70] [--rounds 9]
    uv run python benchmarks/loader.py --workers 1 2    # whole batches out of worker processes, on the clock

JPEGs of 500 x 375 (quality 90) are cut from real photos; each is decoded, cropped at random (area 0.2 to 1), resized to
224 px (bicubic), mirrored half of the time, and made a tensor. Processor time is measured, so that other work on the
machine matters little; what counts are the ratios. With --workers the data path of pre-training is measured as it runs,
masks and batches included, against torch's DataLoader on ImageFolder: there seconds count, on a machine with nothing
else to do.
"""

import argparse
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from unveil.config import BlockMasking, RandomResizedCrop
from unveil.data.crops import crop_box, least_side, resize_crop
from unveil.data.loader import TrainingLoader
from unveil.data.order import sample_index, sample_rng
from unveil.data.samples.photos import PHOTOS, photo_path
from unveil.data.sources.base import Source
from unveil.data.sources.folder import FolderSource
from unveil.data.sources.shards import ShardSource
from unveil.pretext.masking import masking_function
from unveil.pretext.view import MaskedCollate, MaskedView

SIZE = 224
CROP = RandomResizedCrop()
BATCH = 16


def write_photos(folder: Path, count: int, width: int, height: int) -> None:
    """`count` JPEGs, each another part of one of the embedded photos, brought to width x height."""
    rng = random.Random(0)
    folder.mkdir(parents=True)
    for number in range(count):
        with Image.open(photo_path(*PHOTOS[number % len(PHOTOS)])) as photo:
            share = rng.uniform(0.7, 1.0) * min(photo.width / width, photo.height / height)
            box_width, box_height = share * width, share * height
            left, top = rng.uniform(0, photo.width - box_width), rng.uniform(0, photo.height - box_height)
            box = (left, top, left + box_width, top + box_height)
            image = photo.convert("RGB").resize((width, height), Image.Resampling.BICUBIC, box=box)
        image.save(folder / f"{number:04d}.jpg", quality=90)


def ours(source: Source) -> Callable[[int], torch.Tensor]:
    def read(number: int) -> torch.Tensor:
        sample = source[sample_index(number, len(source), seed=0)]
        rng = sample_rng(0, number)
        box = crop_box(sample.image.size, CROP, rng)
        return resize_crop(sample.image, box, SIZE, rng.random() < 0.5)

    return read


def image_folder(root: Path, to_tensor: Callable[[Image.Image], torch.Tensor]) -> ImageFolder:
    steps = [
        transforms.RandomResizedCrop(SIZE, CROP.scale, CROP.ratio, transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        to_tensor,
    ]
    return ImageFolder(str(root), transforms.Compose(steps))


def torchvisions(root: Path, to_tensor: Callable[[Image.Image], torch.Tensor]) -> Callable[[int], torch.Tensor]:
    dataset = image_folder(root, to_tensor)
    return lambda number: dataset[number % len(dataset)][0]


def rates_of_workers(root: Path, workers: int, batches: int, rounds: int) -> dict[str, list[float]]:
    """Images per second out of `workers` processes, one value for each round. The first two batches of a loader, with
    which its processes start, are not counted."""
    grid = (SIZE // 14, SIZE // 14)
    masking = masking_function(BlockMasking(count=105, min_block=16))
    view = MaskedView(crop=CROP, flip=True, image_size=SIZE, teacher_size=None, grid=grid, masking=masking)
    collate = MaskedCollate(limit=masking.limit(grid))
    loader = TrainingLoader(
        FolderSource(root), view, collate, seed=0, global_batch_size=BATCH, micro_batch_size=BATCH, workers=workers
    )
    peer = image_folder(root, transforms.PILToTensor())
    # As often as it takes: ImageFolder has an end.
    again = [number % len(peer) for number in range((batches + 2) * BATCH)]
    contenders: dict[str, Callable[[], Iterator[Any]]] = {
        "DataLoader of ImageFolder, uint8": lambda: iter(DataLoader(peer, BATCH, sampler=again, num_workers=workers)),
        "unveil TrainingLoader, with masks": lambda: loader.steps(0, batches + 2),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, start in contenders.items():
            read = start()
            next(read), next(read)
            began = time.perf_counter()
            for _ in read:
                pass
            rates[name].append(batches * BATCH / (time.perf_counter() - began))
    return rates


def measure(contenders: dict[str, Callable[[int], torch.Tensor]], images: int, rounds: int) -> dict[str, list[float]]:
    """Images per second of processor time, one value for each round; the first round only warms up."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, read in contenders.items():
            start = time.process_time()
            for number in range(turn * images, (turn + 1) * images):
                read(number)
            if turn:
                rates[name].append(images / (time.process_time() - start))
    return rates


def report(title: str, rates: dict[str, list[float]], reference: str) -> None:
    print(f"\n{title}")
    for name, values in rates.items():
        ratios = [value / other for value, other in zip(values, rates[reference], strict=True)]
        print(
            f"  {name:<44} {statistics.median(values):7.1f} images/s   {statistics.median(ratios):5.2f}x "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=70)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, nargs="+", default=(), help="measure with so many processes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name) / "small", Path(name) / "large"
        write_photos(small / "class", arguments.images, 500, 375)
        for workers in arguments.workers:
            title = f"500 x 375 px, 224 px crops, batches of {BATCH} from {workers} worker{'s' * (workers > 1)}"
            rates = rates_of_workers(small, workers, 2 * arguments.images // BATCH, arguments.rounds)
            report(title, rates, "DataLoader of ImageFolder, uint8")
        if arguments.workers:
            return
        with tarfile.open(small / "shard.tar", "w") as tar:
            tar.add(small / "class", "class")
        contenders = {
            "torchvision ImageFolder, uint8": torchvisions(small, transforms.PILToTensor()),
            "torchvision ImageFolder, float": torchvisions(small, transforms.ToTensor()),
            "unveil FolderSource, uint8": ours(FolderSource(small / "class")),
            "unveil ShardSource, uint8": ours(ShardSource([small / "shard.tar"])),
        }
        rates = measure(contenders, arguments.images, arguments.rounds)
        report("500 x 375 px, 224 px crops, one core", rates, "torchvision ImageFolder, uint8")

        few = max(1, arguments.images // 10)
        write_photos(large / "class", few, 4000, 3000)
        contenders = {
            "torchvision ImageFolder, uint8": torchvisions(large, transforms.PILToTensor()),
            "unveil FolderSource, uint8": ours(FolderSource(large)),
            "unveil FolderSource, shortest_side of the crop": ours(
                FolderSource(large, shortest_side=least_side(CROP, SIZE))
            ),
        }
        report(
            "4000 x 3000 px, 224 px crops, one core",
            measure(contenders, few, max(3, arguments.rounds // 3)),
            "torchvision ImageFolder, uint8",
        )


if __name__ == "__main__":
    main()
