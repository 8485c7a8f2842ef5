"""The zero-shot benchmarks on miniature sets in the layouts of their authors, against answers counted by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tasks.miniature_benchmarks import (
    FEW,
    LABELS,
    MINIATURES,
    VOC,
    PaintedEmbedder,
    class_folders,
    codes,
    named,
    save,
    write_fer2013,
    write_gtsrb,
    write_pcam,
    write_voc,
)
from tests.tasks.miniature_suites import write_json
from unveil.build.clip_evaluation import evaluate_clip
from unveil.build.evaluation import ReadingSettings
from unveil.config import UnveilError
from unveil.engine import Parallel
from unveil.tasks.contrastive.suites.layouts import open_zero_shot_suites
from unveil.tasks.contrastive.suites.names import OURS, Names, default_templates, read_names
from unveil.tasks.contrastive.suites.suite import DISTRIBUTION_SHIFTS, IMAGE_SETS, SUITES, TABLE_10
from unveil.tasks.contrastive.suites.table import ZeroShotScore
from unveil.tasks.contrastive.suites.zero_shot_set import LabelledSet

CPU = Parallel(torch.device("cpu"))


def score(
    root: Path, name: str, classes: Sequence[str], *, names: Names = OURS, templates: Sequence[str] = (), **options: Any
) -> ZeroShotScore:
    """Of one set by a CLIP that knows these classes, in this order, and the sentences for them."""
    (found,), missing = open_zero_shot_suites([name], root, names=names)
    assert not missing and isinstance(found, LabelledSet)
    embedder = PaintedEmbedder.knowing(classes, templates or default_templates(name), **options)
    report = evaluate_clip(embedder, [found], {}, ReadingSettings(batch_size=2), CPU)
    return report.scores[0]


@pytest.mark.parametrize("name", MINIATURES)
def test_a_set_in_its_own_layout(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    miniature = MINIATURES[name]
    miniature.write(tmp_path, monkeypatch)
    # ImageNet's 80 sentences would take most of the time.
    names = Names(classes={}, templates={"imagenet1k": ("a {}",)})
    sentences = ("a {}",) if name in DISTRIBUTION_SHIFTS else default_templates(name)
    found = score(tmp_path, name, miniature.classes, names=names, templates=sentences)
    assert (found.top1, found.top5, found.mean_class) == pytest.approx(miniature[2:])
    mean = name in ("caltech101", "fgvc-aircraft", "flowers", "pets")
    assert found.score == (found.mean_class if mean else found.top1)
    assert found.classes == len(miniature.classes) and not found.unreadable
    assert any(note.startswith("not the whole set") for note in found.notes)


def test_the_paper_has_27_image_sets_and_the_table_12() -> None:
    # Facts: 27 image, 4 video, 2 x 2 retrieval benchmarks; VOC2007's labels stand beside them.
    kinds = [suite.kind for suite in SUITES]
    assert len(IMAGE_SETS) == 27 and kinds.count("video") == 4 and kinds.count("retrieval") == 2
    assert len(SUITES) == 27 + 4 + 2 + 1 and len(TABLE_10) == 12
    tested = {*MINIATURES, "country211", "gtsrb", "fer2013", "pcam", "voc2007"}
    assert tested == {*IMAGE_SETS}


def test_textures_as_their_authors_unpack_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MINIATURES["dtd"].write(tmp_path, monkeypatch)
    (tmp_path / "dtd/dtd").rename(tmp_path / "textures")
    (tmp_path / "dtd").rmdir()
    (tmp_path / "textures").rename(tmp_path / "dtd")
    assert score(tmp_path, "dtd", MINIATURES["dtd"].classes).top1 == pytest.approx(9 / 11)


def test_photos_of_birds_that_are_gone_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MINIATURES["birdsnap"].write(tmp_path, monkeypatch)
    found = score(tmp_path, "birdsnap", MINIATURES["birdsnap"].classes)
    assert any(note.startswith("1 of its 6 test images are not in") for note in found.notes)


def test_objects_that_imagenet_lacks_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MINIATURES["objectnet"].write(tmp_path, monkeypatch)
    found = score(tmp_path, "objectnet", MINIATURES["objectnet"].classes)
    assert found.images == 5 and found.notes[0] == "photos of objects that ImageNet-1K lacks do not count: 1"


def test_faces_of_the_table_have_the_order_of_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Emotion 2 is fear, 6 neutral, 4 sadness: third, fifth and sixth of the folders."""
    write_fer2013(tmp_path, monkeypatch)
    names = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
    found = score(tmp_path, "fer2013", names)
    assert found.top1 == 1.0 and found.images == 3 and found.classes == 7


