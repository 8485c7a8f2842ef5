"""Makes garments.npz from the four files of Fashion-MNIST: python make_fashion_subset.py FOLDER_WITH_THE_GZ_FILES."""

import gzip
import sys
from pathlib import Path

import numpy as np


def first_of_each_class(prefix: str, per_class: int) -> np.ndarray:
    """The first garments of each class in the order of the split: classes x per_class x 28 x 28."""
    with gzip.open(Path(sys.argv[1]) / f"{prefix}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(Path(sys.argv[1]) / f"{prefix}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return np.stack([images[np.flatnonzero(labels == label)[:per_class]] for label in range(10)])


train, test = first_of_each_class("train", 1000), first_of_each_class("t10k", 200)
np.savez_compressed(Path(__file__).with_name("garments.npz"), train=train, test=test)
