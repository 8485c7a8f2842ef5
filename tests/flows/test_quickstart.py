"""The quickstart's story in miniature, on the embedded scenes and on somebody's class folders."""

import base64
import io
import json
import math
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from unveil.build.classification import finetune
from unveil.build.clip_models import load_clip
from unveil.config import BackboneConfig, ContrastiveConfig, FashionScenes, RevColV2Config, UnveilError
from unveil.config.quickstart import QuickstartConfig
from unveil.data.samples.garments import CLASS_NAMES, COLOUR_NAMES
from unveil.data.samples.scenes import FashionSceneSource
from unveil.data.samples.writers import write_samples
from unveil.data.sources.base import Sample
from unveil.engine import Parallel
from unveil.quickstart import Clock, clip_table, table, tell, write_report
from unveil.recipes.quickstart import quickstart, quickstart_columns


def narrow(model: BackboneConfig) -> BackboneConfig:
    if isinstance(model, RevColV2Config):
        return replace(model, widths=(8, 16, 16), head_width=8, bottom_up_columns=1, top_down_columns=1)
    return replace(model, width=32, depth=2, heads=2, mlp_width=64)


def miniature(config: QuickstartConfig | None = None) -> QuickstartConfig:
    """The real configuration with fewer images, steps and seeds, and a narrower network."""
    config = config or quickstart()
    pretrain = config.pretrain
    short = tuple(
        replace(
            few,
            labels=40,
            seeds=2,
            pretrained=replace(
                few.pretrained, optimization=replace(few.pretrained.optimization, steps=2, warmup_steps=1)
            ),
            scratch=replace(few.scratch, optimization=replace(few.scratch.optimization, steps=2, warmup_steps=1)),
        )
        for few in config.finetune[:1]
    )
    return replace(
        config,
        pretrain=replace(
            pretrain,
            model=narrow(pretrain.model),
            data=replace(pretrain.data, source=replace(pretrain.data.source, count=96)),
            optimization=replace(
                pretrain.optimization, steps=4, epochs=None, warmup_steps=1, warmup_epochs=None, global_batch_size=32
            ),
            engine=replace(pretrain.engine, log_every=1),
        ),
        test=replace(config.test, count=48),
        probe_labels=(40,),
        probe_seeds=2,
        finetune=short,
        captions=None
        if config.captions is None
        else replace(
            config.captions,
            pretrained=_short(config.captions.pretrained),
            scratch=_short(config.captions.scratch),
        ),
    )


def _short(side: ContrastiveConfig) -> ContrastiveConfig:
    return replace(
        side,
        model=replace(side.model, text=replace(side.model.text, width=16, heads=1, depth=1, mlp_width=16)),
        optimization=replace(side.optimization, steps=2, warmup_steps=1, global_batch_size=16),
        engine=replace(side.engine, log_every=1),
    )


def run(
    out: Path, data: Path | None, *, captions: bool = False, config: QuickstartConfig | None = None
) -> tuple[dict, str, list[float]]:
    shares: list[float] = []
    with Parallel.start("cpu") as parallel:
        story = tell(
            miniature(config),
            data=data,
            out=out,
            parallel=parallel,
            progress=lambda chapter, share: shares.append(share),
            captions=captions,
        )
    page = write_report(story, out)
    header, rows = table(story.report["finetune"])
    assert header == ["", "40 labels"] and [row[0] for row in rows] == ["pre-trained", "untrained / scratch"]
    return json.loads((out / "report.json").read_text()), page.read_text(), shares


