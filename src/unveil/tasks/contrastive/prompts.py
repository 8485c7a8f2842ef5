"""Class names and the sentences that they are put into: open_clip's lists, or one's own from files."""

import logging
from collections import Counter
from collections.abc import Sequence
from functools import cache

from unveil.config import UnveilError
from unveil.data.sources.labelled import read_classes
from unveil.data.sources.missing import missing_path
from unveil.tasks.contrastive.tokens import MARKS, Tokenizer

logger = logging.getLogger(__name__)

BLANK = "{}"
"""Where a template takes the name."""

AS_IT_IS = (BLANK,)
"""The template that adds nothing."""

IMAGENET = "imagenet"
"""Stands for OpenAI's 80 templates of ImageNet where the name of a file is expected."""

LIST_SUFFIX = ".txt"


@cache
def imagenet_classes() -> tuple[str, ...]:
    """OpenAI's names of ImageNet-1K's classes, in the order of their WordNet ids, as open_clip has them."""
    from open_clip import IMAGENET_CLASSNAMES

    return tuple(IMAGENET_CLASSNAMES)


@cache
def imagenet_templates() -> tuple[str, ...]:
    """OpenAI's 80 templates for ImageNet, as open_clip has them (there as functions)."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(template(BLANK) for template in OPENAI_IMAGENET_TEMPLATES)


def fill(template: str, name: str) -> str:
    """The sentence about one class."""
    return template.replace(BLANK, name)


def open_labels(given: str) -> tuple[str, ...]:
    """What `--labels` says: names with commas between them, or a .txt with one name a line.

    Raises:
        UnveilError: fewer than two names, an empty one, one that stands there twice, or a file that cannot be read.
    """
    if given.endswith(LIST_SUFFIX):
        labels = read_classes(given)
    else:
        labels = tuple(label.strip() for label in given.split(","))
        if "" in labels:
            raise UnveilError(f'--labels {given!r} has an empty name; put one comma between two, as in "a cat,a dog"')
        if (twice := first_twice(labels)) is not None:
            raise UnveilError(f"--labels names {twice!r} twice; leave one out")
    if len(labels) < 2:
        raise UnveilError(
            f'--labels {given!r} is one name only, and the answer is a choice; give at least two, as in "a cat,a dog"'
        )
    return labels


def open_templates(given: str) -> tuple[str, ...]:
    """What `--templates` says: "imagenet" for OpenAI's 80, or a file with a sentence a line and {} for the name.

    Raises:
        UnveilError: no such file, not text, a line without {}, or one that stands there twice.
    """
    return imagenet_templates() if given == IMAGENET else read_templates(given)


def read_templates(path: str) -> tuple[str, ...]:
    """Sentences of a text file, one a line, each with {} where the name goes. Empty lines count nothing.

    Raises:
        UnveilError: no such file, not text, no line, a line without {}, or one that stands there twice.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        raise UnveilError(missing_path(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UnveilError(f"cannot read {path} ({error}); give a text file with one template a line") from None
    for number, line in enumerate(lines, start=1):
        if line.strip() and BLANK not in line:
            raise UnveilError(
                f"{path}, line {number}: {line.strip()!r} has no {BLANK} for the name; write it like "
                f"a photo of a {BLANK}."
            )
    templates = tuple(line.strip() for line in lines if line.strip())
    if not templates:
        raise UnveilError(f"{path} holds no template; write one a line, such as a photo of a {BLANK}.")
    if (twice := first_twice(templates)) is not None:
        raise UnveilError(f"{path} has the template {twice!r} twice; leave one out, since each has one vote")
    return templates


def warn_of_long(texts: Sequence[str], context_length: int) -> None:
    """Log how many texts a model will cut off. Counted in the tokens of OpenAI's CLIP, which nearly all share."""
    # No token is of less than a byte, so that short texts, of which there may be many, need no counting.
    suspect = [text for text in texts if len(text.encode()) + MARKS > context_length]
    tokenizer = Tokenizer(context_length)
    long = [text for text in suspect if len(tokenizer.encode(text)) > context_length]
    if long:
        logger.warning(
            "%d of %d texts are longer than the %d tokens that the model reads, and are cut off there: %s ...",
            len(long),
            len(texts),
            context_length,
            long[0][:60],
        )


def first_twice(names: Sequence[str]) -> str | None:
    """The first that stands there more than once."""
    return next((name for name, times in Counter(names).items() if times > 1), None)
