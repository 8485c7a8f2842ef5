"""Comparisons from Python: stopped in the middle, on two processes, with a tokeniser; and their tables."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.processes import together
from tests.flows.commands import save_photo
from unveil.build.comparison import Compared, Comparison
from unveil.build.comparison_report import Row, as_markdown, percent
from unveil.config import HogTarget, MaskedTokenPrediction, PretrainConfig, UnveilError, VectorQuantizedDistillation
from unveil.config.comparison import ComparisonConfig
from unveil.data.sources.labelled import open_labelled
from unveil.engine import Parallel, Sink
from unveil.recipes.small_data import tiny_cpu
from unveil.recipes.small_data_classification import finetune_tiny_cpu, probe_small

CPU = Parallel(torch.device("cpu"))


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flowers")
    for part, numbers in (("train", range(24)), ("val", range(24, 32))):
        for number in numbers:
            save_photo(folder / part / ("rose", "tulip")[number % 2] / f"{number}.png", number)
    return folder


def pretraining(recipe: str = "tiny_cpu", **changes: Any) -> PretrainConfig:
    config = replace(tiny_cpu(), recipe=recipe, target=HogTarget(), **changes)
    return replace(
        config,
        data=replace(config.data, workers=0),
        optimization=replace(config.optimization, micro_batch_size=4),
        engine=replace(config.engine, precision="fp32", trackers=()),
    )


def settings_of(*recipes: PretrainConfig, **changes: Any) -> ComparisonConfig:
    finetune, probe = finetune_tiny_cpu(), probe_small()
    finetune = replace(
        finetune,
        classes=("rose", "tulip"),
        data=replace(finetune.data, workers=0),
        optimization=replace(finetune.optimization, steps=2, micro_batch_size=4),
        engine=replace(finetune.engine, precision="fp32", trackers=()),
    )
    probe = replace(
        probe,
        classes=("rose", "tulip"),
        data=replace(probe.data, workers=0),
        optimization=replace(probe.optimization, micro_batch_size=4),
        engine=replace(probe.engine, precision="fp32"),
    )
    defaults = {"epochs": (1.0,), "scratch_row": False, "teacher_row": False}
    return ComparisonConfig(pretrain=recipes, probe=probe, finetune=finetune, scratch=finetune, **(defaults | changes))


def compared(config: ComparisonConfig, flowers: Path, out: Path, parallel: Parallel = CPU, **watching: Any) -> Compared:
    source, classes = open_labelled([str(flowers / "train")])
    validation, _ = open_labelled([str(flowers / "val")], classes=classes)
    comparison = Comparison(config=config, source=source, validation=validation, out=out, parallel=parallel, **watching)
    return comparison.run()


class PullThePlug:
    """A sink that ends the run, as Ctrl-C does, after its first step."""

    def start(self, step: int, total: int) -> None:
        pass

    def write(self, step: int, metrics: dict[str, float]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def close(self) -> None:
        pass


def test_stopped_and_gone_on_with_it_is_the_same(flowers: Path, tmp_path: Path) -> None:
    config = settings_of(pretraining(), epochs=(1.0, 2.0))
    whole = compared(config, flowers, tmp_path / "whole")
    assert not whole.stopped and [row.epochs for row in whole.rows] == [1.0, 2.0]

    def plug(name: str) -> tuple[Sink, ...]:
        return (PullThePlug(),) if name == "pre-training" else ()

    cut = compared(config, flowers, tmp_path / "cut", watch=plug)
    assert cut.stopped and not cut.rows
    begun: list[str] = []
    gone_on = compared(config, flowers, tmp_path / "cut", on_part=begun.append)
    assert begun[0] == "tiny_cpu/epochs_1/seed_0/pretrain" and len(begun) == 6
    for row, other in zip(whole.rows, gone_on.rows, strict=True):
        assert (row.probe, row.finetune, row.losses) == (other.probe, other.finetune, other.losses)


def compared_by_two(flowers: Path, out: Path) -> list[Row]:
    with Parallel.start("cpu") as parallel:
        return compared(settings_of(pretraining(), scratch_row=True), flowers, out, parallel).rows


def test_two_processes_make_the_same_table(flowers: Path, tmp_path: Path) -> None:
    alone = compared(settings_of(pretraining(), scratch_row=True), flowers, tmp_path / "alone").rows
    first, second = together(2, compared_by_two, flowers, tmp_path / "two")
    for row, one, other in zip(alone, first, second, strict=True):
        assert (one.name, one.probe, one.finetune) == (other.name, other.probe, other.finetune)
        assert one.probe == pytest.approx(row.probe, abs=1e-6) and one.finetune == pytest.approx(row.finetune, abs=1e-6)
        assert one.losses == pytest.approx(row.losses, abs=1e-5)


def test_a_tokeniser_is_trained_first_and_once_for_each_seed(flowers: Path, tmp_path: Path) -> None:
    tokenizer = pretraining("codes", objective=VectorQuantizedDistillation(codes=8, code_dim=4, decoder_depth=1))
    tokenizer = replace(tokenizer, optimization=replace(tokenizer.optimization, steps=2, warmup_steps=1))
    tokens = pretraining("tokens", objective=MaskedTokenPrediction(tokenizer="runs/codes"))
    begun: list[str] = []
    config = settings_of(tokens, tokenizer=tokenizer, epochs=(1.0, 2.0))
    rows = compared(config, flowers, tmp_path / "out", on_part=begun.append).rows
    assert [row.epochs for row in rows] == [1.0, 2.0]
    assert begun[:2] == ["tokenizer_codes/seed_0/pretrain", "tokens/epochs_1/seed_0/pretrain"]
    assert sum(name.startswith("tokenizer") for name in begun) == 1


def test_the_table_by_hand() -> None:
    rows = [
        Row(name="scratch", epochs=None, probe=[0.25], finetune=[0.5, 0.6]),
        Row(name="small", epochs=2.0, images_seen=20_000, probe=[0.5], finetune=[], note="cannot be fine-tuned"),
    ]
    config = settings_of(pretraining(), labels=100)
    assert as_markdown(config, rows) == (
        "| pre-training | epochs | images seen | linear probe, all labels | fine-tuning, 100 labels |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| scratch | - | - | 25.0 | 55.0 ± 7.1 |\n"
        "| small | 2 | 20,000 | 50.0 | - |\n"
        "\nsmall: cannot be fine-tuned.\n"
    )
    assert percent([]) == "-"


def test_a_part_stays_finished_when_settings_come_into_being_or_no_longer_count(flowers: Path, tmp_path: Path) -> None:
    """It had the new ones at their defaults."""
    config = settings_of(pretraining())
    compared(config, flowers, tmp_path)
    for file in tmp_path.rglob("result.json"):
        part = json.loads(file.read_text())
        for name in [name for name in part["settings"] if name.endswith(("data.flip", "masking.exact"))]:
            del part["settings"][name]
        file.write_text(json.dumps(part | {"settings": part["settings"] | {"engine.keep_last": 7}}))
    begun: list[str] = []
    compared(config, flowers, tmp_path, on_part=begun.append)
    assert not begun
    other = replace(config.pretrain[0], data=replace(config.pretrain[0].data, flip=False))
    with pytest.raises(UnveilError, match=r"data\.flip = True, and False is wanted now"):
        compared(replace(config, pretrain=(other,)), flowers, tmp_path)
