"""EVA's pre-training step on one GPU: speed against timm's blocks, what the time goes to, precisions over 300 steps.

The student has the CLIP-L/14-shaped teacher beside it (random weights cost the same); images are JPEGs of a photo's
size. Parts can be chosen; each prints a table, and all is written with --json FILE.

    steps       images/s, MFU against the measured matrix rate, peak memory, time split: EVA-g, ViT-L, ViT-B; eager,
                compiled, on timm's blocks (EVA-g: those of its eva_giant_patch14_224)
    data        EVA-g's teacher and a ViT-B with crops, then JPEGs too, made on the device
    attention   forward and backward of EVA-g's heads of 88, as they are and padded to 96 and 128
    graphs      a ViT-B's forward and backward: eager, compiled, compiled with CUDA graphs ("reduce-overhead")
    profile     the kernels that take most of an EVA-g step's time
    curves      a ViT-B's loss over 300 steps in bf16, fp16 and fp32

    uv run python benchmarks/gpu_step.py [--parts steps curves] [--micro-batch 64] [--json FILE]
    uv run python benchmarks/gpu_step.py --tiny    # everything on the tiniest networks, also on a processor
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity, profile

from unveil.build import find_machine
from unveil.build.pretext import build_pretext
from unveil.build.pretraining import training_steps
from unveil.config import EngineConfig, PixelTarget, PretrainConfig, ViTConfig
from unveil.config.model import vit_base, vit_giant, vit_large
from unveil.config.resolve import resolve
from unveil.engine import Parallel, Precision, train
from unveil.models.transformer import fused_attention
from unveil.models.vit import ViT
from unveil.planning.bench import Measured, bench
from unveil.planning.example_images import ExampleImages
from unveil.planning.hardware import GIB
from unveil.planning.matrix_rate import wait_for
from unveil.planning.stand_ins import stand_in_target
from unveil.recipes.eva_pretraining import eva_giant

NETWORKS = {
    "EVA-g": vit_giant(drop_path=0.1),
    "ViT-L": vit_large(drop_path=0.1),
    "ViT-B": vit_base(patch_size=14, drop_path=0.1),
}
TINY = ViTConfig(image_size=56, patch_size=14, width=48, depth=2, heads=2, mlp_width=96, drop_path=0.1)
FORMATS: tuple[Literal["fp32", "bf16", "fp16"], ...] = ("fp32", "bf16", "fp16")


class Losses:
    """A sink that keeps the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def start(self, step: int, total: int) -> None:
        pass

    def write(self, step: int, values: dict[str, float]) -> None:
        self.losses.append(values["loss"])

    def close(self) -> None:
        pass


class Bench:
    """What the parts share."""

    def __init__(self, options: argparse.Namespace, parallel: Parallel) -> None:
        self.options = options
        self.parallel = parallel
        self.tiny: bool = options.tiny
        self.steps: int = 1 if self.tiny else 20

    def config(self, network: str, *, data: dict[str, Any] | None = None, **engine: Any) -> PretrainConfig:
        recipe = eva_giant()
        model = TINY if self.tiny else NETWORKS[network]
        settings = EngineConfig(**{"precision": "auto", "log_every": 1, "trackers": ()} | engine)
        config = replace(
            recipe,
            model=model,
            engine=settings,
            data=replace(recipe.data, workers=0 if self.tiny else None, **(data or {})),
            masking=replace(recipe.masking, count=6, min_block=2) if self.tiny else recipe.masking,
            target=PixelTarget() if self.tiny else recipe.target,
        )
        micro = 2 if self.tiny else self.options.micro_batch
        optimization = replace(config.optimization, global_batch_size=micro or 4096, micro_batch_size=micro)
        resolved = resolve(
            replace(config, optimization=optimization), images=10**6, machine=find_machine(self.parallel)
        )
        chosen = resolved.optimization.micro_batch_size
        assert chosen is not None
        return replace(resolved, optimization=replace(resolved.optimization, global_batch_size=chosen))

    def measured(self, config: PretrainConfig, *, on_timm: bool = False) -> Measured:
        source = ExampleImages(10**5, 1)
        return bench(config, source, parallel=self.parallel, steps=self.steps, warm_up=3, on_timm=on_timm)

    def trained(self, config: PretrainConfig, steps: int) -> list[float]:
        """The loss of each of so many steps."""
        target = None if self.tiny else stand_in_target(config.target, config.model)  # type: ignore[arg-type]
        task = build_pretext(config, target=target)
        task.target.to(self.parallel.device)
        losses = Losses()
        train(
            task,
            training_steps(config, task, ExampleImages(10**5, 1), self.parallel),
            optimization=replace(config.optimization, steps=steps, warmup_steps=min(steps - 1, 50)),
            settings=config.engine,
            parallel=self.parallel,
            sinks=(losses,),
        )
        return losses.losses

    def seconds(self, action: Callable[[], Any], calls: int = 30) -> float:
        """Of one call: the median, after three that warm up."""
        times = []
        for number in range(3 + (1 if self.tiny else calls)):
            wait_for(self.parallel.device)
            began = time.perf_counter()
            action()
            wait_for(self.parallel.device)
            if number >= 3:
                times.append(time.perf_counter() - began)
        return statistics.median(times)


