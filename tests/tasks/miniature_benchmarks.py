"""The zero-shot benchmarks in the layouts of their authors, a few tiny pictures each, and a CLIP of known answers.

Each picture is one colour, which says what the CLIP answers about it: class a, and after it a + 1, a + 2, ... So a
picture of class c that is painted c - 4 has its class in fifth place.
"""

import csv
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.io import savemat
from torch import Tensor
from torchvision import datasets

from tests.tasks.miniature_suites import ADVERSARIAL, RENDITION, WORDNET_IDS, write, write_json

BEHIND = {"first": 0, "second": 1, "fifth": 4, "wrong": 7}
"""How many answers come before the right one."""


def painted(label: int, outcome: str, classes: int) -> int:
    """The class that is painted on a picture of `label`."""
    return (label - BEHIND[outcome]) % classes


def colour(code: int) -> tuple[int, int, int]:
    """Never a grey."""
    high, low = divmod(code, 256)
    return high, low, (low + 128) % 256


def save(path: Path, code: int, size: tuple[int, int] = (12, 10)) -> None:
    """Without loss, whatever the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour(code)).save(path, "PNG")


@dataclass(frozen=True)
class PaintedEmbedder:
    """Reads colours and knows certain texts by heart; any other is a KeyError."""

    place_of: dict[str, int]
    """Class of each text."""
    width: int
    step: int = 1
    """Grey values of a class: lossy videos shift them a little."""
    name: str = "painted"
    identity: str = "0123"
    image_size: int = 2
    context_length: int = 77
    logit_scale: float = 100.0
    logit_bias: float = 0.0
    device: torch.device = torch.device("cpu")

    @staticmethod
    def knowing(classes: Sequence[str], templates: Sequence[str], **options: Any) -> "PaintedEmbedder":
        texts = {template.replace("{}", name): place for place, name in enumerate(classes) for template in templates}
        return PaintedEmbedder(texts, len(classes), **options)

    def transform(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """The middles of its four quarters."""
        small = image.convert("RGB").resize((2, 2), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(small).transpose(2, 0, 1).copy())

    def encode_images(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        features = torch.zeros(len(images), self.width)
        for row, image in enumerate(images.flatten(2).permute(0, 2, 1).tolist()):
            for red, green, blue in image:
                grey = self.step > 1 or red == green == blue
                code = red // self.step if grey else 256 * red + green
                for behind in range(min(5, self.width)):
                    features[row, (code + behind) % self.width] += 1.0 - 0.2 * behind
        return F.normalize(features, dim=1)

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        places = torch.tensor([self.place_of[text] for text in texts], dtype=torch.int64)
        return F.one_hot(places, self.width).float()


LABELS = (0, 1, 2, 0, 1)
"""Of the five pictures that most sets have here."""
OUTCOMES = ("first", "wrong", "first", "fifth", "first")
"""Right at once 3 times, within five answers 4 times; class by class 1/2, 1/2, 1."""
FEW = ("first", "second", "first", "second", "first")
"""Where there are too few classes for a wrong answer."""


def codes(classes: int, outcomes: Sequence[str] = OUTCOMES) -> list[int]:
    """What is painted on the five pictures."""
    return [painted(label, outcome, classes) for label, outcome in zip(LABELS, outcomes, strict=True)]


def no_checksums(patch: pytest.MonkeyPatch, kind: type, **values: Any) -> None:
    """torchvision compares some files with the original's checksums."""
    for name, value in values.items():
        patch.setattr(kind, name, value)


def class_folders(folder: str, names: Sequence[str]) -> "Writer":
    def write_them(root: Path, patch: pytest.MonkeyPatch) -> None:
        outcomes = OUTCOMES if len(names) > 7 else FEW
        labels = LABELS if len(names) > 2 else tuple(label % 2 for label in LABELS)
        for name in names:
            (root / folder / name).mkdir(parents=True, exist_ok=True)
        for place, (label, outcome) in enumerate(zip(labels, outcomes, strict=True)):
            save(root / folder / names[label] / f"{place}.png", painted(label, outcome, len(names)))
        # So that every class has a picture: those beyond are all answered rightly.
        for number, name in enumerate(names[3:], start=3):
            save(root / folder / name / "more.png", number)

    return write_them


