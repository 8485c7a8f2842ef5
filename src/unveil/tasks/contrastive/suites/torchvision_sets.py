"""Sets that torchvision reads, in the layout in which it unpacks them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchvision import datasets

from unveil.config import UnveilError
from unveil.tasks.classification.suites.suite import not_laid_out
from unveil.tasks.contrastive.suites.class_folders import open_class_folders, spaced
from unveil.tasks.contrastive.suites.sources import (
    ListedImage,
    ListedSource,
    RelabelledSource,
    TorchvisionSource,
)
from unveil.tasks.contrastive.suites.suite import ZeroShotSuite
from unveil.tasks.contrastive.suites.zero_shot_set import LabelledSet, labelled

SIGNS = 43
"""Classes of GTSRB, whose files number them and name none."""

DIGITS = tuple(str(digit) for digit in range(10))

EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""Classes 0 to 6 in the tables of the FER2013 competition."""

TISSUES = ("healthy lymph node tissue", "lymph node tissue with a tumor")
"""Classes 0 and 1 of PatchCamelyon in our words: its files say 0 and 1."""


def open_listed(suite: ZeroShotSuite, folder: Path) -> LabelledSet:
    """Food-101, SUN397, Cars, Aircraft, Flowers-102: image files that torchvision lists.

    Raises:
        UnveilError: the folder does not hold this set.
    """
    kinds: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "food101": (datasets.Food101, {"split": "test"}),
        "sun397": (datasets.SUN397, {}),
        "cars": (datasets.StanfordCars, {"split": "test"}),
        "fgvc-aircraft": (datasets.FGVCAircraft, {"split": "test"}),
        "flowers": (datasets.Flowers102, {"split": "test"}),
    }
    kind, options = kinds[suite.name]
    # With this loader the reader gives paths, and our own decoding names the file that it fails on.
    dataset = _read(suite, folder, kind, loader=str, **options)
    # SUN397 is listed in the order of the disk, which another machine's need not be.
    images = sorted((ListedImage(path, int(label)) for path, label in dataset), key=lambda image: image.path)
    return labelled(suite, ListedSource(tuple(images)), [spaced(name) for name in dataset.classes])


def open_pictured(suite: ZeroShotSuite, folder: Path) -> LabelledSet:
    """CIFAR-10 and -100, GTSRB, MNIST, PCam, Pets: what torchvision gives as pictures.

    CIFAR's files are pickles; torchvision opens none whose checksum is not that of the original.

    Raises:
        UnveilError: the folder does not hold this set, or PCam's format cannot be read.
    """
    match suite.name:
        case "cifar10" | "cifar100":
            kind = datasets.CIFAR10 if suite.name == "cifar10" else datasets.CIFAR100
            dataset = _read(suite, folder, kind, train=False)
            names = tuple(spaced(name) for name in dataset.classes)
        case "gtsrb":
            dataset, names = _read(suite, folder, datasets.GTSRB, split="test"), ()
        case "mnist":
            dataset, names = _read(suite, folder, datasets.MNIST, train=False), DIGITS
        case "pcam":
            dataset, names = _read(suite, folder, datasets.PCAM, split="test"), TISSUES
        case "pets":
            dataset = _read(suite, folder, datasets.OxfordIIITPet, split="test")
            names = tuple(dataset.classes)
        case _:
            raise ValueError(f"no reader of torchvision's is known for {suite.name}")
    return LabelledSet(
        suite=suite, source=TorchvisionSource(dataset, str(folder)), classes=names, count=len(names) or SIGNS
    )


def open_fer2013(suite: ZeroShotSuite, folder: Path) -> LabelledSet:
    """The competition's table, or the folders that it was unpacked to; public and private test images.

    The classes are in the order of the folders' names in both.

    Raises:
        UnveilError: the folder holds neither.
    """
    if (folder / "test").is_dir():
        return open_class_folders(suite, folder / "test")
    if not any((folder / table).is_file() for table in ("fer2013.csv", "icml_face_data.csv")):
        raise not_laid_out(suite, folder, "there is neither such a table nor test/ in it")
    dataset = _read(suite, folder, datasets.FER2013, split="test")
    names = tuple(sorted(EMOTIONS))
    place_of = [names.index(emotion) for emotion in EMOTIONS]
    labels = tuple(place_of[label] for _, label in dataset)
    return labelled(suite, RelabelledSource(TorchvisionSource(dataset, str(folder)), labels), names)


def _read(suite: ZeroShotSuite, folder: Path, kind: Callable[..., Any], **options: Any) -> Any:
    if not folder.is_dir():
        raise not_laid_out(suite, folder, "it is not a folder")
    try:
        return kind(folder.parent, **options)
    except Exception as error:
        # torchvision lets out whatever goes wrong in a set's files.
        if "h5py" in str(error):
            raise UnveilError(f"{suite.name} is in HDF5, which needs another package: pip install h5py") from None
        reason = f"{type(error).__name__}: {error}"
        if "download" in reason:
            reason = "files are missing, or not the original ones"
        name = Path(suite.folders[0]).name
        other = f" (the folder's own name must be {name})" if folder.name != name else ""
        raise not_laid_out(suite, folder, f"{reason}{other}") from None