def test_the_story_on_embedded_scenes(tmp_path: Path) -> None:
    report, page, shares = run(tmp_path, None)
    assert set(report) == {"linear_probe", "knn", "finetune", "seconds", "chapters"}
    assert sum(report["chapters"].values()) == pytest.approx(report["seconds"], abs=1.0)
    methods = {"pretrained", "scratch", "teacher", "raw_pixels"}
    for scores in (report["linear_probe"], report["knn"]):
        assert set(scores) == {"40", "96"}
        assert all(set(row) == methods for row in scores.values())
        assert [len(scores[count]["pretrained"]) for count in ("40", "96")] == [2, 1]
    assert set(report["finetune"]["40"]) == {"pretrained", "scratch"}
    values = [
        value for part in ("linear_probe", "knn", "finetune") for row in report[part].values() for value in row.values()
    ]
    assert all(0.0 <= accuracy <= 1.0 for accuracies in values for accuracy in accuracies)
    assert (tmp_path / "pretrain" / "metrics.jsonl").exists()
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] == 1.0
    pictures = re.findall(r'base64,([^"]+)"', page)
    assert len(pictures) == 4
    assert all(Image.open(io.BytesIO(base64.b64decode(picture))).size[0] > 300 for picture in pictures)


def test_the_same_story_of_columns_and_pixels(tmp_path: Path) -> None:
    report, page, shares = run(tmp_path, None, config=quickstart_columns())
    assert shares == sorted(shares) and shares[-1] == 1.0
    for scores in (report["linear_probe"], report["knn"]):
        assert all(set(row) == {"pretrained", "scratch", "raw_pixels"} for row in scores.values())
    assert [len(report["finetune"]["40"][side]) for side in ("pretrained", "scratch")] == [2, 2]
    assert "RevColV2 (a reconstruction: 1 bottom-up and 1 top-down columns of 3 levels, 32 px)" in page
    assert "the pixels of the squares it could not see" in page and "cells of 2, 4 and 8 pixels" in page
    assert "teacher" not in page and "CLIP" not in page
    pictures = [Image.open(io.BytesIO(base64.b64decode(one))) for one in re.findall(r'base64,([^"]+)"', page)]
    # The loss, what was painted, three levels under their images, neighbours.
    rows = [round((picture.size[1] + 4) / 92) for picture in pictures[1:]]
    assert rows == [3, 4, 6]


def test_columns_get_no_chapter_of_captions(tmp_path: Path) -> None:
    with Parallel.start("cpu") as parallel, pytest.raises(UnveilError, match="whose image tower is a ViT"):
        tell(
            quickstart_columns(),
            data=None,
            out=tmp_path,
            parallel=parallel,
            progress=lambda *_: None,
            captions=True,
        )


def test_both_networks_see_the_same_scenes() -> None:
    vit, columns = quickstart(), quickstart_columns()
    assert replace(columns.pretrain.data.source, size=28) == vit.pretrain.data.source
    assert replace(columns.test, size=28) == vit.test
    assert [few.labels for few in columns.finetune] == [few.labels for few in vit.finetune]


def test_the_story_on_class_folders(tmp_path: Path) -> None:
    data = tmp_path / "scenes"
    write_samples(data, "folders", FashionScenes(size=40, count=60), test_count=20)
    report, page, _ = run(tmp_path / "out", data)
    assert set(report["linear_probe"]) == {"40", "60"}
    assert "60 images" in page and "20 other images of 10 classes" in page
    held_out, _, _ = run(tmp_path / "held out", data / "train")
    assert set(held_out["linear_probe"]) == {"40", "48"}


