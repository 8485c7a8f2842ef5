"""From the scans of a source, and of a held-out set, to what a person should know."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from unveil.config.errors import UnveilError
from unveil.data.check.duplicates import equal_groups, groups_of, near_pairs
from unveil.data.check.scan import Scan

SHOWN = 5
"""Examples of each kind in the text."""


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """What counts as what."""

    near: int = 15
    """Bits of 256 in which the hashes of near duplicates differ at most. Different photos differ in more than 90;
    the same one at half its size or as a coarser JPEG in at most 14, of a hundred 99."""
    smallest_side: int = 32
    """Pixels; smaller ones are odd."""
    largest_aspect: float = 4.0
    """Longer side over shorter one; more is odd."""

    def __post_init__(self) -> None:
        if not 0 <= self.near <= 31:
            raise UnveilError(f"--near is {self.near}; give 0 (equal hashes) to 31 of 256 bits")
        if self.smallest_side < 1 or self.largest_aspect < 1:
            raise UnveilError("--smallest-side and --largest-aspect must be at least 1")


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """Places are those of the source; the first place of each group is the one to keep."""

    names: list[str]
    sizes: np.ndarray
    """Int64 "n 2", width and height; 0 where it cannot be read."""
    unreadable: dict[int, str]
    exact: list[list[int]]
    """Groups of files with the same bytes."""
    near: list[list[int]]
    """Groups of images that look the same; of each group with the same bytes its first."""
    odd: dict[int, str]
    held_out: dict[int, tuple[str, int]]
    """Place -> name in the held-out set, and bits between the two (0 where the bytes are the same)."""

    def to_leave_out(self) -> list[str]:
        """Names of what cannot be read, of all duplicates but the first, and of what is in the held-out set."""
        places = {*self.unreadable, *self.held_out, *(place for group in self.exact + self.near for place in group[1:])}
        return [self.names[place] for place in sorted(places)]

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        named = self.names
        return {
            "images": len(named),
            "sizes": self._size_summary(),
            "unreadable": [{"name": named[place], "reason": reason} for place, reason in self.unreadable.items()],
            "exact_duplicates": [[named[place] for place in group] for group in self.exact],
            "near_duplicates": [[named[place] for place in group] for group in self.near],
            "odd_sizes": [{"name": named[place], "reason": reason} for place, reason in self.odd.items()],
            "held_out": [
                {"name": named[place], "held_out": other, "bits": bits}
                for place, (other, bits) in self.held_out.items()
            ],
            "to_leave_out": len(self.to_leave_out()),
        }

    def as_text(self) -> str:
        """Counts, and a few examples of each."""
        named, sizes = self.names, self._size_summary()
        count = len(named)
        lines = [f"{count:,} images, {count - len(self.unreadable):,} can be read"]
        if sizes:
            lines[0] += f", shorter side {sizes['least']:,} to {sizes['most']:,} px, median {sizes['median']:,}"
        exact, near = (sum(len(group) - 1 for group in groups) for groups in (self.exact, self.near))
        parts: list[tuple[str, int, list[str]]] = [
            ("cannot be read", len(self.unreadable), [f"{named[at]}: {why}" for at, why in self.unreadable.items()]),
            ("copies of the same file", exact, [self._group(group) for group in self.exact]),
            ("near duplicates", near, [self._group(group) for group in self.near]),
            ("odd sizes", len(self.odd), [f"{named[place]}: {reason}" for place, reason in self.odd.items()]),
            (
                "also in the held-out set",
                len(self.held_out),
                [f"{named[place]} = {other} ({bits} bits apart)" for place, (other, bits) in self.held_out.items()],
            ),
        ]
        for what, many, examples in parts:
            lines.append(f"{many:>10,}  {what}")
            lines += [f"{'':12}{example}" for example in examples[:SHOWN]]
        lines.append(f"{len(self.to_leave_out()):>10,}  to leave out")
        return "\n".join(lines)

    def _group(self, group: list[int]) -> str:
        more = f" and {len(group) - 2:,} more" if len(group) > 2 else ""
        return f"{self.names[group[0]]} = {self.names[group[1]]}{more}"

    def _size_summary(self) -> dict[str, int]:
        shorter = self.sizes.min(axis=1)
        shorter = shorter[shorter > 0]
        if not len(shorter):
            return {}
        return {"least": int(shorter.min()), "median": int(np.median(shorter)), "most": int(shorter.max())}


def compare(scan: Scan, settings: CheckSettings, held_out: Scan | None = None) -> CheckReport:
    """What is wrong with the scanned source."""
    count = len(scan.rows)
    rows = scan.rows if held_out is None else np.concatenate([scan.rows, held_out.rows])
    readable = np.flatnonzero(rows["readable"])
    same = [readable[group] for group in equal_groups(rows["content"][readable])]
    exact = [group[group < count].tolist() for group in same]
    overlap: dict[int, tuple[int, int]] = {}
    stands_for = np.arange(len(rows))
    for group in same:
        stands_for[group] = group[0]
        for place in group[group < count].tolist() if group[-1] >= count else ():
            overlap[place] = int(group[group >= count][0]), 0
    candidates = readable[(stands_for[readable] == readable) & ~rows["plain"][readable]]
    hashes, member_of = np.unique(rows["hash"][candidates], axis=0, return_inverse=True)
    # Equal hashes first, so that a picture that is there a thousand times is compared with the others once.
    alike = [candidates[group] for group in equal_groups(member_of.reshape(-1))]
    links = [np.stack([group[:-1], group[1:]], axis=1) for group in alike]
    first = candidates[np.unique(member_of.reshape(-1), return_index=True)[1]]
    pairs, _ = near_pairs(hashes, settings.near)
    links.append(first[pairs])
    near = groups_of(np.concatenate(links).astype(np.int64), len(rows))
    if held_out is not None:
        for group in near:
            for place in group[group < count].tolist():
                _add_nearest(overlap, place, group[group >= count], rows["hash"], settings.near)
    return CheckReport(
        names=scan.names,
        sizes=np.stack([scan.rows["width"], scan.rows["height"]], axis=1).astype(np.int64),
        unreadable=scan.unreadable,
        exact=[group for group in exact if len(group) > 1],
        near=[own for group in near if len(own := group[group < count].tolist()) > 1],
        odd=_odd_sizes(scan, settings),
        held_out={place: (held_out.names[other - count], bits) for place, (other, bits) in sorted(overlap.items())}
        if held_out is not None
        else {},
    )


def _add_nearest(
    overlap: dict[int, tuple[int, int]], place: int, others: np.ndarray, hashes: np.ndarray, most: int
) -> None:
    if place in overlap or not len(others):
        return
    bits = [sum(int(word).bit_count() for word in hashes[place] ^ hashes[other]) for other in others]
    nearest = int(np.argmin(bits))
    if bits[nearest] <= most:
        overlap[place] = int(others[nearest]), bits[nearest]


def _odd_sizes(scan: Scan, settings: CheckSettings) -> dict[int, str]:
    width, height = scan.rows["width"].astype(np.int64), scan.rows["height"].astype(np.int64)
    shorter, longer = np.minimum(width, height), np.maximum(width, height)
    small = scan.rows["readable"] & (shorter < settings.smallest_side)
    long = scan.rows["readable"] & (longer > settings.largest_aspect * shorter)
    return {int(place): f"{width[place]} x {height[place]} px" for place in np.flatnonzero(small | long)}
