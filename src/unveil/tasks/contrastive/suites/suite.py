"""Which benchmarks there are, under what names they lie on disk, how large the whole of each is, and its measure."""

from dataclasses import dataclass
from typing import Literal

from unveil.config import UnveilError
from unveil.tasks.classification.suites.suite import Suite, suite_named

Kind = Literal["images", "video", "retrieval"]
Measure = Literal["top-1", "mean of classes", "mean of top-1, top-5", "average precision", "recall"]


@dataclass(frozen=True)
class ZeroShotSuite(Suite):
    """One benchmark; `images` counts what is classified: images, cut-out objects or videos."""

    kind: Kind = "images"
    measure: Measure = "top-1"
    """What one number says how good a model is on it: what the set's authors, or the paper for video, report."""
    note: str = ""
    """What a reader of its numbers must know."""

    @property
    def unit(self) -> str:
        """What is counted."""
        return "videos" if self.kind == "video" else "images"


def _robustness(name: str) -> ZeroShotSuite:
    known = suite_named(name)
    return ZeroShotSuite(known.name, known.column, known.folders, known.images, known.layout)


def _images(
    name: str,
    column: str,
    folders: tuple[str, ...],
    images: int,
    layout: str,
    measure: Measure = "top-1",
    note: str = "",
) -> ZeroShotSuite:
    return ZeroShotSuite(name, column, folders, images, layout, "images", measure, note)


def _kinetics(classes: int, videos: int) -> ZeroShotSuite:
    folders = tuple(f"{prefix}{classes}{part}" for prefix in ("kinetics", "k", "kinetics-") for part in ("", "-2020"))
    return ZeroShotSuite(
        f"kinetics{classes}",
        f"K-{classes}",
        folders,
        videos,
        "val/ with a folder for each class, or with videos named as in annotations/val.csv",
        "video",
        "mean of top-1, top-5",
    )


_VTAB = "over all its images, since it has no official split; the published numbers are over the fifth that VTAB drew"
_CLASS_FOLDERS = "a folder for each class"

