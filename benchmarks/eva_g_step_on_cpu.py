"""Whole optimizer steps of EVA-g itself, 1.0 B parameters, on a processor, and the most memory that they take.

Forward, backward, clipping and AdamW, with the CLIP-L/14-shaped teacher (random weights) and activation checkpointing:
the loop is the engine's own. Weights, gradients and both moments in fp32 are 16.2 GB; the rest is a micro-batch of one
image, whatever the batch. The second step has the moments there in its backward pass already, so its peak is that of
any later one. At most 22 GB are allowed for a machine of 24: more ends with an error.

    uv run python benchmarks/eva_g_step_on_cpu.py [--precision bf16] [--global-batch-size 2] [--json FILE]
    uv run python benchmarks/eva_g_step_on_cpu.py --tiny    # another network, to try the script
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unveil.build.pretext import build_pretext
from unveil.config import EngineConfig, OptimizationConfig, PixelTarget, PretrainConfig, ViTConfig
from unveil.data.order import sample_rng
from unveil.engine import Parallel, train
from unveil.planning.stand_ins import stand_in_target
from unveil.pretext.masked_modelling import pad_hidden
from unveil.pretext.masking import masking_function
from unveil.recipes.eva_pretraining import eva_giant

MOST_BYTES = 22e9
STEPS = 2


def peak() -> float:
    """Bytes that this process ever had resident, its libraries included."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Report:
    """A sink that keeps the loss, the seconds and the peak of each step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def start(self, step: int, total: int) -> None:
        self.began = time.perf_counter()

    def write(self, step: int, values: dict[str, float]) -> None:
        seconds = time.perf_counter() - self.began
        self.rows.append({"step": step, "loss": values["loss"], "seconds": seconds, "peak_gb": peak() / 1e9})
        print(f"step {step}: loss {values['loss']:.4f}, {seconds:.1f} s, peak {peak() / 1e9:.2f} GB", flush=True)
        self.began = time.perf_counter()

    def close(self) -> None:
        pass


def config_of(*, precision: Any, batch: int, tiny: bool) -> PretrainConfig:
    recipe = eva_giant()
    small = ViTConfig(image_size=56, patch_size=14, width=48, depth=2, heads=4, mlp_width=96, drop_path=0.1)
    model = replace(small if tiny else recipe.model, activation_checkpointing=True)
    return replace(
        recipe,
        model=model,
        masking=replace(recipe.masking, count=6, min_block=2) if tiny else recipe.masking,
        target=PixelTarget() if tiny else recipe.target,
        optimization=OptimizationConfig(
            optimizer=recipe.optimization.optimizer,
            global_batch_size=batch,
            micro_batch_size=1,
            steps=STEPS,
            warmup_steps=0,
            clip_gradient_norm=recipe.optimization.clip_gradient_norm,
        ),
        engine=EngineConfig(precision=precision, log_every=1, trackers=()),
    )


def steps(config: PretrainConfig, first: int, last: int) -> Iterator[list[dict[str, Any]]]:
    """Micro-batches of one image of noise each, hidden as the recipe hides."""
    model, batch = config.model, config.optimization.global_batch_size
    masking = masking_function(config.masking)
    for step in range(first, last):
        micro_batches = []
        for number in range(step * batch, (step + 1) * batch):
            mask = masking(sample_rng(0, number), model.grid)[None]
            hidden, weight = pad_hidden(mask, masking.limit(model.grid))
            image = torch.randint(0, 256, (1, 3, model.image_size, model.image_size), dtype=torch.uint8)
            named = {"sample_numbers": torch.tensor([number]), "names": [str(number)]}
            micro_batches.append(named | {"image": image, "mask": mask, "hidden": hidden, "hidden_weight": weight})
        yield micro_batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--global-batch-size", type=int, default=1)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    config = config_of(precision=options.precision, batch=options.global_batch_size, tiny=options.tiny)
    print(f"torch and unveil loaded: {peak() / 1e9:.2f} GB", flush=True)
    target = None if options.tiny else stand_in_target(config.target, config.model)
    began = time.perf_counter()
    # Weights are made in place: building takes their own size and no more.
    task = build_pretext(config, target=target)
    task.target.to("cpu")
    parameters = sum(parameter.numel() for parameter in task.parameters())
    print(f"{parameters:,} parameters made in {time.perf_counter() - began:.1f} s: {peak() / 1e9:.2f} GB", flush=True)
    report = Report()
    train(
        task,
        lambda first, last: steps(config, first, last),
        optimization=config.optimization,
        settings=config.engine,
        parallel=Parallel(torch.device("cpu")),
        sinks=(report,),
    )
    settings = f"{options.precision}, batch {options.global_batch_size}, {torch.get_num_threads()} threads"
    print(f"{settings}: at most {peak() / 1e9:.2f} GB resident")
    if options.json:
        facts = {
            "parameters": parameters,
            "precision": options.precision,
            "peak_gb": peak() / 1e9,
            "steps": report.rows,
        }
        options.json.write_text(json.dumps(facts, indent=2) + "\n")
    if peak() > MOST_BYTES:
        raise SystemExit(f"{peak() / 1e9:.2f} GB are more than {MOST_BYTES / 1e9:.0f}")


if __name__ == "__main__":
    main()
