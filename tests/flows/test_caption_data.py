"""From `unveil sample-data --as captions` to batches of image-text pairs."""

from pathlib import Path

import pytest
import torch

from tests.flows.commands import Unveil
from unveil.config import RandomResizedCrop
from unveil.data.loader import TrainingLoader
from unveil.data.samples.scenes import FashionSceneSource
from unveil.data.samples.writers import default_scenes
from unveil.data.sources.captions import find_captioned_splits, open_captioned
from unveil.tasks.contrastive.caption_report import report_captions
from unveil.tasks.contrastive.caption_watch import CaptionWatch
from unveil.tasks.contrastive.tokens import Tokenizer
from unveil.tasks.contrastive.view import CaptionedCollate, CaptionedView


@pytest.mark.parametrize("layout", ["tars", "files"])
def test_written_captions_can_be_trained_on(layout: str, tmp_path: Path, unveil: Unveil) -> None:
    out = tmp_path / "scenes"
    assert unveil("sample-data", out, "--as", "captions", "--train", 12, "--test", 3, "--size", 64).status == 0
    train, test = (open_captioned(paths) for paths in find_captioned_splits(str(out / layout)))
    scenes = FashionSceneSource(default_scenes("captions"))
    assert [train.captions(place) for place in range(len(train))] == [(scenes.scene(n).caption,) for n in range(12)]
    assert len(test) == 3 and not train.left_out() and not test.left_out()

    tokenizer = Tokenizer()
    report = dict(report_captions(train, tokenizer, global_batch_size=4).lines())
    assert report["captions"].startswith(f"12 of 12 images, such as “{scenes.scene(0).caption}”")
    assert report["tokens"].endswith("0 over 77 and cut off")
    view = CaptionedView(crop=RandomResizedCrop(scale=(0.9, 1.0)), flip=False, image_size=32, tokenizer=tokenizer)
    loader = TrainingLoader(train, view, CaptionedCollate(), seed=0, global_batch_size=4, micro_batch_size=2)
    watch = CaptionWatch(loader.steps, tokenizer, lambda value: [value])
    batches = [batch for step in watch.steps(0, 3) for batch in step]
    assert len(batches) == 6 and batches[0]["image"].shape == (2, 3, 32, 32)
    tokens, places = (torch.cat([batch[name] for batch in batches]) for name in ("tokens", "indices"))
    assert places.sort().values.tolist() == list(range(12))
    assert torch.equal(tokens, tokenizer([scenes.scene(number).caption for number in places.tolist()]))


def test_written_annotations_can_be_opened(tmp_path: Path, unveil: Unveil) -> None:
    out = tmp_path / "scenes"
    assert unveil("sample-data", out, "--as", "coco", "--train", 4, "--test", 2, "--size", 64).status == 0
    train, test = (open_captioned(paths) for paths in find_captioned_splits(str(out)))
    scenes = FashionSceneSource(default_scenes("coco"))
    assert [train[place].captions for place in range(4)] == [(scenes.scene(number).caption,) for number in range(4)]
    assert [Path(test[place].name).parent.name for place in range(2)] == ["test", "test"]
