"""The teacher as a network to be fine-tuned: what it begins with is what it taught."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from tests.flows.commands import save_photo
from unveil.build.comparison_teacher import TeacherEncoder, TeacherProbe, TeacherTarget, teacher_network
from unveil.config import EmbeddedTarget, TimmTarget, ViTConfig
from unveil.data.normalization import normalize
from unveil.data.sources.labelled import open_labelled
from unveil.engine import Parallel
from unveil.pretext.targets.build import build_target
from unveil.pretext.targets.embedded import EmbeddedTeacher
from unveil.recipes.small_data_classification import finetune_small, probe_small

STUDENT = ViTConfig(image_size=32, patch_size=16, width=32, depth=1, heads=2, mlp_width=64)
"""2 x 2 patches: a teacher of stride 32 sees 64 px."""


def images() -> Tensor:
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def encoder_of(target: TeacherTarget) -> TeacherEncoder:
    return TeacherEncoder(target=target, student=STUDENT, image_size=64)


def test_the_embedded_one_begins_with_the_features_that_it_taught() -> None:
    """Those of the folded network: its BatchNorms' statistics and the pixels as it knows them are in them."""
    taught = EmbeddedTeacher((2, 2), normalization="none", precision=torch.float32)(images())
    backbone = encoder_of(EmbeddedTarget(normalization="none")).backbone("clip").train()
    with torch.no_grad():
        found = backbone(normalize(images(), "clip")).patches
    torch.testing.assert_close(found, taught, rtol=1e-3, atol=1e-3)


def test_one_of_timm_s_from_a_file_too(tmp_path: Path) -> None:
    save_photo(tmp_path / "rose" / "1.png", 1)
    save_photo(tmp_path / "tulip" / "2.png", 2)
    source, _ = open_labelled([str(tmp_path)])
    torch.manual_seed(0)
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "weights.pt")
    target = TimmTarget(name="mobilenetv3_small_050", file=str(tmp_path / "weights.pt"))
    probed = TeacherProbe(target, STUDENT, probe_small(), source, source, device=torch.device("cpu"))
    network = teacher_network(probed, 64, tmp_path)
    assert network == encoder_of(target)
    taught = build_target(target, grid=(2, 2), patch_size=16)(images())
    with torch.no_grad():
        found = network.backbone("half")(normalize(images(), "half")).patches
    assert torch.nn.functional.cosine_similarity(found, taught, dim=2).min() > 0.999


@pytest.mark.parametrize(("batch", "processes", "expected"), [(32, 1, 8), (32, 8, 4), (20, 1, 4), (9, 1, 3), (7, 7, 1)])
def test_few_images_at_once_and_pairs_where_there_are_any(batch: int, processes: int, expected: int) -> None:
    config = finetune_small()
    config = replace(config, optimization=replace(config.optimization, global_batch_size=batch))
    parallel = Parallel(torch.device("cpu"), world_size=processes)
    assert encoder_of(EmbeddedTarget()).wanted(config, parallel).optimization.micro_batch_size == expected
