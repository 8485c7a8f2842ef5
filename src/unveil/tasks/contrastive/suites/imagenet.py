"""ImageNet-1K and its variants as zero-shot sets: the same images as for classifiers, with names instead of a head."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from unveil.data.sources.folder import FolderSource
from unveil.data.sources.subset import SubsetSource
from unveil.tasks.classification.suites.layouts import open_suite
from unveil.tasks.classification.suites.suite import suite_named
from unveil.tasks.contrastive.prompts import imagenet_classes
from unveil.tasks.contrastive.suites.sources import RelabelledSource
from unveil.tasks.contrastive.suites.suite import ZeroShotSuite
from unveil.tasks.contrastive.suites.zero_shot_set import LabelledSet, labelled


def open_imagenet(suite: ZeroShotSuite, folder: Path) -> LabelledSet:
    """One of ImageNet-1K, V2, Adversarial, Rendition, Sketch: with 1000 names, or with the variant's 200.

    Raises:
        UnveilError: the folder does not hold this set.
    """
    # The other protocol is how the released classifiers saw V2; in the paper's zero-shot evaluation all are seen alike.
    found = open_suite(suite_named(suite.name), folder, protocol="authors")
    candidates = tuple(range(len(imagenet_classes()))) if found.candidates is None else found.candidates
    labels = _places(found.accepted[:, 0].tolist(), candidates)
    names = [imagenet_classes()[number] for number in candidates]
    opened = labelled(suite, RelabelledSource(found.source, labels), names, notes=found.notes)
    return replace(opened, in_imagenet=candidates)


def open_objectnet(suite: ZeroShotSuite, folder: Path) -> LabelledSet:
    """Those 113 of ObjectNet's objects that ImageNet-1K has too, under ObjectNet's names, with the red border left on.

    This is the rule of the paper's zero-shot evaluation; a classifier (`unveil eval`) answers with ImageNet's classes.

    Raises:
        UnveilError: the folder does not hold this set.
    """
    found = open_suite(suite_named(suite.name), folder)
    mappings = folder / "mappings"
    label_of_folder = json.loads((mappings / "folder_to_objectnet_label.json").read_text(encoding="utf-8"))
    shared = json.loads((mappings / "objectnet_to_imagenet_1k.json").read_text(encoding="utf-8"))
    folders = sorted(name for name, label in label_of_folder.items() if label in shared)
    subset = found.source
    assert isinstance(subset, SubsetSource) and isinstance(subset.source, FolderSource)
    labels, classes = subset.source.labels(), subset.source.classes
    assert labels is not None and classes is not None
    own = _places([classes[label] for label in labels[subset.places]], folders)
    names = [label_of_folder[name].lower() for name in folders]
    note = f"photos of objects that ImageNet-1K lacks do not count: {found.without_label:,}"
    return labelled(suite, RelabelledSource(subset, own), names, notes=[note] if found.without_label else [])


def _places(values: Iterable[object], order: Iterable[object]) -> tuple[int, ...]:
    place_of = {value: place for place, value in enumerate(order)}
    return tuple(place_of[value] for value in values)
