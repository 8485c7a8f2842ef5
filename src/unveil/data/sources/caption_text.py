"""What counts as a caption, and a tally of what does not."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

CAPTION_NAMES = ("caption", "captions", "text", "title", "description", "sentence")
"""What a header, or a field of JSON, may call captions; of several the first in this order."""

EMPTY = "empty captions"
NOT_UTF8 = "captions that are not UTF-8"
NOT_TEXT = "captions that are not text"
BAD_JSON = "captions in JSON that cannot be read"
TOO_LARGE = "captions in files over 1 MiB"
NO_CAPTION = "images without a caption"
NO_IMAGE = "captions without an image"
MISSING_IMAGE = "images that do not exist"
"""Why something is left out."""

LARGEST_TEXT = 2**20
"""Bytes of a file that is looked into for captions."""


class LeftOut:
    """How much of some image-text data cannot be used, by reason, with one example each."""

    def __init__(self) -> None:
        self._reasons: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """`example` says where; the first one is kept."""
        before, first = self._reasons.get(reason, (0, example))
        self._reasons[reason] = before + count, first

    def merge(self, other: "LeftOut", place: str = "") -> None:
        """Add another tally; `place` goes before its examples."""
        for reason, count, example in other:
            self.add(reason, place + example, count)

    def __iter__(self) -> Iterator[tuple[str, int, str]]:
        """Reason, count, example."""
        return ((reason, count, example) for reason, (count, example) in self._reasons.items())

    def __len__(self) -> int:
        return len(self._reasons)

    def __str__(self) -> str:
        return "; ".join(f"{count:,} {reason} (such as {example})" for reason, count, example in self)


def usable_captions(value: Any) -> tuple[list[str], list[str]]:
    """The captions in a text or a list of texts, without space around them, and a reason for each that is none.

    Bytes that are not UTF-8 must have been decoded with "surrogateescape".
    """
    captions, reasons = [], []
    for text in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
        if text is None:
            reasons.append(EMPTY)
        elif not isinstance(text, str):
            reasons.append(NOT_TEXT)
        elif not (stripped := text.strip()):
            reasons.append(EMPTY)
        elif not _is_utf8(stripped):
            reasons.append(NOT_UTF8)
        else:
            captions.append(stripped)
    return captions, reasons


def captions_in_text(data: bytes) -> tuple[list[str], list[str]]:
    """As `usable_captions`: the whole of a .txt is one caption."""
    return usable_captions(data.decode("utf-8-sig", "surrogateescape"))


def captions_in_json(data: bytes) -> tuple[list[str], list[str]]:
    """As `usable_captions`: a text or a list of texts under one of `CAPTION_NAMES`; nothing where there is none."""
    try:
        fields = json.loads(data)
    except UnicodeDecodeError:
        return [], [NOT_UTF8]
    except (ValueError, RecursionError):
        return [], [BAD_JSON]
    return usable_captions(caption_field(fields)) if isinstance(fields, dict) else ([], [])


def caption_field(fields: dict[str, Any]) -> Any:
    """The value of the first of `CAPTION_NAMES` that is there; no captions where none is."""
    return next((fields[name] for name in CAPTION_NAMES if name in fields), [])


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
