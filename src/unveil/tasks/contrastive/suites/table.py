"""What the benchmarks gave: Table 10b's columns with their average and gap, every set's numbers, and retrieval."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unveil.tasks.contrastive.retrieval import RANKS, Retrieval
from unveil.tasks.contrastive.suites.suite import (
    DISTRIBUTION_SHIFTS,
    IMAGE_SETS,
    SUITES,
    TABLE_10,
    ZeroShotSuite,
    zero_shot_suite,
)


@dataclass(frozen=True, kw_only=True)
class ZeroShotScore:
    """What one set gave. Shares are 0 to 1."""

    suite: str
    score: float
    """By the set's own measure."""
    top1: float | None
    """None where an image shows several classes."""
    top5: float | None
    mean_class: float | None
    """Mean of the accuracies of the classes that have images."""
    images: int
    """Or objects or videos, over which all are."""
    classes: int
    templates: int
    unreadable: dict[str, str]
    """Those that could not be read and are left out: name and reason."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RetrievalScore:
    """What one retrieval benchmark gave."""

    suite: str
    found: Retrieval
    unreadable: dict[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ZeroShotReport:
    """What all benchmarks gave, and which of those asked for are left out, and why."""

    scores: tuple[ZeroShotScore, ...]
    retrieval: tuple[RetrievalScore, ...]
    missing: dict[str, str]

    def among(self, names: Collection[str]) -> tuple[ZeroShotScore, ...]:
        """The scores of the sets that are there."""
        return tuple(score for score in self.scores if score.suite in names)

    @property
    def average(self) -> float | None:
        """Mean score over those of Table 10b's twelve that are there."""
        return _mean([score.score for score in self.among(TABLE_10)])

    @property
    def gap(self) -> float | None:
        """ImageNet-1K's score minus the mean over it and its variants that are there; None where there are not both."""
        shifts = self.among(DISTRIBUTION_SHIFTS)
        own = next((score.score for score in shifts if score.suite == DISTRIBUTION_SHIFTS[0]), None)
        mean = _mean([score.score for score in shifts])
        return None if own is None or mean is None or len(shifts) == 1 else own - mean

    @property
    def image_average(self) -> float | None:
        """Mean top-1 over those of the 27 image sets that are there: so the paper's list averages all of them."""
        return _mean([score.top1 for score in self.among(IMAGE_SETS) if score.top1 is not None])

    @property
    def own_average(self) -> float | None:
        """The same with each set's own measure."""
        return _mean([score.score for score in self.among(IMAGE_SETS)])

    def as_json(self) -> dict[str, Any]:
        """Shares, 0 to 1."""
        sets = {
            score.suite: {
                "measure": zero_shot_suite(score.suite).measure,
                **{name: value for name, value in asdict(score).items() if name != "suite"},
            }
            for score in self.scores
        }
        pairs = {
            score.suite: {
                **score.found.numbers(),
                "images": score.found.images,
                "texts": score.found.texts,
                "unreadable": score.unreadable,
                "notes": score.notes,
            }
            for score in self.retrieval
        }
        return {
            "sets": sets,
            "retrieval": pairs,
            "table_10b": {
                "sets": [score.suite for score in self.among(TABLE_10)],
                "average": self.average,
                "gap": self.gap,
                "gap_over": [score.suite for score in self.among(DISTRIBUTION_SHIFTS)],
            },
            "image_sets": {
                "sets": [score.suite for score in self.among(IMAGE_SETS)],
                "average_top1": self.image_average,
                "average_of_own_measures": self.own_average,
            },
            "missing": self.missing,
        }


Cells = list[list[str]]


def tables(report: ZeroShotReport) -> list[Cells]:
    """Headings and rows in per cent: Table 10b, all sets, retrieval; without those that nothing was asked of."""
    asked = {score.suite for score in report.scores} | {score.suite for score in report.retrieval} | {*report.missing}
    shown = [suite for suite in SUITES if suite.name in asked]
    labelled = [suite for suite in shown if suite.kind != "retrieval"]
    found: list[Cells] = []
    if report.among(TABLE_10):
        found.append(_table_10([suite for suite in labelled if suite.name in TABLE_10], report))
    if report.scores:
        found.append(_all_sets(labelled, report))
    if report.retrieval:
        found.append(_retrieval([suite for suite in shown if suite.kind == "retrieval"], report))
    return found


