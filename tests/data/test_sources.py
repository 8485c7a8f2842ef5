"""Sources made of other sources."""

import os
from pathlib import Path

import numpy as np
import pytest

from unveil.data.sources.base import JoinedSource, Source
from unveil.data.sources.folder import FolderSource
from unveil.data.sources.subset import SubsetSource


def test_joined_sources_count_on(tmp_path: Path, write_photos) -> None:
    write_photos(tmp_path, ["a/1.jpg", "a/2.jpg", "b/3.jpg"])
    one, two = FolderSource(tmp_path / "a"), FolderSource(tmp_path / "b")
    joined = JoinedSource([one, two, one])
    assert isinstance(joined, Source) and len(joined) == 5
    assert [os.path.basename(joined[i].name) for i in range(5)] == ["1.jpg", "2.jpg", "3.jpg", "1.jpg", "2.jpg"]
    assert [joined[i].index for i in range(5)] == list(range(5))
    assert np.array_equal(np.asarray(joined[4].image), np.asarray(one[1].image))
    assert set(joined.digest()) == {".", ". (2)", ". (3)"}
    with pytest.raises(IndexError):
        joined[5]


def test_a_subset_is_renumbered_and_has_a_digest_of_its_own(numbered) -> None:
    subset = SubsetSource(numbered(100), [7, 3, 99])
    assert isinstance(subset, Source) and len(subset) == 3
    assert [(subset[i].name, subset[i].index) for i in range(3)] == [("image 7", 0), ("image 3", 1), ("image 99", 2)]
    with pytest.raises(IndexError):
        subset[3]
    others = [SubsetSource(numbered(100), [3, 7, 99]), SubsetSource(numbered(101), [7, 3, 99])]
    assert subset.digest() == SubsetSource(numbered(100), [7, 3, 99]).digest()
    assert all(subset.digest() != other.digest() for other in others)
    assert subset.digest()["numbers, a part"]["count"] == 3
