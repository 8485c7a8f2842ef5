"""Captions from class names."""

from dataclasses import replace

import pytest

from unveil.config import FashionScenes
from unveil.data.samples.scenes import FashionSceneSource
from unveil.data.sources.base import Sample, Source
from unveil.data.sources.class_captions import ClassCaptions

SENTENCES = tuple((f"a photo of class {label}", f"number {label}") for label in range(10))


def test_each_sample_has_the_sentences_about_its_class() -> None:
    source = FashionSceneSource(FashionScenes(count=12))
    captioned = ClassCaptions(source, SENTENCES)
    assert isinstance(captioned, Source) and len(captioned) == 12
    for place in range(12):
        before, after = source[place], captioned[place]
        assert after.captions == (f"a photo of class {before.label}", f"number {before.label}")
        assert (after.image, after.name, after.label, after.index) == (before.image, before.name, before.label, place)


def test_other_sentences_are_other_data() -> None:
    source = FashionSceneSource(FashionScenes(count=12))
    one, same, other = (
        ClassCaptions(source, words).digest() for words in (SENTENCES, list(SENTENCES), SENTENCES[::-1])
    )
    assert one == same and one.keys() == other.keys() == source.digest().keys() and one != other


def test_a_sample_without_a_label() -> None:
    class Unlabelled:
        def __getitem__(self, index: int) -> Sample:
            return replace(FashionSceneSource(FashionScenes(count=1))[index], label=None)

        def __len__(self) -> int:
            return 1

        def digest(self) -> dict[str, dict[str, object]]:
            return {}

    with pytest.raises(ValueError, match="scene 0 has no label"):
        ClassCaptions(Unlabelled(), SENTENCES)[0]