def steps(run: Bench) -> dict[str, Any]:
    found = {}
    for network in NETWORKS:
        for name, settings, on_timm in (
            ("eager", {}, False),
            ("compiled", {"compile": True}, False),
            ("timm", {}, True),
        ):
            if run.tiny and name == "compiled":
                continue
            config = run.config(network, **settings)
            measured = run.measured(config, on_timm=on_timm)
            micro = config.optimization.micro_batch_size
            split = ", ".join(f"{phase} {seconds:.4f}" for phase, seconds in measured.seconds.items())
            print(
                f"{network:<6} {name:<9} batch {micro:>4}  {measured.images_per_second:9.1f} images/s  "
                f"MFU {measured.mfu:5.1%} of {measured.matrix_rate / 1e12:.0f} TFLOP/s  "
                f"{measured.peak_bytes / GIB:6.1f} GiB  ({split})",
                flush=True,
            )
            found[f"{network}, {name}"] = measured.as_json() | {"micro_batch": micro}
    return found


def data(run: Bench) -> dict[str, Any]:
    settings: dict[str, dict[str, Any]] = {
        "workers do all": {},
        "crops resized on the device": {"resize_on": "device"},
        "JPEGs decoded there, too": {"resize_on": "device", "decode_on": "device"},
    }
    found = {}
    for name, places in settings.items():
        measured = run.measured(run.config("ViT-B", data=places))
        print(f"{name:<30} {measured.images_per_second:9.1f} images/s, data {measured.seconds['data']:.4f} s a step")
        found[name] = measured.as_json()
    return found


def attention(run: Bench) -> dict[str, Any]:
    device = run.parallel.device
    batch, tokens = (1, 17) if run.tiny else (64, 257)
    found = {}
    for padding in (0, 8, 40):
        parts = [
            torch.randn(batch, 16, tokens, 88, device=device, dtype=torch.bfloat16, requires_grad=True)
            for _ in range(3)
        ]

        def step(parts: list[torch.Tensor] = parts, padding: int = padding) -> None:
            answer = fused_attention(parts[0], parts[1], parts[2], None, causal=False, padding=padding)
            answer.backward(torch.ones_like(answer))

        found[str(88 + padding)] = run.seconds(step)
        print(f"heads of {88 + padding:>3}: {1e3 * found[str(88 + padding)]:.3f} ms forward and backward", flush=True)
    return found


def graphs(run: Bench) -> dict[str, Any]:
    device = run.parallel.device
    vit = ViT(TINY if run.tiny else NETWORKS["ViT-B"]).to(device)
    images = torch.randn(2 if run.tiny else 64, 3, *2 * (vit.config.image_size,), device=device)
    precision = Precision.of("auto", device)

    def loss(images: torch.Tensor) -> torch.Tensor:
        return vit(images).patches.square().mean()

    modes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"eager": loss}
    if not run.tiny:
        modes["compiled"] = torch.compile(loss, dynamic=False)
        modes["CUDA graphs"] = torch.compile(loss, dynamic=False, mode="reduce-overhead")
    found = {}
    for name, function in modes.items():

        def step(function: Callable[[torch.Tensor], torch.Tensor] = function) -> None:
            vit.zero_grad(set_to_none=True)
            with precision.autocast():
                value = function(images)
            value.backward()

        found[name] = run.seconds(step)
        print(f"{name:<12} {1e3 * found[name]:.2f} ms forward and backward", flush=True)
    return found


def profiled(run: Bench) -> dict[str, Any]:
    config = run.config("EVA-g", compile=not run.tiny)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if run.parallel.device.type == "cuda" else [])]
    # Compilation and the first calls stay outside.
    run.trained(config, 2)
    with profile(activities=activities) as kernels:
        run.trained(config, 2 if run.tiny else 5)
    key = "self_device_time_total" if run.parallel.device.type == "cuda" else "self_cpu_time_total"
    events = sorted(kernels.key_averages(), key=lambda event: -getattr(event, key))[:25]
    total = sum(getattr(event, key) for event in kernels.key_averages())
    shares = {event.key: getattr(event, key) / total for event in events}
    for name, share in shares.items():
        print(f"{share:6.1%}  {name[:110]}")
    return shares


def curves(run: Bench) -> dict[str, Any]:
    count = 4 if run.tiny else 300
    formats = FORMATS[:2] if run.tiny else FORMATS
    found = {format: run.trained(run.config("ViT-B", precision=format), count) for format in formats}
    tail = count // 3
    for format, losses in found.items():
        apart = max(abs(one - other) for one, other in zip(losses, found["fp32"], strict=True))
        end = statistics.mean(losses[-tail:])
        print(f"{format}: mean of the last {tail} losses {end:.5f}; at most {apart:.5f} from fp32's at any step")
    return found


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "steps": steps,
    "data": data,
    "attention": attention,
    "graphs": graphs,
    "profile": profiled,
    "curves": curves,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=tuple(PARTS))
    parser.add_argument("--micro-batch", type=int, help="images at once; left out: as many as should fit")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"torch": torch.__version__}
    with Parallel.start() as parallel:
        if parallel.device.type == "cuda":
            found["gpu"] = torch.cuda.get_device_name(parallel.device)
        elif not options.tiny:
            raise SystemExit("there is no GPU here; --tiny tries the script without one")
        run = Bench(options, parallel)
        for name in options.parts:
            print(f"\n{name}", flush=True)
            found[name] = PARTS[name](run)
            if options.json:
                options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
