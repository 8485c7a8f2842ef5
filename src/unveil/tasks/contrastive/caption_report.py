"""What the captions of a training set are like: what is left out, how long they are, how often they repeat."""

import math
from collections import Counter
from dataclasses import dataclass

from unveil.data.sources.base import UnreadableSample
from unveil.data.sources.caption_text import LeftOut
from unveil.data.sources.captions import CaptionedSource
from unveil.tasks.contrastive.tokens import MARKS, Tokenizer

LOOKED_AT = 10_000
"""Most captions that are read and tokenised for the report."""


@dataclass(frozen=True)
class CaptionReport:
    """Made by `report_captions`. As text: a line for each thing to say."""

    images: int
    """With a caption."""
    images_found: int
    captions: int
    left_out: LeftOut
    looked_at: int
    """Captions from all over the data, one of each image, that the numbers below are about."""
    tokens: float
    """Mean of their lengths, start and end among them."""
    too_long: int
    """Longer than the context."""
    wordless: int
    """Nothing is left of them after cleaning."""
    repeats: float
    """Expected share of the pairs of a global batch whose caption another pair of it has, too."""
    examples: tuple[str, ...]
    context_length: int
    global_batch_size: int

    def lines(self) -> list[tuple[str, str]]:
        """Name and text of each line."""
        found = f" ({self.images_found:,} found)" if self.images_found > self.images else ""
        such_as = ", ".join(f"“{_shortened(text)}”" for text in self.examples)
        looked_at = "" if self.looked_at == self.captions else f" of {self.looked_at:,} looked at"
        lengths = [
            f"{self.tokens:.1f} on average",
            f"{self.too_long:,}{looked_at} over {self.context_length} and cut off",
        ]
        if self.wordless:
            lengths.append(f"{self.wordless:,}{looked_at} without a word")
        lines = [
            ("captions", f"{self.captions:,} of {self.images:,} images{found}, such as {such_as}"),
            ("tokens", ", ".join(lengths)),
        ]
        if self.repeats:
            shared = f"{self.repeats:.2%} of a batch of {self.global_batch_size:,}"
            lines.append(("repeated", f"about {shared} have the caption of another of its images"))
        if self.left_out:
            lines.append(("left out", str(self.left_out)))
        return lines

    def __str__(self) -> str:
        return "\n".join(f"{name}: {text}" for name, text in self.lines())


def report_captions(source: CaptionedSource, tokenizer: Tokenizer, global_batch_size: int) -> CaptionReport:
    """Look at captions, at most `LOOKED_AT` of them, without decoding an image."""
    count = len(source)
    examples: list[str] = []
    lengths: list[int] = []
    seen: Counter[tuple[int, ...]] = Counter()
    for turn in range(min(count, LOOKED_AT)):
        try:
            captions = source.captions(turn * count // min(count, LOOKED_AT))
        except UnreadableSample:
            continue
        caption = captions[turn % len(captions)]
        tokens = tokenizer.encode(caption)
        lengths.append(len(tokens))
        seen[tuple(tokenizer.fit(tokens).tolist())] += 1
        if len(examples) < 3:
            examples.append(caption)
    return CaptionReport(
        images=count,
        images_found=source.images_found,
        captions=source.caption_count(),
        left_out=source.left_out(),
        looked_at=len(lengths),
        tokens=sum(lengths) / max(1, len(lengths)),
        too_long=sum(length > tokenizer.context_length for length in lengths),
        wordless=sum(length == MARKS for length in lengths),
        repeats=expected_repeats(list(seen.values()), count, global_batch_size),
        examples=tuple(examples),
        context_length=tokenizer.context_length,
        global_batch_size=global_batch_size,
    )


def expected_repeats(times: list[int], count: int, batch_size: int) -> float:
    """Share of the pairs of a random batch whose caption stands in it twice or more.

    Args:
        times: how often each caption occurs in a sample of the pairs.
        count: of all pairs.
    """
    sampled, drawn = sum(times), min(batch_size, count) - 1
    if sampled < 2:
        return 0.0
    alone = 0.0
    for number in times:
        # So many of all other pairs have another caption, and the rest of the batch would have to be of these.
        without = (count - 1) * (1.0 - (number - 1) / (sampled - 1))
        if without >= drawn:
            alone += number * math.exp(_log_choices(without, drawn) - _log_choices(count - 1, drawn))
    return 1.0 - alone / sampled


def _log_choices(count: int | float, drawn: int) -> float:
    """Logarithm of the binomial coefficient, for a count that may be an estimate."""
    return math.lgamma(count + 1) - math.lgamma(drawn + 1) - math.lgamma(count - drawn + 1)


def _shortened(text: str, most: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
