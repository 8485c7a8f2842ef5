"""Folders and lists that are not what their name says: one sentence each, with what was expected."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tasks.miniature_benchmarks import MINIATURES, save, write_voc
from tests.tasks.miniature_suites import write, write_json
from unveil.config import UnveilError
from unveil.tasks.contrastive.suites.layouts import open_zero_shot_suites
from unveil.tasks.contrastive.suites.names import read_names
from unveil.tasks.contrastive.suites.suite import SUITES


def fails(*given: str, root: Path | None) -> str:
    with pytest.raises(UnveilError) as error:
        open_zero_shot_suites(given, root)
    return str(error.value)


@pytest.mark.parametrize(
    "suite", [suite for suite in SUITES if suite.name not in ("pcam", "objectnet")], ids=lambda suite: suite.name
)
def test_a_folder_with_something_else(suite: object, tmp_path: Path) -> None:
    """The first folder that a set is looked for in, empty but for a stray file."""
    name, folder = suite.name, tmp_path / suite.folders[0]  # type: ignore[attr-defined]
    write(folder / "notes.txt", "nothing")
    said = fails(name, root=tmp_path)
    assert f"does not hold {name} as its authors distribute it" in said or name.startswith("imagenet"), said
    assert str(folder) in said and "\n" not in said, said


def test_a_folder_of_another_name_is_told_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MINIATURES["food101"].write(tmp_path, monkeypatch)
    (tmp_path / "food-101").rename(tmp_path / "meals")
    said = fails(f"food101={tmp_path / 'meals'}", root=None)
    assert "the folder's own name must be food-101" in said


def test_what_is_asked_for_must_be_there(tmp_path: Path) -> None:
    assert "there is no suite 'food'; choose among imagenet-1k" in fails("food", root=tmp_path)
    assert "names no folder of a suite" in fails("food101=", root=tmp_path)
    assert "names no folder of a suite" in fails("all=there", root=tmp_path)
    assert "no folder is given in which food101 lies" in fails("food101", root=None)
    assert "does not exist" in fails("food101", root=tmp_path / "nowhere")
    assert "does not exist" in fails(f"food101={tmp_path / 'nowhere'}", root=None)
    assert f"food101 is left out: {tmp_path} holds none of food-101" in fails("food101", root=tmp_path)


def damage_birdsnap(root: Path) -> str:
    write(root / "birdsnap/images.txt", "url\tmd5\tpath\tspecies_id\nx\t0\tBird_0/0.jpg\t1\n")
    return "images.txt does not say which species"


def damage_birdsnap_header(root: Path) -> str:
    write(root / "birdsnap/species.txt", "number\tname\n1\tBird\n")
    return "species.txt has not the columns id and common"


def damage_stl10(root: Path) -> str:
    write(root / "stl10_binary/test_X.bin", b"123")
    return "test_X.bin has not 27,648 bytes for each of 5 labels"


def damage_stl10_labels(root: Path) -> str:
    write(root / "stl10_binary/test_y.bin", bytes([11, 1, 1, 1, 1]))
    return "test_y.bin has labels beyond the 10 classes"


def damage_aircraft(root: Path) -> str:
    write(root / "fgvc-aircraft-2013b/data/images_variant_test.txt", "0000000 Zeppelin\n")
    return "KeyError: 'Zeppelin'"


def damage_cars(root: Path) -> str:
    write(root / "stanford_cars/devkit/cars_meta.mat", b"torn")
    # What follows is scipy's.
    return "cars_test_annos_withlabels.mat): "


def damage_mnist(root: Path) -> str:
    (root / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    return "files are missing, or not the original ones"


def damage_food(root: Path) -> str:
    write(root / "food-101/meta/test.json", "{")
    return "JSONDecodeError"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("birdsnap", damage_birdsnap),
        ("birdsnap", damage_birdsnap_header),
        ("stl10", damage_stl10),
        ("stl10", damage_stl10_labels),
        ("fgvc-aircraft", damage_aircraft),
        ("cars", damage_cars),
        ("food101", damage_food),
        ("mnist", damage_mnist),
    ],
)
def test_a_damaged_list(
    name: str, damage: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MINIATURES[name].write(tmp_path, monkeypatch)
    expected = damage(tmp_path)
    said = fails(name, root=tmp_path)
    assert expected in said and f"--suite {name}=FOLDER" in said and "\n" not in said, said


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("<annotation><object></object></annotation>", "an object has no name"),
        ("<annotation><object><name>zebra</name></object></annotation>", "'zebra' is not in list"),
        ("<annotation><object><name>bird</name></object></annotation>", "an object has no bndbox/xmin"),
        ("<annotation>", "no element found"),
    ],
)
def test_a_damaged_annotation(content: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_voc(tmp_path, monkeypatch)
    write(tmp_path / "VOCdevkit/VOC2007/Annotations/000002.xml", content)
    said = fails("voc2007", root=tmp_path)
    assert "Annotations/000002.xml cannot be read" in said and reason in said, said


def test_images_beside_the_folders(tmp_path: Path) -> None:
    save(tmp_path / "NWPU-RESISC45/airplane/1.jpg", 0)
    save(tmp_path / "NWPU-RESISC45/2.jpg", 0)
    assert "images lie beside them" in fails("resisc45", root=tmp_path)


def test_lists_of_names_that_are_none(tmp_path: Path) -> None:
    def said(content: object, *, templates: bool = False) -> str:
        path = tmp_path / "list.json"
        if isinstance(content, str):
            write(path, content)
        else:
            write_json(path, content)
        with pytest.raises(UnveilError) as error:
            read_names(None if templates else path, path if templates else None)
        return str(error.value)

    with pytest.raises(UnveilError, match="does not exist"):
        read_names(tmp_path / "nowhere.json", None)
    assert "cannot be read as JSON" in said("{")
    assert "should be lists by suite" in said(["a"])
    assert "food101 should be a list of texts" in said({"food101": "a"})
    assert "food101 should be a list of texts" in said({"food101": []})
    assert "food101 should be a list of texts" in said({"food101": ["a", ""]})
    assert "has no list of a suite (svhn, ...)" in said({"svhn": ["a"]})
    assert "'a photo' of food101 has no {} for the name" in said({"food101": ["a photo"]}, templates=True)
