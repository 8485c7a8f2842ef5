"""What is said of captions before training, and noticed while it runs."""

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from unveil.data.sources.captions import CaptionedSource, open_captioned
from unveil.tasks.contrastive import caption_report
from unveil.tasks.contrastive.caption_report import expected_repeats, report_captions
from unveil.tasks.contrastive.caption_watch import CaptionWatch, repeated_captions
from unveil.tasks.contrastive.tokens import Tokenizer
from unveil.tasks.contrastive.view import caption_number


def listed(folder: Path, captions: list[str]) -> CaptionedSource:
    rows = ["path,caption"]
    for number, caption in enumerate(captions):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
        rows.append(f'{number}.png,"{caption}"')
    (folder / "x.csv").write_text("\n".join(rows))
    return open_captioned([str(folder / "x.csv")])


def test_a_report(tmp_path: Path) -> None:
    source = listed(tmp_path, ["a cat", "a cat", "a dog", "", "dogs " * 20, "&nbsp;", "A CAT"])
    report = report_captions(source, Tokenizer(16), global_batch_size=3)
    assert report.lines() == [
        ("captions", "6 of 6 images (7 found), such as “a cat”, “a cat”, “a dog”"),
        ("tokens", "6.7 on average, 1 over 16 and cut off, 1 without a word"),
        # Half of the pairs: of 5 others 2 are the same, and 2 of the 5 are in the batch: 1 - 3 / 5 * 2 / 4 = 0.7.
        ("repeated", "about 35.00% of a batch of 3 have the caption of another of its images"),
        ("left out", f"1 empty captions (such as {tmp_path}/x.csv, line 5)"),
    ]
    assert str(report).splitlines()[1] == "tokens: 6.7 on average, 1 over 16 and cut off, 1 without a word"


def test_a_report_on_some_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_report, "LOOKED_AT", 10)
    source = listed(tmp_path, [f"{number} words{' and more' * 9 * (number < 20)}" for number in range(40)])
    report = report_captions(source, Tokenizer(8), global_batch_size=16)
    assert (report.captions, report.looked_at, report.too_long, report.repeats) == (40, 10, 5, 0.0)
    assert report.lines()[1][1].endswith("on average, 5 of 10 looked at over 8 and cut off")


def test_one_pair_cannot_repeat(tmp_path: Path) -> None:
    report = report_captions(listed(tmp_path, ["words " * 40]), Tokenizer(), global_batch_size=4)
    assert [name for name, _ in report.lines()] == ["captions", "tokens"]
    assert "“words words words words words words words words words words…”" in report.lines()[0][1]


@pytest.mark.parametrize(
    ("captions", "sampled", "batch_size"), [(50, 400, 16), (300, 400, 64), (5, 400, 8), (20, 60, 64)]
)
def test_expected_repeats_are_those_of_random_batches(captions: int, sampled: int, batch_size: int) -> None:
    """Against counting in batches drawn from a set of 400 pairs, of which only some may be known."""
    rng = random.Random(0)
    pairs = [rng.randrange(captions) for _ in range(400)]
    known = rng.sample(pairs, sampled)
    times = [known.count(caption) for caption in set(known)]
    shares = []
    for _ in range(400):
        batch = rng.sample(pairs, batch_size)
        shares.append(sum(batch.count(caption) > 1 for caption in batch) / batch_size)
    tolerance = 0.02 if sampled == 400 else 0.1
    assert expected_repeats(times, 400, batch_size) == pytest.approx(sum(shares) / len(shares), abs=tolerance)


def test_expected_repeats_at_the_edges() -> None:
    assert expected_repeats([], 10, 4) == expected_repeats([1], 10, 4) == expected_repeats([1, 1, 1], 3, 4) == 0.0
    assert expected_repeats([3], 3, 3) == expected_repeats([2, 2], 4, 8) == 1.0


def test_repeated_captions() -> None:
    ids = torch.tensor([5, -3, 5, 7, -3, 5, 2**62])
    assert repeated_captions(ids).tolist() == [True, True, True, False, True, True, False]


TOKENIZER = Tokenizer(8)


def batch_of(*texts: str) -> dict[str, Any]:
    tokens = TOKENIZER(texts)
    return {
        "tokens": tokens,
        "caption_id": torch.tensor([caption_number(row) for row in tokens]),
        "cut": torch.tensor([len(TOKENIZER.encode(text)) > 8 for text in texts]),
    }


class Loader:
    """Yields the same micro-batches at every step, and tells whether it was closed."""

    def __init__(self, *batches: dict[str, Any]) -> None:
        self.batches = list(batches)
        self.closed = False

    def steps(self, start: int, stop: int) -> Iterator[list[dict[str, Any]]]:
        try:
            for _ in range(start, stop):
                yield self.batches
        finally:
            self.closed = True


def alone(value: Any) -> list[Any]:
    return [value]


def test_a_repeated_caption_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    loader = Loader(batch_of("a cat", "a dog"), batch_of("two birds", "A Cat"))
    watch = CaptionWatch(loader.steps, TOKENIZER, alone)
    with caplog.at_level(logging.WARNING):
        assert list(watch.steps(4, 7)) == [loader.batches] * 3
    assert caplog.messages == [
        "in step 5 50.0 % of the pairs share their caption with another one of the batch, most of all “a cat” "
        "(2 of 4); the loss takes each for wrong, so give more varied captions or a smaller batch"
    ]
    assert (watch.seen, watch.cut) == (12, 0)


def test_repeats_that_are_expected_are_no_news(caplog: pytest.LogCaptureFixture) -> None:
    watch = CaptionWatch(Loader(batch_of("a cat", "a cat")).steps, TOKENIZER, alone, warn_of_repeats=False)
    assert len(list(watch.steps(0, 2))) == 2 and not caplog.messages


def test_a_caption_that_repeats_on_another_process(caplog: pytest.LogCaptureFixture) -> None:
    other = batch_of("a dog", "a fish")
    answers = iter([other["caption_id"], "a dog"])
    # Of the two values that are exchanged, the second is the text, which this process does not know.
    watch = CaptionWatch(Loader(batch_of("a cat", "a dog")).steps, TOKENIZER, lambda value: [value, next(answers)])
    with caplog.at_level(logging.WARNING):
        list(watch.steps(0, 2))
    assert "in step 1 50.0 % of the pairs" in caplog.text and "“a dog” (2 of 4)" in caplog.text


def test_captions_that_are_cut_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    loader = Loader(batch_of("a cat", "word " * 20))
    watch = CaptionWatch(loader.steps, TOKENIZER, alone)
    with caplog.at_level(logging.WARNING):
        steps = watch.steps(0, 10)
        for _ in range(3):
            next(steps)
        # A run that is stopped says so as well, and its workers are let go.
        steps.close()
    assert caplog.messages == ["3 of 6 captions (50.00 %) had more than 8 tokens and were cut off there"]
    assert loader.closed


def test_looking_for_repeats_becomes_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unveil.tasks.contrastive.caption_watch.FIRST_STEPS", 5)
    looks: list[Any] = []

    def gather(value: Any) -> list[Any]:
        looks.append(value)
        return [value]

    assert len(list(CaptionWatch(Loader(batch_of("a cat", "a dog")).steps, TOKENIZER, gather).steps(2, 23))) == 21
    # Steps 2 to 6, and 10, 15, 20.
    assert len(looks) == 8