SUITES = (
    _robustness("imagenet-1k"),
    _robustness("v2"),
    _robustness("adversarial"),
    _robustness("rendition"),
    _robustness("sketch"),
    _robustness("objectnet"),
    _images("cifar10", "CIFAR-10", ("cifar-10-batches-py",), 10_000, "test_batch and batches.meta, for Python"),
    _images("cifar100", "CIFAR-100", ("cifar-100-python",), 10_000, "test and meta, for Python"),
    _images("birdsnap", "Birdsnap", ("birdsnap",), 2_443, "species.txt, images.txt, test_images.txt, download/images/"),
    _images(
        "caltech101",
        "Caltech-101",
        ("101_ObjectCategories", "caltech101/101_ObjectCategories", "caltech-101/101_ObjectCategories"),
        9_144,
        f"{_CLASS_FOLDERS}, BACKGROUND_Google among them",
        "mean of classes",
        "over all its images, since it has no official split; the published numbers are over VTAB's 6,084",
    ),
    _images("cars", "Cars", ("stanford_cars",), 8_041, "devkit/, cars_test/, cars_test_annos_withlabels.mat"),
    _images("country211", "Country211", ("country211",), 21_100, "test/ with a folder for each country"),
    _images("dtd", "DTD", ("dtd/dtd", "dtd"), 1_880, "images/ and labels/test1.txt"),
    _images("eurosat", "EuroSAT", ("eurosat/2750", "2750", "EuroSAT/2750"), 27_000, _CLASS_FOLDERS, "top-1", _VTAB),
    _images("fer2013", "FER2013", ("fer2013",), 7_178, "fer2013.csv, icml_face_data.csv, or test/ with class folders"),
    _images(
        "fgvc-aircraft",
        "Aircraft",
        ("fgvc-aircraft-2013b",),
        3_333,
        "data/images/, data/variants.txt, data/images_variant_test.txt",
        "mean of classes",
    ),
    _images(
        "flowers",
        "Flowers-102",
        ("flowers-102",),
        6_149,
        "jpg/, setid.mat, imagelabels.mat",
        "mean of classes",
    ),
    _images("food101", "Food-101", ("food-101",), 25_250, "images/ and meta/test.json"),
    _images("gtsrb", "GTSRB", ("gtsrb",), 12_630, "GTSRB/Final_Test/Images/ and GT-final_test.csv"),
    _images("mnist", "MNIST", ("MNIST",), 10_000, "raw/t10k-images-idx3-ubyte and the three other files, unpacked"),
    _images("pcam", "PCam", ("pcam",), 32_768, "camelyonpatch_level_2_split_test_x.h5 and ..._y.h5, unpacked"),
    _images("pets", "Pets", ("oxford-iiit-pet",), 3_669, "images/ and annotations/test.txt", "mean of classes"),
    _images("rendered-sst2", "Rendered SST2", ("rendered-sst2",), 1_821, "test/negative and test/positive"),
    _images("resisc45", "RESISC45", ("NWPU-RESISC45",), 31_500, _CLASS_FOLDERS, "top-1", _VTAB),
    _images("stl10", "STL-10", ("stl10_binary",), 8_000, "test_X.bin, test_y.bin, class_names.txt"),
    _images("sun397", "SUN397", ("SUN397",), 108_754, "ClassName.txt and folders a/ ... z/"),
    _images(
        "voc2007",
        "VOC2007",
        ("VOCdevkit/VOC2007", "VOC2007"),
        14_976,
        "JPEGImages/, Annotations/, ImageSets/Main/test.txt and aeroplane_test.txt ...",
        note="its objects are cut out and told apart, as in the published evaluation",
    ),
    _images(
        "voc2007-multilabel",
        "VOC2007, labels",
        ("VOCdevkit/VOC2007", "VOC2007"),
        4_952,
        "JPEGImages/, Annotations/, ImageSets/Main/test.txt and aeroplane_test.txt ...",
        "average precision",
    ),
    ZeroShotSuite(
        "ucf101",
        "UCF-101",
        ("UCF-101", "ucf101/UCF-101"),
        3_783,
        "folders of .avi for each class, and beside it (or in it) ucfTrainTestlist/",
        "video",
        note="over its first test list",
    ),
    _kinetics(400, 19_760),
    _kinetics(600, 29_779),
    _kinetics(700, 33_914),
    ZeroShotSuite(
        "flickr30k",
        "Flickr30k",
        ("flickr30k", "Flickr30k", "flickr30k-images"),
        1_000,
        "dataset_flickr30k.json (Karpathy) or results_20130124.token, and flickr30k-images/",
        "retrieval",
        "recall",
    ),
    ZeroShotSuite(
        "coco",
        "COCO",
        ("coco", "COCO", "mscoco"),
        5_000,
        "dataset_coco.json (Karpathy) with val2014/, or annotations/captions_val2017.json with val2017/",
        "retrieval",
        "recall",
    ),
)

TABLE_10 = (
    "imagenet-1k",
    "v2",
    "adversarial",
    "rendition",
    "sketch",
    "objectnet",
    "cifar10",
    "cifar100",
    "ucf101",
    "kinetics400",
    "kinetics600",
    "kinetics700",
)
"""In the order of Table 10b, whose average is over all of them."""

DISTRIBUTION_SHIFTS = TABLE_10[:6]
"""ImageNet-1K and the five whose average the gap of Table 10b is taken to (ImageNet-1K itself counts in it)."""

IMAGE_SETS = tuple(suite.name for suite in SUITES if suite.kind == "images" and suite.measure != "average precision")
"""The 27."""


def zero_shot_suite(name: str) -> ZeroShotSuite:
    """Raises UnveilError for a name that no suite has."""
    for suite in SUITES:
        if suite.name == name:
            return suite
    names = ", ".join(suite.name for suite in SUITES)
    raise UnveilError(f"there is no suite {name!r}; choose among {names}, or all")
