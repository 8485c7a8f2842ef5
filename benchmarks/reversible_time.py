"""Seconds of a training step of RevColV2 (reconstruction): what recomputation costs, and what hiding saves.

Forward and backward of masked pre-training: pixels of three quarters of the mask units are predicted. "75 % hidden"
computes the bottom-up columns on the visible units alone; "nothing hidden" sees the whole image and predicts the same
units. The contenders take turns in one process; ratios are medians over the rounds.

    uv run python benchmarks/reversible_time.py
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from unveil.config.revcolv2 import revcolv2_base, revcolv2_large
from unveil.engine.precision import Precision
from unveil.models.pixel_head import PixelHead
from unveil.models.revcolv2 import RevColV2

SIZES = {"base": revcolv2_base, "large": revcolv2_large}
MODES = ("off", "column", "chain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--processor-time", action="store_true", help="on a shared machine, with one thread")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    clock = time.process_time if options.processor_time else time.perf_counter
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = Precision.of(options.precision, device)
    config = SIZES[options.size](image_size=options.image_size)
    networks: dict[str, RevColV2] = {}
    for mode in MODES:
        torch.manual_seed(0)
        floor = {"gamma_floor": 0.5, "functions_in_fp32": True} if mode == "chain" else {}
        networks[mode] = RevColV2(dataclasses.replace(config, reversible=mode, **floor), mask_token=True).to(device)
    head = PixelHead(config).to(device)
    images = torch.randn(options.batch, 3, options.image_size, options.image_size, device=device)
    units = config.grid[0] * config.grid[1]
    hidden = round(0.75 * units)
    order = torch.rand(options.batch, units, device=device).argsort(dim=1)
    mask, predicted = order < hidden, order.argsort(dim=1)[:, :hidden]

    def step(mode: str, hides: bool) -> float:
        network: nn.Module = networks[mode]
        began = clock()
        with precision.autocast():
            finest = network(images, mask if hides else None, hidden=hidden).levels[config.strides[0]]
            loss = head(finest, predicted).float().square().mean()
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = clock() - began
        for module in (network, head):
            module.zero_grad(set_to_none=True)
        return seconds

    contenders = [(mode, hides) for mode in MODES for hides in (True, False)]
    for contender in contenders:
        step(*contender)
    seconds: dict[tuple[str, bool], list[float]] = {contender: [] for contender in contenders}
    for _ in range(options.rounds):
        for contender in contenders:
            seconds[contender].append(step(*contender))

    def ratio(over: tuple[str, bool], under: tuple[str, bool]) -> float:
        return statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))

    results: dict[str, float] = {}
    for mode, hides in contenders:
        what = f"{mode}, {'75 % hidden' if hides else 'nothing hidden'}"
        results[what] = statistics.median(seconds[mode, hides])
        print(f"{what:<28} {results[what]:8.3f} s   {ratio((mode, hides), ('off', hides)):5.2f} x off", flush=True)
    for mode in MODES:
        results[f"hidden / nothing hidden, {mode}"] = ratio((mode, True), (mode, False))
        print(f"75 % hidden / nothing hidden, {mode:<7} {results[f'hidden / nothing hidden, {mode}']:5.2f}")
    print(f"{options.precision}, batch {options.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