def write_cifar(root: Path, patch: pytest.MonkeyPatch, *, hundred: bool = False) -> None:
    classes = 100 if hundred else 10
    planes = [np.repeat(np.array(colour(code), np.uint8), 32 * 32) for code in codes(classes)]
    folder = root / ("cifar-100-python" if hundred else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    batch = {"data": np.stack(planes), ("fine_labels" if hundred else "labels"): list(LABELS)}
    names = {("fine_label_names" if hundred else "label_names"): [f"thing_{number}" for number in range(classes)]}
    test, meta = ("test", "meta") if hundred else ("test_batch", "batches.meta")
    (folder / test).write_bytes(pickle.dumps(batch))
    (folder / meta).write_bytes(pickle.dumps(names))
    kind = datasets.CIFAR100 if hundred else datasets.CIFAR10
    entry = {"filename": meta, "key": next(iter(names)), "md5": None}
    no_checksums(patch, kind, train_list=[], test_list=[[test, None]], meta=entry)


def write_birdsnap(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder, names = root / "birdsnap", [f"Bird {number}" for number in range(9)]
    species = [[str(number + 1), name, "Avis", name.replace(" ", "_")] for number, name in enumerate(names)]
    paths = [f"{names[label].replace(' ', '_')}/{place}.jpg" for place, label in enumerate(LABELS)]
    images = [["http://x", "0", path, str(label + 1)] for path, label in zip(paths, LABELS, strict=True)]
    gone = ["http://x", "0", "Bird_0/gone.jpg", "1"]
    training = ["http://x", "0", "Bird_3/training.jpg", "4"]
    tables = {
        "species.txt": [["id", "common", "scientific", "dir"], *species],
        "images.txt": [["url", "md5", "path", "species_id"], *images, gone, training],
        "test_images.txt": [["path"], *([path] for path in paths), ["Bird_0/gone.jpg"]],
    }
    for name, rows in tables.items():
        write(folder / name, "".join("\t".join(row) + "\n" for row in rows))
    for path, code in zip([*paths, training[2]], [*codes(9), 0], strict=True):
        save(folder / "download" / "images" / path, code)


def write_cars(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "stanford_cars"
    names = [f"Maker Model {number} 2012" for number in range(9)]
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(names, dtype=object)})
    annotations = np.empty((1, 5), dtype=[("fname", object), ("class", object)])
    for place, (label, code) in enumerate(zip(LABELS, codes(9), strict=True)):
        annotations[0, place] = (f"{place:05d}.jpg", label + 1)
        save(folder / "cars_test" / f"{place:05d}.jpg", code)
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": annotations})


def write_dtd(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder, names = root / "dtd/dtd", [f"look{number}" for number in range(9)]
    lines = [f"{names[label]}/{names[label]}_{place}.jpg" for place, label in enumerate(LABELS)]
    lines += [f"{name}/more.jpg" for name in names[3:]]
    for line, code in zip(lines, [*codes(9), *range(3, 9)], strict=True):
        save(folder / "images" / line, code)
    write(folder / "labels/test1.txt", "\n".join(lines) + "\n")
    write(folder / "labels/train1.txt", "look0/training.jpg\n")


def write_fer2013(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Class 0 is anger and 6 is neutral; the test is what is not used for training."""
    rows = [("2", 2, "PublicTest"), ("6", 4, "PrivateTest"), ("4", 5, "PrivateTest"), ("0", 0, "Training")]
    path = root / "fer2013/fer2013.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["emotion", "pixels", "Usage"])
        for emotion, grey, usage in rows:
            table.writerow([emotion, " ".join([str(grey)] * 48 * 48), usage])
    no_checksums(
        patch, datasets.FER2013, _RESOURCES={"fer": ("fer2013.csv", None), "icml": ("icml_face_data.csv", None)}
    )


def write_aircraft(root: Path, patch: pytest.MonkeyPatch) -> None:
    data, names = root / "fgvc-aircraft-2013b/data", ["A300 B4", *(f"7{number}7" for number in range(8))]
    lines = []
    for place, (label, code) in enumerate(zip(LABELS, codes(9), strict=True)):
        save(data / "images" / f"{place:07d}.jpg", code)
        lines.append(f"{place:07d} {names[label]}")
    write(data / "images_variant_test.txt", "\n".join(lines) + "\n")
    write(data / "variants.txt", "\n".join(names) + "\n")


def write_flowers(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Images 1 to 6, of which the third is for training."""
    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    labels = [LABELS[0], LABELS[1], 50, *LABELS[2:]]
    tests = [1, 2, 4, 5, 6]
    savemat(folder / "imagelabels.mat", {"labels": np.array(labels) + 1})
    savemat(folder / "setid.mat", {"tstid": np.array(tests), "trnid": np.array([3]), "valid": np.array([3])})
    for number, code in zip(tests, codes(102), strict=True):
        save(folder / "jpg" / f"image_{number:05d}.jpg", code)
    files = {"label": ("imagelabels.mat", None), "setid": ("setid.mat", None)}
    no_checksums(patch, datasets.Flowers102, _file_dict=files)


def write_food(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder, names = root / "food-101", [f"dish_{number}" for number in range(9)]
    tests: dict[str, list[str]] = {name: [] for name in names}
    for place, (label, code) in enumerate(zip(LABELS, codes(9), strict=True)):
        tests[names[label]].append(f"{names[label]}/{place}")
        save(folder / "images" / names[label] / f"{place}.jpg", code)
    write_json(folder / "meta/test.json", tests)


def write_gtsrb(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "gtsrb"
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for place, (label, code) in enumerate(zip(LABELS, codes(43), strict=True)):
        save(folder / "GTSRB/Final_Test/Images" / f"{place:05d}.ppm", code)
        lines.append(f"{place:05d}.ppm;12;10;1;1;10;8;{label}")
    write(folder / "GT-final_test.csv", "\n".join(lines) + "\n")


def write_mnist(root: Path, patch: pytest.MonkeyPatch) -> None:
    raw = root / "MNIST/raw"
    raw.mkdir(parents=True)
    images = np.stack([np.full((28, 28), code, np.uint8) for code in codes(10)])
    for part in ("t10k", "train"):
        header = np.array([0x803, 5, 28, 28], ">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = np.array([0x801, 5], ">i4").tobytes() + bytes(LABELS)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def write_pcam(root: Path, patch: pytest.MonkeyPatch) -> None:
    import h5py

    folder = root / "pcam"
    folder.mkdir(parents=True)
    labels = [label % 2 for label in LABELS]
    values = [colour(painted(label, outcome, 2)) for label, outcome in zip(labels, FEW, strict=True)]
    pixels = np.broadcast_to(np.array(values, np.uint8)[:, None, None], (5, 96, 96, 3))
    with h5py.File(folder / "camelyonpatch_level_2_split_test_x.h5", "w") as file:
        file["x"] = pixels
    with h5py.File(folder / "camelyonpatch_level_2_split_test_y.h5", "w") as file:
        file["y"] = np.array(labels, np.uint8).reshape(5, 1, 1, 1)


def write_pets(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "oxford-iiit-pet"
    breeds = [f"breed_{'abcdefghi'[number]}" for number in range(9)]
    labels = [*LABELS, *range(3, 9)]
    lines = []
    for place, (label, code) in enumerate(zip(labels, [*codes(9), *range(3, 9)], strict=True)):
        name = f"{breeds[label]}_{place}"
        lines.append(f"{name} {label + 1} 1 {label + 1}")
        save(folder / "images" / f"{name}.jpg", code)
    write(folder / "annotations/test.txt", "\n".join(lines) + "\n")


def write_stl10(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "stl10_binary"
    planes = [np.repeat(np.array(colour(code), np.uint8), 96 * 96) for code in codes(10)]
    write(folder / "test_X.bin", np.concatenate(planes).tobytes())
    write(folder / "test_y.bin", bytes(label + 1 for label in LABELS))
    write(folder / "class_names.txt", "\n".join(f"thing{number}" for number in range(10)) + "\n")


def write_sun397(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "SUN397"
    names = ["/a/abbey", "/a/apse/indoor", *(f"/b/base_camp{number}" for number in range(7))]
    for place, (label, code) in enumerate(zip(LABELS, codes(9), strict=True)):
        save(folder / names[label][1:] / f"sun_{place}.jpg", code)
    write(folder / "ClassName.txt", "\n".join(names) + "\n")


VOC = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair")


def write_voc(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Three test images: of a bicycle (left, painted so) and a bird (right, painted bicycle); two boats; a bird.

    The second is painted boat; the third chair, after which the aeroplane and the bicycle come, and the bird fourth.
    """
    folder = root / "VOCdevkit/VOC2007"
    halves = {"000001": (1, 1), "000002": (3, 3), "000004": (8, 8)}
    objects = {
        "000001": [("bicycle", (0, 0, 6, 10)), ("bird", (6, 0, 12, 10))],
        "000002": [("boat", (1, 1, 5, 5)), ("boat", (7, 2, 11, 9))],
        "000004": [("bird", (0, 0, 12, 10))],
    }
    for number, (left, right) in halves.items():
        image = Image.new("RGB", (12, 10), colour(left))
        image.paste(colour(right), (6, 0, 12, 10))
        path = folder / "JPEGImages" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, "PNG")
        entries = "".join(
            f"<object><name>{name}</name><difficult>1</difficult><bndbox><xmax>{box[2]}</xmax><xmin>{box[0]}</xmin>"
            f"<ymin>{box[1]}</ymin><ymax>{box[3]}</ymax></bndbox></object>"
            for name, box in objects[number]
        )
        write(folder / "Annotations" / f"{number}.xml", f"<annotation><folder>VOC2007</folder>{entries}</annotation>")
    write(folder / "ImageSets/Main/test.txt", "\n".join(halves) + "\n")
    for name in VOC:
        write(folder / f"ImageSets/Main/{name}_test.txt", "".join(f"{number} -1\n" for number in halves))
        write(folder / f"ImageSets/Main/{name}_trainval.txt", "000003 1\n")


def wordnet(folder: str, among: Sequence[int], name_of: Callable[[int], str] = WORDNET_IDS.__getitem__) -> "Writer":
    """Folders of ImageNet's classes; labels 0, 1, 2 are places in `among`."""

    def write_them(root: Path, patch: pytest.MonkeyPatch) -> None:
        for place, (label, code) in enumerate(zip(LABELS, codes(len(among)), strict=True)):
            name = f"ILSVRC2012_val_{place + 1:08d}.JPEG"
            save(root / folder / name_of(among[label]) / name, code)

    return write_them


def write_objectnet(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Nine objects that ImageNet has too, and one that it has not."""
    folder, names = root / "objectnet-1.0", [f"thing_{number}" for number in range(9)]
    lines = [f"label {line}" for line in range(1000)]
    label_of = {name: f"Thing {name[-1]} (Blue)" for name in names} | {"lamp": "Lamp"}
    shared = {label: f"{lines[place]}; {lines[place + 10]}" for place, label in enumerate(label_of.values())}
    del shared["Lamp"]
    write_json(folder / "mappings/objectnet_to_imagenet_1k.json", shared)
    write_json(folder / "mappings/folder_to_objectnet_label.json", label_of)
    write_json(folder / "mappings/pytorch_to_imagenet_2012_id.json", {str(number): number for number in range(1000)})
    write(folder / "mappings/imagenet_to_label_2012_v2", "\n".join(lines) + "\n")
    for place, (label, code) in enumerate(zip(LABELS, codes(9), strict=True)):
        save(folder / "images" / names[label] / f"{place}.png", code)
    save(folder / "images/lamp/0.png", 0)


def named(word: str, count: int) -> list[str]:
    return [f"{word}{number}" for number in range(count)]


CALTECH = ("BACKGROUND_Google", "Faces", "accordion", "airplanes", "anchor", "ant", "barrel", "bass", "beaver")
EUROSAT = ("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "River", "Sea", "Town")
EUROSAT_NAMES = (
    *("annual crop", "forest", "herbaceous vegetation", "highway", "industrial", "pasture", "river", "sea", "town"),
)
RESISC = ("airplane", "baseball_diamond", "beach", "bridge", "chaparral", "church", "cloud", "desert", "forest")
SCENES = ("abbey", "apse indoor", *(f"base camp{number}" for number in range(7)))
IMAGENET = range(1000)


def imagenet_names(among: Sequence[int]) -> list[str]:
    from open_clip import IMAGENET_CLASSNAMES

    return [IMAGENET_CLASSNAMES[number] for number in among]


Writer = Callable[[Path, pytest.MonkeyPatch], None]


class Miniature(NamedTuple):
    """A set on disk, and the shares of right answers that it comes to."""

    write: Writer
    classes: Sequence[str]
    top1: float = 3 / 5
    top5: float = 4 / 5
    mean_class: float = 2 / 3


def filled(write: Writer, classes: Sequence[str]) -> Miniature:
    """Besides the five pictures one that is answered rightly for each of the other six classes."""
    return Miniature(write, classes, 9 / 11, 10 / 11, 8 / 9)


MINIATURES: dict[str, Miniature] = {
    "imagenet-1k": Miniature(wordnet("val", IMAGENET), imagenet_names(IMAGENET)),
    "v2": Miniature(wordnet("imagenetv2-matched-frequency-format-val", IMAGENET, str), imagenet_names(IMAGENET)),
    "adversarial": Miniature(wordnet("imagenet-a", ADVERSARIAL), imagenet_names(ADVERSARIAL)),
    "rendition": Miniature(wordnet("imagenet-r", RENDITION), imagenet_names(RENDITION)),
    "sketch": Miniature(wordnet("sketch", IMAGENET), imagenet_names(IMAGENET)),
    "objectnet": Miniature(write_objectnet, [f"thing {number} (blue)" for number in range(9)]),
    "cifar10": Miniature(write_cifar, named("thing ", 10)),
    "cifar100": Miniature(lambda root, patch: write_cifar(root, patch, hundred=True), named("thing ", 100)),
    "birdsnap": Miniature(write_birdsnap, named("Bird ", 9)),
    "caltech101": filled(class_folders("caltech101/101_ObjectCategories", CALTECH), ("background", *CALTECH[1:])),
    "cars": Miniature(write_cars, [f"Maker Model {number} 2012" for number in range(9)]),
    "dtd": filled(write_dtd, named("look", 9)),
    "eurosat": filled(class_folders("eurosat/2750", EUROSAT), EUROSAT_NAMES),
    "fgvc-aircraft": Miniature(write_aircraft, ["A300 B4", *(f"7{number}7" for number in range(8))]),
    "flowers": Miniature(write_flowers, datasets.Flowers102.classes),
    "food101": Miniature(write_food, named("dish ", 9)),
    "mnist": Miniature(write_mnist, list("0123456789")),
    "pets": filled(write_pets, [f"Breed {letter}" for letter in "ABCDEFGHI"]),
    "rendered-sst2": Miniature(
        class_folders("rendered-sst2/test", ("negative", "positive")), ("negative", "positive"), 3 / 5, 1.0, 7 / 12
    ),
    "resisc45": filled(class_folders("NWPU-RESISC45", RESISC), [name.replace("_", " ") for name in RESISC]),
    "stl10": Miniature(write_stl10, named("thing", 10)),
    "sun397": Miniature(write_sun397, SCENES),
}
"""Sets of whose files alone everything follows."""
