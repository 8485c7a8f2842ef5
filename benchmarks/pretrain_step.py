"""Images per second of one masked pre-training step, ours against the same step on timm's blocks.

ViT-S/14 at 224 px, batch 8: forward, backward, clipping at 3.0, AdamW; the student alone, and with the embedded
teacher; in fp32 and bf16, eager and, with --compile, both compiled. The contenders take turns in one process, so that a
drift of the machine hits all alike; medians and ratios are printed, and written with --json FILE.

    uv run python benchmarks/pretrain_step.py [--compile]
    uv run python benchmarks/pretrain_step.py --tiny --rounds 1    # other sizes, to try the script
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from unveil.config import BlockMasking, ViTConfig
from unveil.config.model import vit_small
from unveil.data.order import sample_rng
from unveil.engine.precision import Precision
from unveil.models.vit import ViT
from unveil.pretext.masked_modelling import MaskedModelling, pad_hidden
from unveil.pretext.masking import masking_function
from unveil.pretext.targets.embedded import EmbeddedTeacher

BATCH = 8
TINY = ViTConfig(image_size=56, patch_size=14, width=48, depth=2, heads=2, mlp_width=96)


class TimmStudent(nn.Module):
    """The same student on timm's ViT blocks: mask token, head on hidden patches, negative cosine similarity."""

    def __init__(self, config: ViTConfig, dim: int) -> None:
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer

        self.vit = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            mlp_ratio=config.mlp_width / config.width,
            num_classes=0,
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.head = nn.Linear(config.width, dim)

    def forward(self, images: Tensor, mask: Tensor, hidden: Tensor, targets: Tensor) -> Tensor:
        tokens = self.vit.patch_embed(images)
        tokens = self.vit._pos_embed(torch.where(mask[:, :, None], self.mask_token.to(tokens.dtype), tokens))
        patches = self.vit.norm(self.vit.blocks(tokens))[:, 1:]
        predictions = self.head(torch.gather(patches, 1, hidden[:, :, None].expand(-1, -1, patches.shape[2])))
        return -cosine_similarity(predictions.float(), targets, dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also both of them, compiled")
    parser.add_argument("--tiny", action="store_true", help="a tiny network")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = TINY if options.tiny else vit_small()
    teacher = EmbeddedTeacher(config.grid).to(device)
    masking = masking_function(BlockMasking(ratio=0.4) if options.tiny else BlockMasking(count=105, min_block=16))
    masks = torch.stack([masking(sample_rng(0, number), config.grid) for number in range(BATCH)])
    hidden, weight = (part.to(device) for part in pad_hidden(masks, masking.limit(config.grid)))
    masks = masks.to(device)
    shape = (BATCH, 3, config.image_size, config.image_size)
    pixels = {"image": torch.randint(0, 256, shape, dtype=torch.uint8, device=device)}
    images = torch.randn(shape, device=device)
    fixed_targets = torch.randn(BATCH, hidden.shape[1], teacher.dim, device=device)

    ours = MaskedModelling(ViT(config, mask_token=True), teacher, seed=0, normalization="clip").to(device)
    peer = TimmStudent(config, teacher.dim).to(device)
    students: dict[str, tuple[nn.Module, Callable[..., Tensor]]] = {
        "unveil": (ours, lambda targets: ours.regress(images, masks, hidden, targets, None)),
        "timm blocks": (peer, lambda targets: peer(images, masks, hidden, targets)),
    }
    if options.compile:
        compiled = MaskedModelling(ViT(config, mask_token=True), teacher, seed=0, normalization="clip").to(device)
        compiled_peer = TimmStudent(config, teacher.dim).to(device)
        regress = torch.compile(compiled.regress, dynamic=False)
        peer_loss = torch.compile(compiled_peer, dynamic=False)
        students["unveil compiled"] = (compiled, lambda targets: regress(images, masks, hidden, targets, None))
        students["timm blocks compiled"] = (compiled_peer, lambda targets: peer_loss(images, masks, hidden, targets))
    optimizers = {name: torch.optim.AdamW(module.parameters(), fused=True) for name, (module, _) in students.items()}

    def step(name: str, precision: Precision, with_teacher: bool) -> float:
        module, losses = students[name]
        began = time.perf_counter()
        targets = ours.targets(pixels, hidden) if with_teacher else fixed_targets
        with precision.autocast():
            loss = (losses(targets) * weight).sum() / weight.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 3.0)
        optimizers[name].step()
        optimizers[name].zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    results: dict[str, float] = {}
    for format in ("fp32", "bf16"):
        precision = Precision.of(format, device)
        for with_teacher in (False, True):
            for name in students:
                step(name, precision, with_teacher)
            seconds: dict[str, list[float]] = {name: [] for name in students}
            for _ in range(options.rounds):
                for name in students:
                    seconds[name].append(step(name, precision, with_teacher))
            for name, times in seconds.items():
                what = f"{format}, {'with teacher' if with_teacher else 'student only'}, {name}"
                results[what] = BATCH / statistics.median(times)
                rival = "timm blocks compiled" if name.endswith("compiled") else "timm blocks"
                ratio = statistics.median(theirs / own for theirs, own in zip(seconds[rival], times, strict=True))
                print(f"{what:<45} {results[what]:7.2f} images/s   {ratio:5.2f} x {rival}", flush=True)
    bf16, fp32 = (results[f"{format}, student only, unveil"] for format in ("bf16", "fp32"))
    print(f"bf16 / fp32, student only: {bf16 / fp32:.2f}; {torch.get_num_threads()} threads, torch {torch.__version__}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
