"""What training RevColV2 (reconstruction) keeps in memory, by columns and by `reversible`: off, column, chain.

Held: bytes of the tensors that wait for backward at the end of forward, for one image, without parameters. Peak: of
forward and backward with --batch images, by torch's memory tracker, without parameters; their gradients are in it, what
the optimizer keeps is not. In fp32 on a processor.

    uv run python benchmarks/reversible_memory.py --picture docs/reversible_memory.png
"""

import argparse
import dataclasses
import gc
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed._tools.mem_tracker import MemTracker

from unveil.config.revcolv2 import RevColV2Config, revcolv2_base, revcolv2_large
from unveil.models.revcolv2 import RevColV2

MIB = 2**20
SIZES = {"base": revcolv2_base, "large": revcolv2_large}
MODES = ("off", "column", "chain")


def config_of(size: str, image_size: int, columns: int, mode: str) -> RevColV2Config:
    """Half of the columns up, half of them down; "chain" with gammas that it can divide by."""
    floor = {"gamma_floor": 0.5, "gamma_init": 1.0} if mode == "chain" else {}
    half = {"bottom_up_columns": columns // 2, "top_down_columns": columns // 2}
    return dataclasses.replace(SIZES[size](image_size=image_size), reversible=mode, **half, **floor)


def total(levels: dict[int, Tensor]) -> Tensor:
    """A loss that keeps nothing itself."""
    return torch.stack([level.sum() for level in levels.values()]).sum()


def bytes_held(network: RevColV2) -> int:
    own = {tensor.untyped_storage().data_ptr() for tensor in [*network.parameters(), *network.buffers()]}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    side = network.config.image_size
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        # Named, so that no storage is freed and its address used again before all are counted.
        loss = total(network(torch.randn(1, 3, side, side)).levels)
    del loss
    return sum(held.values())


def peak(network: RevColV2, batch: int) -> int:
    side = network.config.image_size
    images = torch.randn(batch, 3, side, side)
    tracker = MemTracker()
    tracker.track_external(network, images)
    with tracker:
        total(network(images).levels).backward()
    parameters = sum(parameter.nbytes for parameter in network.parameters())
    network.zero_grad(set_to_none=True)
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"] - parameters


def draw(rows: list[dict[str, float | str]], batch: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8.4, 3.4), dpi=110)
    titles = ("held for backward, one image", f"peak of forward and backward, {batch} images")
    for place, key, title in zip(axes, ("held", "peak"), titles, strict=True):
        for mode, color in zip(MODES, ("#9b9b9b", "#1f4e79", "#c8553d"), strict=True):
            points = [(row["columns"], row[key]) for row in rows if row["mode"] == mode]
            place.plot(*zip(*points, strict=True), marker="o", color=color, label=mode)
        place.set_xlabel("columns")
        place.set_ylabel("MiB")
        place.set_yscale("log")
        place.set_xticks(sorted({row["columns"] for row in rows}))
        place.set_title(title, fontsize=10)
        place.spines[["top", "right"]].set_visible(False)
    gradients = sorted({(row["columns"], row["gradients"]) for row in rows})
    axes[1].plot(*zip(*gradients, strict=True), linestyle=":", color="black", label="gradients of the parameters alone")
    for place, corner in zip(axes, ("center right", "lower right"), strict=True):
        place.legend(frameon=False, fontsize=8, loc=corner)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--columns", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()

    rows: list[dict[str, float | str]] = []
    print("| columns | mode | held, MiB an image | peak of forward and backward, MiB | gradients in it, MiB |")
    print("|---|---|---|---|---|")
    for columns in options.columns:
        for mode in MODES:
            torch.manual_seed(0)
            network = RevColV2(config_of(options.size, options.image_size, columns, mode))
            gradients = sum(parameter.nbytes for parameter in network.parameters()) / MIB
            held, highest = bytes_held(network) / MIB, peak(network, options.batch) / MIB
            rows.append({"columns": columns, "mode": mode, "held": held, "peak": highest, "gradients": gradients})
            print(f"| {columns} | {mode} | {held:.1f} | {highest:.0f} | {gradients:.0f} |", flush=True)
            del network
            gc.collect()
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    if options.picture:
        draw(rows, options.batch, options.picture)


if __name__ == "__main__":
    main()