def test_faces_in_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
    class_folders("fer2013/test", names)(tmp_path, monkeypatch)
    found = score(tmp_path, "fer2013", names)
    # Three of the five pictures, and one for each of four other emotions.
    assert found.top1 == pytest.approx(7 / 9) and found.images == 9


@pytest.mark.parametrize("name", ["gtsrb", "country211"])
def test_sets_that_number_their_classes_need_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "gtsrb":
        write_gtsrb(tmp_path, monkeypatch)
    else:
        class_folders("country211/test", ("AD", "AE", "AF", "AG", "AI", "AL", "AM", "AO", "AQ"))(tmp_path, monkeypatch)
    MINIATURES["food101"].write(tmp_path, monkeypatch)
    found, missing = open_zero_shot_suites([name, "food101"], tmp_path)
    assert [entry.suite.name for entry in found] == ["food101"]
    assert "name none" in missing[name] and "--class-names" in missing[name]
    with pytest.raises(UnveilError, match=f"{name} is left out"):
        open_zero_shot_suites([name], tmp_path)
    names = named("name ", 43 if name == "gtsrb" else 9)
    write_json(tmp_path / "names.json", {name.upper(): names})
    given = read_names(tmp_path / "names.json", None)
    result = score(tmp_path, name, names, names=given)
    assert result.top1 == pytest.approx(3 / 5 if name == "gtsrb" else 9 / 11)
    write_json(tmp_path / "names.json", {name: names[:-1]})
    with pytest.raises(UnveilError, match=f"names for {name}, which has"):
        open_zero_shot_suites([name], tmp_path, names=read_names(tmp_path / "names.json", None))


def test_tissue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py", reason="PCam is in HDF5, and h5py is not installed")
    write_pcam(tmp_path, monkeypatch)
    found = score(tmp_path, "pcam", ("healthy lymph node tissue", "lymph node tissue with a tumor"))
    assert (found.top1, found.top5, found.mean_class) == pytest.approx((3 / 5, 1.0, 7 / 12))


def test_tissue_without_the_package_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pcam").mkdir()
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(UnveilError, match="pcam is in HDF5, which needs another package: pip install h5py"):
        open_zero_shot_suites(["pcam"], tmp_path)


def test_objects_are_cut_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bicycle right, bird painted bicycle (second), two boats right, bird painted chair (fourth)."""
    write_voc(tmp_path, monkeypatch)
    found = score(tmp_path, "voc2007", VOC)
    assert found.images == 5 and found.score == pytest.approx(3 / 5) and found.top5 == 1.0
    # Bicycle 1, bird 0, boat 1.
    assert found.mean_class == pytest.approx(2 / 3)


def test_images_with_all_their_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranked by bicycle, image 1 leads: 1. By bird: images 1 (0.8), 3 (0.4), 2 (0): 1. By boat: 2, 1, 3: 1."""
    write_voc(tmp_path, monkeypatch)
    found = score(tmp_path, "voc2007-multilabel", VOC)
    assert found.images == 3 and found.score == pytest.approx(1.0)
    assert found.top1 is None and found.mean_class is None
    # Other colours: cat, chair, aeroplane, bicycle, bird, say, is what the first image is answered with, in this order.
    for number, code in (("000001", 7), ("000002", 2), ("000004", 6)):
        save(tmp_path / "VOCdevkit/VOC2007/JPEGImages" / f"{number}.jpg", code)
    found = score(tmp_path, "voc2007-multilabel", VOC)
    # Bicycle: image 1 (7, 8, 0, 1, 2) alone has it: 1. Boat (3): image 2 has it: 1. Bird: ranks 2, then 1 and 3.
    bird = (1 / 2 + 2 / 3) / 2
    assert found.score == pytest.approx((1 + 1 + bird) / 3)