def _table_10(suites: Sequence[ZeroShotSuite], report: ZeroShotReport) -> Cells:
    """One row; the gap stands after the image sets, as in the paper."""
    score_of = {score.suite: score.score for score in report.scores}
    images = [(suite.column, _percent(score_of.get(suite.name))) for suite in suites if suite.kind == "images"]
    videos = [(suite.column, _percent(score_of.get(suite.name))) for suite in suites if suite.kind == "video"]
    count, shifts = len(report.among(TABLE_10)), len(report.among(DISTRIBUTION_SHIFTS))
    gap = "gap" if shifts == len(DISTRIBUTION_SHIFTS) else f"gap of {shifts}"
    average = "avg. all" if count == len(TABLE_10) else f"avg. of {count}"
    columns = [
        *images,
        *([] if report.gap is None else [(gap, _percent(report.gap))]),
        *videos,
        (average, _percent(report.average)),
    ]
    return [["Table 10b", *(name for name, _ in columns)], ["zero-shot", *(value for _, value in columns)]]


def _all_sets(suites: Sequence[ZeroShotSuite], report: ZeroShotReport) -> Cells:
    """A row for each set, and one for the average over the paper's 27 image sets."""
    score_of = {score.suite: score for score in report.scores}
    rows = [["set", "score", "measure", "top-1", "top-5", "classes' mean", "classes", "templates", "count"]]
    for suite in suites:
        score = score_of.get(suite.name)
        if score is None:
            rows.append([suite.column, "-", suite.measure, "-", "-", "-", "-", "-", "-"])
            continue
        shares = [_percent(share) for share in (score.top1, score.top5, score.mean_class)]
        counts = [f"{count:,}" for count in (score.classes, score.templates, score.images)]
        rows.append([suite.column, _percent(score.score), suite.measure, *shares, *counts])
    count = len(report.among(IMAGE_SETS))
    if count:
        title = f"avg. of {count} of the {len(IMAGE_SETS)} image sets" if count < len(IMAGE_SETS) else "avg. of images"
        rows.append([title, _percent(report.own_average), "", _percent(report.image_average), "", "", "", "", ""])
    return rows


def _retrieval(suites: Sequence[ZeroShotSuite], report: ZeroShotReport) -> Cells:
    score_of = {score.suite: score.found for score in report.retrieval}
    ways = [f"text to image R@{RANKS[0]}", *(f"R@{rank}" for rank in RANKS[1:])]
    ways += [f"image to text R@{RANKS[0]}", *(f"R@{rank}" for rank in RANKS[1:])]
    rows = [["retrieval", *ways, "images", "texts"]]
    for suite in suites:
        found = score_of.get(suite.name)
        if found is None:
            rows.append([suite.column, *("-" for _ in ways), "-", "-"])
            continue
        shares = [found.text_to_image[rank] for rank in RANKS] + [found.image_to_text[rank] for rank in RANKS]
        rows.append([suite.column, *map(_percent, shares), f"{found.images:,}", f"{found.texts:,}"])
    return rows


def remarks(report: ZeroShotReport) -> list[str]:
    """What must be read with the tables: nothing is left out of them silently."""
    lines = [f"{suite} is left out: {why}" for suite, why in report.missing.items()]
    everything: list[ZeroShotScore | RetrievalScore] = [*report.scores, *report.retrieval]
    for score in everything:
        lines += [f"{score.suite}: {note}" for note in score.notes]
        if score.unreadable:
            suite = zero_shot_suite(score.suite)
            examples = "; ".join(f"{name} ({reason})" for name, reason in list(score.unreadable.items())[:3])
            lines.append(f"{score.suite}: {len(score.unreadable):,} {suite.unit} left out as unreadable: {examples}")
    for what, names in (("Table 10b", TABLE_10), ("the paper's list of image sets", IMAGE_SETS)):
        there = {score.suite for score in report.among(names)}
        if 0 < len(there) < len(names):
            lacking = ", ".join(zero_shot_suite(name).column for name in names if name not in there)
            lines.append(f"the average over {what} is over {len(there)} of its {len(names)} sets, without {lacking}")
    return lines


def as_text(report: ZeroShotReport) -> str:
    """The tables for a terminal, and the remarks."""
    blocks = ["\n".join(_aligned(rows)) for rows in tables(report)]
    notes = remarks(report)
    return "\n\n".join([*blocks, *(["\n".join(notes)] if notes else [])])


def as_markdown(report: ZeroShotReport) -> str:
    """The same for a document."""
    blocks = []
    for heading, *rows in tables(report):
        lines = [heading, ["---", *("---:" for _ in heading[1:])], *rows]
        blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    notes = "\n".join(f"- {remark}" for remark in remarks(report))
    return "\n\n".join([*blocks, *([notes] if notes else [])]) + "\n"


def _aligned(rows: Cells) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:<{width}}" if place == 0 else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