def test_the_chapter_of_captions_on_embedded_scenes(tmp_path: Path) -> None:
    report, page, shares = run(tmp_path, None, captions=True)
    assert set(report) == {"linear_probe", "knn", "finetune", "clip", "seconds", "chapters"}
    assert shares == sorted(shares) and shares[-1] == 1.0
    clip = report["clip"]
    labels, captions = zip(*((scene.label, scene.captions[0]) for scene in scenes(48)), strict=True)
    assert clip["chance"]["zero_shot"] == 0.1
    pairs_alike = [one == other for one in captions for other in captions]
    assert clip["chance"]["r1"] == pytest.approx(sum(pairs_alike) / len(pairs_alike))
    assert clip["samples_seen"] == {"pretrained": [32], "scratch": [32]}
    assert all(set(clip[what]) == {"pretrained", "scratch"} for what in set(clip) - {"chance"})
    assert clip["training_loss"]["pretrained"][0] == pytest.approx(math.log(16), abs=1.5)
    assert clip["test_loss"]["scratch"][0] == pytest.approx(math.log(48), abs=1.5)
    assert {len(cells) for cells in [clip_table(clip)[0], *clip_table(clip)[1]]} == {5}
    assert len(re.findall(r'base64,([^"]+)"', page)) == 4 + 5 and "“a green sneaker”: cosines" in page
    # Another reader of the same run finds the same classes.
    model = load_clip(tmp_path / "clip" / "pretrained_0", device="cpu", precision="auto")
    sentences = [[f"a {colour} {name}".replace("a o", "an o") for colour in COLOUR_NAMES] for name in CLASS_NAMES]
    classes = torch.stack([model.encode_texts(of_class).mean(dim=0) for of_class in sentences])
    images = model.encode_images(torch.stack([model.transform(scene.image) for scene in scenes(48)]))
    found = (images @ torch.nn.functional.normalize(classes, dim=1).T).argmax(dim=1)
    assert clip["zero_shot"]["pretrained"] == [pytest.approx((found == torch.tensor(labels)).float().mean().item())]


def test_the_chapter_of_captions_on_class_folders(tmp_path: Path) -> None:
    data = tmp_path / "scenes"
    write_samples(data, "folders", FashionScenes(size=40, count=60), test_count=20)
    report, page, _ = run(tmp_path / "out", data, captions=True)
    assert report["clip"]["chance"] == {"zero_shot": 0.1, "r1": pytest.approx(0.1)}
    assert "“a photo of a ankle boot”" in page and "of 8 have this caption" in page


def scenes(count: int) -> list[Sample]:
    source = FashionSceneSource(FashionScenes(split="test", count=count))
    return [source[place] for place in range(count)]


def test_both_clips_see_as_many_pairs() -> None:
    chapter = quickstart().captions
    pretrained, scratch = (side.optimization for side in (chapter.pretrained, chapter.scratch))
    assert (pretrained.steps, pretrained.global_batch_size) == (scratch.steps, scratch.global_batch_size)


def test_one_class_is_refused(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / "data" / "only").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / "data" / "only" / f"{number}.png")
    with Parallel.start("cpu") as parallel, pytest.raises(UnveilError, match="needs 2 classes"):
        tell(miniature(), data=tmp_path / "data", out=tmp_path / "out", parallel=parallel, progress=lambda *_: None)


def test_chapters_fill_the_bar() -> None:
    assert sum(Clock.SHARES.values()) == pytest.approx(1.0)
    said: list[float] = []
    clock = Clock(lambda chapter, share: said.append(share), captions=True)
    assert sum(clock.shares.values()) == pytest.approx(1.0)
    for name in clock.shares:
        with clock.chapter(name) as done:
            done(1.0)
    assert said == sorted(said) and said[-1] == pytest.approx(1.0)


class Signalling:
    """A sink that sends this process a signal at the first step."""

    def __init__(self, number: int) -> None:
        self.number = number

    def start(self, step: int, total: int) -> None:
        pass

    def write(self, step: int, metrics: dict[str, float]) -> None:
        if step == 1:
            os.kill(os.getpid(), self.number)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("number", "ends"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_fine_tuning_that_was_stopped_is_not_measured(
    number: int, ends: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(*arguments: Any, watchers: tuple[Any, ...], **options: Any) -> Any:
        return finetune(*arguments, watchers=(*watchers, Signalling(number)), **options)

    monkeypatch.setattr("unveil.quickstart.few_labels.finetune", signalled)
    config = miniature()
    (few,) = config.finetune
    slow = replace(
        few.pretrained,
        optimization=replace(few.pretrained.optimization, steps=6),
        engine=replace(few.pretrained.engine, log_every=1),
    )
    config = replace(config, finetune=(replace(few, pretrained=slow),), probe_seeds=1)
    with Parallel.start("cpu") as parallel, pytest.raises(ends):
        tell(config, data=None, out=tmp_path, parallel=parallel, progress=lambda *_: None)
