"""What the classes of a set are called and the sentences about them: ours, or lists from files."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from unveil.config import UnveilError
from unveil.data.sources.missing import missing_path
from unveil.tasks.contrastive.prompts import BLANK, imagenet_templates
from unveil.tasks.contrastive.suites.suite import DISTRIBUTION_SHIFTS, SUITES
from unveil.tasks.contrastive.suites.zero_shot_set import LabelledSet

logger = logging.getLogger(__name__)

Lists = Mapping[str, tuple[str, ...]]
"""By key: see `_key`."""

NAMED_BLANK = "{c}"
"""How CLIP_benchmark's templates write the blank."""

ANYTHING = ("a photo of a {}.",)

TEMPLATES: dict[str, tuple[str, ...]] = {
    "cifar10": ("a photo of a {}.", "a small and blurry photo of a {}."),
    "cifar100": ("a photo of a {}.", "a small and blurry photo of a {}."),
    "birdsnap": ("a photo of a {}, a bird.",),
    "cars": ("a photo of a {}.", "a photo of a {}, a car."),
    "country211": ("a photo from {}.", "a photo that was taken in {}."),
    "dtd": ("a {} texture.", "a photo of a surface that is {}."),
    "eurosat": ("a satellite image of {}.", "land seen from above: {}."),
    "fer2013": ("a face that shows {}.", "a photo of a {} face."),
    "fgvc-aircraft": ("a photo of a {}, an airplane.",),
    "flowers": ("a photo of a {}, a flower.",),
    "food101": ("a photo of {}, a dish.",),
    "gtsrb": ("a photo of a traffic sign: {}.",),
    "mnist": ("a handwritten digit {}.", "the number {}."),
    "pcam": ("a microscope image of {}.",),
    "pets": ("a photo of a {}, a cat or a dog.",),
    "rendered-sst2": ("a {} review of a film.",),
    "resisc45": ("an aerial photo of a {}.", "a satellite image of a {}."),
    "ucf101": ("a video of {}.", "a photo of a person during {}."),
    "kinetics400": ("a video of {}.", "a photo of {}."),
    "kinetics600": ("a video of {}.", "a photo of {}."),
    "kinetics700": ("a video of {}.", "a photo of {}."),
}
"""In our own words and short. OpenAI's sentences for these sets belong to no package that we depend on: give them as a
file where a number is to be compared with a published one."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """Lists that stand for ours."""

    classes: Lists
    templates: Lists

    def of(self, found: LabelledSet) -> LabelledSet:
        """The set with the names and sentences that count for it; without names where nobody gives any.

        Raises:
            UnveilError: a list of classes that has another length than the set.
        """
        name = found.suite.name
        own = self.classes.get(_key(name))
        if own is None and found.in_imagenet and (whole := self.classes.get(_key(DISTRIBUTION_SHIFTS[0]))) is not None:
            own = tuple(whole[number] for number in found.in_imagenet if number < len(whole))
        if own is not None and len(own) != found.count:
            order = f" ({', '.join(found.classes[:3])}, ...)" if found.classes else ""
            raise UnveilError(
                f"--class-names has {len(own):,} names for {name}, which has {found.count:,} classes here{order}; give "
                "one name for each class, in this order"
            )
        templates = self.templates.get(_key(name))
        if templates is None and name in DISTRIBUTION_SHIFTS:
            templates = self.templates.get(_key(DISTRIBUTION_SHIFTS[0]))
        return replace(found, classes=own or found.classes, templates=templates or default_templates(name))


OURS = Names(classes={}, templates={})


def default_templates(name: str) -> tuple[str, ...]:
    """The sentences for a set where no file gives others."""
    return imagenet_templates() if name in DISTRIBUTION_SHIFTS else TEMPLATES.get(name, ANYTHING)


def read_names(classes: Path | None, templates: Path | None) -> Names:
    """Lists for several sets from JSON files: {"food101": ["apple pie", ...], ...}.

    The keys are the suites' names; case, - and _ make no difference. What ImageNet's variants have no list of their own
    for, they take from imagenet-1k's. Such files are CLIP_benchmark's en_classnames.json and
    en_zeroshot_classification_templates.json; the paper's numbers were measured with CLIP_benchmark.

    Raises:
        UnveilError: no such file, not such lists, or a sentence without {}.
    """
    sentences = _read(templates, "--templates")
    sentences = {key: tuple(text.replace(NAMED_BLANK, BLANK) for text in texts) for key, texts in sentences.items()}
    for key, texts in sentences.items():
        for text in texts:
            if BLANK not in text:
                raise UnveilError(f"{templates}: {text!r} of {key} has no {BLANK} for the name of the class")
    return Names(classes=_read(classes, "--class-names"), templates=sentences)


def _read(path: Path | None, option: str) -> Lists:
    if path is None:
        return {}
    if not path.is_file():
        raise UnveilError(missing_path(str(path)))
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UnveilError(f"{path} cannot be read as JSON ({error}); see docs/clip_evaluation.md") from None
    if not content or not isinstance(content, dict):
        raise UnveilError(f'{option} {path} should be lists by suite, such as {{"food101": ["apple pie", ...]}}')
    known = {_key(suite.name) for suite in SUITES}
    lists = {name: texts for name, texts in content.items() if _key(name) in known}
    if not lists:
        raise UnveilError(f"{path} has no list of a suite ({', '.join(list(content)[:3])}, ...); name them alike")
    for name, texts in lists.items():
        if not _is_list(texts):
            raise UnveilError(f"{option} {path}: {name} should be a list of texts, none of them empty")
    if unknown := sorted(content.keys() - lists.keys()):
        logger.info("%s: not used, since no suite has these names: %s", path, ", ".join(unknown))
    return {_key(name): tuple(texts) for name, texts in lists.items()}


def _is_list(texts: object) -> bool:
    return isinstance(texts, list) and bool(texts) and all(isinstance(text, str) and text.strip() for text in texts)


def _key(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
