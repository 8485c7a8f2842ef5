"""A CLIP is trained from what a person has: pre-trained towers, other CLIPs; resumed, in fp16, with LAMB."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.toy import CPU, Record
from tests.tasks.toy_pairs import MODEL, ToyPairs, config
from unveil.build import fit_clip, pretrain, train_clip
from unveil.config import (
    AdamWConfig,
    ContrastiveConfig,
    EngineConfig,
    FashionScenes,
    LAMBConfig,
    OptimizationConfig,
    PixelTarget,
    PretrainConfig,
    TextConfig,
    TowerOptimization,
    UnveilError,
)
from unveil.data.samples.scenes import FashionSceneSource
from unveil.engine import RunFolder
from unveil.models.clip import Clip


class PowerCutError(Exception):
    pass


class Unplugged(Record):
    """The power fails after a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def write(self, step: int, metrics: dict[str, float]) -> None:
        super().write(step, metrics)
        if step == self.step:
            raise PowerCutError


def rows_of(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def trained(settings: ContrastiveConfig, out: Path | None = None, *watchers: Record) -> Record:
    record = Record()
    train_clip(settings, ToyPairs(24), out=out, parallel=CPU, watchers=(record, *watchers), validation=ToyPairs(7))
    return record


def test_it_learns_and_says_so(tmp_path: Path) -> None:
    settings = config(
        optimization={"steps": 30, "global_batch_size": 12, "micro_batch_size": 12},
        engine={"log_every": 5, "evaluate_every": 15, "checkpoint_every": 30},
    )
    record = trained(settings, tmp_path / "run")
    losses = record.values("loss")
    assert losses[0] == pytest.approx(math.log(12), abs=0.6) and losses[-1] < 0.8 * losses[0]
    last = rows_of(tmp_path / "run")[-1]
    assert last["validation_loss"] < math.log(7) and 0.0 <= last["validation_image_to_text_r1"] <= 1.0
    assert 1.0 <= last["logit_scale"] <= 100.0
    assert [step for step, row in record.rows if "validation_loss" in row] == [15, 30]


@pytest.mark.parametrize("fails_at", [1, 3])
def test_a_run_that_was_cut_off_goes_on_to_the_last_bit(tmp_path: Path, fails_at: int) -> None:
    """With micro-batches, LAMB, dropped paths and patches, in fp16."""
    settings = config(
        optimization={"optimizer": LAMBConfig(learning_rate=3e-3), "micro_batch_size": 4},
        engine={"precision": "fp16", "loss_scale_window": 2},
    )
    trained(settings, tmp_path / "whole")
    with pytest.raises(PowerCutError):
        trained(settings, tmp_path / "broken", Unplugged(fails_at))
    trained(settings, tmp_path / "broken")
    assert rows_of(tmp_path / "broken") == rows_of(tmp_path / "whole")
    ours, theirs = (RunFolder(tmp_path / name).checkpoints.load_latest() for name in ("broken", "whole"))
    assert ours is not None and theirs is not None and ours.step == theirs.step == 4
    assert all(torch.equal(value, theirs.weights[name]) for name, value in ours.weights.items())


def test_the_loss_scale_falls_with_an_overflow_and_grows_without() -> None:
    """2^16 is too much for these towers: steps are left out until the gradients fit fp16. After two steps that fit it
    doubles, so that sooner or later the next one overflows."""
    window = 2
    settings = config(
        optimization={"steps": 20, "micro_batch_size": 4, "optimizer": AdamWConfig(learning_rate=1e-4)},
        engine={"precision": "fp16", "loss_scale_window": window},
    )
    rows = [row for _, row in trained(settings).rows]
    fits = 0
    expected = 2.0**16
    grown = False
    for number, row in enumerate(rows):
        assert row["loss_scale"] == expected and math.isfinite(row["loss"])
        overflowed = row["skipped_steps"] > (rows[number - 1]["skipped_steps"] if number else 0)
        assert overflowed == (not math.isfinite(row["grad_norm"]))
        fits = 0 if overflowed else fits + 1
        expected = expected / 2 if overflowed else expected * 2 if fits == window else expected
        grown = grown or fits == window
        fits %= window
    assert grown and 0 < rows[-1]["skipped_steps"] < len(rows) / 2


def test_the_temperature_stays_in_its_bounds() -> None:
    settings = config(optimization={"steps": 6, "warmup_steps": 0, "optimizer": AdamWConfig(learning_rate=2.0)})
    task, _ = train_clip(settings, ToyPairs(24), parallel=CPU)
    assert 0.0 <= task.clip.logit_scale.item() <= math.log(100) + 1e-6
    record = trained(settings)
    assert all(1.0 - 1e-5 <= scale <= 100.0 + 1e-3 for scale in record.values("logit_scale"))
    assert {round(scale) for scale in record.values("logit_scale")} & {1, 100}, "a bound was met"


def pretrained(out: Path) -> Path:
    """A run of masked pre-training whose network is the toy's image tower."""
    pretrain(
        PretrainConfig(
            recipe="test",
            model=replace(MODEL.vision, drop_path=0.0),
            target=PixelTarget(),
            optimization=OptimizationConfig(global_batch_size=4, micro_batch_size=4, steps=1, warmup_steps=0),
            engine=EngineConfig(precision="fp32", trackers=()),
            data=replace(config().data, workers=0, flip=True),
        ),
        FashionSceneSource(FashionScenes(count=8)),
        out=out,
        parallel=CPU,
    )
    return out


def test_towers_start_from_a_pretraining_run_and_another_clip(tmp_path: Path) -> None:
    """Projections and temperature start anew; sizes come from the weights."""
    vision = pretrained(tmp_path / "masked")
    first = config(
        model=replace(MODEL, text=TextConfig(width=64, heads=1, depth=1, mlp_width=64), embedding_width=8),
        optimization={"steps": 2},
    )
    other, _ = train_clip(first, ToyPairs(8), out=tmp_path / "other", parallel=CPU)

    given = config(
        vision_init=str(vision), text_init=str(tmp_path / "other"), optimization={"steps": 1, "warmup_steps": 1}
    )
    fitted = fit_clip(given, run=tmp_path / "new")
    assert fitted.model.vision == MODEL.vision, "drop path is the recipe's"
    assert fitted.model.text == first.model.text and fitted.model.embedding_width == 16
    # The only step has learning rate 0: weights are what they began as.
    task, _ = train_clip(fitted, ToyPairs(8), out=tmp_path / "new", parallel=CPU)
    masked = RunFolder(vision).checkpoints.load_latest()
    assert masked is not None
    begun, state = Clip(fitted.model).state_dict(), task.clip.state_dict()
    for name, value in state.items():
        if name.startswith("visual."):
            assert torch.equal(value, masked.weights[f"backbone.{name.removeprefix('visual.')}"]), name
        elif name.startswith("text.") and name != "text.projection.weight":
            assert torch.equal(value, other.clip.state_dict()[name]), name
    assert task.clip.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert state["text.projection.weight"].shape == begun["text.projection.weight"].shape
    log = (tmp_path / "new" / "log.txt").read_text()
    assert log.count("loaded ") == 2 and "text.projection.weight" in log
    # The same command a second time finds the sizes in the run.
    assert fit_clip(replace(given, vision_init="gone", text_init=None), run=tmp_path / "new").model == fitted.model


def test_a_whole_clip_goes_on_at_another_resolution(tmp_path: Path) -> None:
    first, _ = train_clip(config(optimization={"steps": 2}), ToyPairs(8), out=tmp_path / "first", parallel=CPU)
    given = config(init_from=str(tmp_path / "first"), optimization={"steps": 1, "warmup_steps": 1})
    fitted = fit_clip(given, run=tmp_path / "new")
    assert fitted.model == MODEL
    larger = replace(fitted, model=replace(MODEL, vision=replace(MODEL.vision, image_size=42)))
    task, _ = train_clip(larger, ToyPairs(8), parallel=CPU)
    for name, value in task.clip.state_dict().items():
        assert name == "visual.pos_embed" or torch.equal(value, first.clip.state_dict()[name]), name
    narrower = replace(fitted, model=replace(MODEL, embedding_width=8))
    with pytest.raises(UnveilError, match=r"visual_projection.bias is \(16,\) in the file and \(8,\) in the model"):
        train_clip(narrower, ToyPairs(8), out=tmp_path / "narrower", parallel=CPU)
    assert not (tmp_path / "narrower").exists()


def test_a_run_of_another_kind_is_not_gone_on_with(tmp_path: Path) -> None:
    pretrained(tmp_path / "masked")
    with pytest.raises(UnveilError, match="masked holds a run of another kind"):
        fit_clip(config(), run=tmp_path / "masked")


def test_a_locked_tower_keeps_its_weights(tmp_path: Path) -> None:
    settings = config(visual=TowerOptimization(locked="all"), optimization={"warmup_steps": 0, "micro_batch_size": 4})
    task, _ = train_clip(settings, ToyPairs(24), parallel=CPU)
    torch.manual_seed(settings.engine.seed)
    begun = Clip(MODEL).state_dict()
    moved = {name for name, value in task.clip.state_dict().items() if not torch.equal(value, begun[name])}
    assert moved and all(name.startswith("text.") or name == "logit_scale" for name in moved)
