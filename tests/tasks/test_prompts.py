"""Lists of names and sentences: open_clip's, and those of people, with what can be wrong with them."""

from pathlib import Path

import open_clip
import pytest

from unveil.config import UnveilError
from unveil.tasks.contrastive.prompts import (
    fill,
    imagenet_classes,
    imagenet_templates,
    open_labels,
    open_templates,
)


def test_imagenets_sentences_are_open_clips() -> None:
    templates = imagenet_templates()
    assert len(templates) == 80 and len(imagenet_classes()) == 1000
    for name in ("tench", "{odd} name {}"):
        ours = [fill(template, name) for template in templates]
        assert ours == [template(name) for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert open_templates("imagenet") == templates


def test_labels_between_commas_and_from_a_file(tmp_path: Path) -> None:
    assert open_labels("a cat, a dog,Straße") == ("a cat", "a dog", "Straße")
    (tmp_path / "names.txt").write_text("black, white\nred\n", encoding="utf-8")
    assert open_labels(str(tmp_path / "names.txt")) == ("black, white", "red")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("a cat", "is one name only"),
        ("a cat,,a dog", "has an empty name"),
        ("", "has an empty name"),
        ("a cat,a dog,a cat", "names 'a cat' twice"),
        ("nowhere.txt", "nowhere.txt does not exist"),
    ],
)
def test_labels_that_cannot_be(given: str, complaint: str) -> None:
    with pytest.raises(UnveilError, match=complaint):
        open_labels(given)


def test_templates_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "sentences.txt"
    file.write_text("\ufeffa photo of a {}.\r\n\n  the {} and another {}\n", encoding="utf-8")
    templates = open_templates(str(file))
    assert templates == ("a photo of a {}.", "the {} and another {}")
    assert fill(templates[1], "{x}") == "the {x} and another {x}"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a photo of a {}.\nno blank\n", r"line 2: 'no blank' has no \{\} for the name"),
        (b"\n\n", "holds no template"),
        (b"a {}\nthe {}\na {}\n", r"has the template 'a \{\}' twice"),
        (b"a {} \xff\xfe", "cannot read .*give a text file"),
    ],
)
def test_templates_that_cannot_be(content: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "sentences.txt").write_bytes(content)
    with pytest.raises(UnveilError, match=complaint):
        open_templates(str(tmp_path / "sentences.txt"))
    with pytest.raises(UnveilError, match="does not exist"):
        open_templates(str(tmp_path / "none.txt"))
