"""RevColV2 from the command line: pre-trained, gone on with, fine-tuned, probed; and refused elsewhere."""

from pathlib import Path

import pytest

from tests.flows.commands import Unveil, course, save_photo


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    for number in range(20):
        save_photo(tmp_path / "photos" / "ab"[number % 2] / f"{number}.png", number)
    return tmp_path / "photos"


@pytest.mark.slow
def test_the_way_of_a_run(labelled: Path, tmp_path: Path, unveil: Unveil) -> None:
    run = tmp_path / "run"
    quick = ("--global-batch-size", 4, "--workers", 0, "--set", "engine.trackers=", "--set", "engine.precision=fp32")
    recipe = ("pretrain", labelled, "--recipe", "revcolv2_tiny_cpu", "--out", run, *quick, "--checkpoint-every", 1)
    shown = unveil(*recipe, "--dry-run")
    assert "student     RevColV2 (reconstruction), 2 + 2 columns of 16 32 32, 0." in shown.out
    assert "random, at most 12 of 16 patches hidden" in shown.out
    assert unveil(*recipe, "--steps", 2).status == 0
    again = unveil(*recipe, "--steps", 2, "--set", "model.reversible=off")
    assert again.status == 0, again.err
    assert len(course(run)) == 2
    tuned = unveil(
        *("finetune", "classification", labelled, "--init-from", run, "--out", tmp_path / "tuned"), *quick, "--steps", 1
    )
    assert tuned.status == 0 and "RevColV2 (reconstruction)" in tuned.out, tuned.err
    probed = unveil("probe", labelled, "--model", run, "--out", tmp_path / "probed")
    assert probed.status == 0 and "mean of the patches, 32 numbers an image" in probed.out, probed.err
    for command in (
        ("embed", run, labelled, "--out", tmp_path / "x.npz"),
        ("visualize", run, labelled, "--what", "masks", "--out", tmp_path / "pictures"),
        ("export", run, "--to", "safetensors", "--out", tmp_path / "exported"),
    ):
        refused = unveil(*command)
        assert refused.status == 1 and "the network is a RevColV2, which only" in refused.err, refused.err


def test_costs_are_not_counted(unveil: Unveil) -> None:
    refused = unveil("plan", "revcolv2_base_mim")
    assert refused.status == 1 and "knows ViTs only, and the model is a RevColV2" in refused.err