def test_templates_and_names_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIP_benchmark writes {c}, spells some keys otherwise, and has more sets."""
    MINIATURES["fgvc-aircraft"].write(tmp_path, monkeypatch)
    write_json(tmp_path / "templates.json", {"fgvc_aircraft": ["one {c}.", "two {c}!"], "svhn": ["{c}"]})
    write_json(tmp_path / "names.json", {"fgvc_aircraft": named("plane ", 9), "svhn": {"a": 1}})
    names = read_names(tmp_path / "names.json", tmp_path / "templates.json")
    found = score(tmp_path, "fgvc-aircraft", named("plane ", 9), names=names, templates=("one {}.", "two {}!"))
    assert found.top1 == pytest.approx(3 / 5) and found.templates == 2


def test_names_of_imagenet_hold_for_its_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MINIATURES["adversarial"].write(tmp_path, monkeypatch)
    write_json(tmp_path / "names.json", {"imagenet1k": named("nom ", 1000)})
    write_json(tmp_path / "templates.json", {"imagenet1k": ["une photo de {c}"]})
    names = read_names(tmp_path / "names.json", tmp_path / "templates.json")
    (found,), _ = open_zero_shot_suites(["adversarial"], tmp_path, names=names)
    assert isinstance(found, LabelledSet) and found.templates == ("une photo de {}",)
    # The first ids of the variant and of the whole, from timm's lists.
    assert found.classes[:2] == ("nom 6", "nom 11") and len(found.classes) == 200


def test_imagenet_takes_the_80_templates_of_openai() -> None:
    assert len(default_templates("imagenet-1k")) == 80 and default_templates("objectnet") == default_templates("v2")
    assert "a bad photo of a {}." in default_templates("sketch")


def test_a_limit_and_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    miniature = MINIATURES["food101"]
    miniature.write(tmp_path, monkeypatch)
    (tmp_path / "food-101/images/dish_2/2.jpg").write_bytes(b"torn")
    found = score(tmp_path, "food101", miniature.classes)
    assert found.images == 4 and found.top1 == pytest.approx(2 / 4)
    assert [Path(name).name for name in found.unreadable] == ["2.jpg"]
    (limited,), _ = open_zero_shot_suites(["food101"], tmp_path, limit=2)
    assert len(limited.source) == 2 and "limited to 2 of 5 images" in limited.notes


def test_folders_of_their_own_and_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MINIATURES["food101"].write(tmp_path / "one", monkeypatch)
    MINIATURES["stl10"].write(tmp_path / "two", monkeypatch)
    root = tmp_path / "one"
    found, missing = open_zero_shot_suites(["food101", "dtd", f"stl10={tmp_path / 'two/stl10_binary'}"], root)
    assert [entry.suite.name for entry in found] == ["food101", "stl10"]
    assert missing == {"dtd": f"{root} holds none of dtd/dtd, dtd"}
    found, missing = open_zero_shot_suites(["all"], root)
    assert [entry.suite.name for entry in found] == ["food101"] and len(missing) == len(SUITES) - 1


def test_the_miniatures_are_what_they_say() -> None:
    assert codes(9) == [0, 3, 2, 5, 1] and codes(2, FEW)[1] == 0 and len(LABELS) == 5
