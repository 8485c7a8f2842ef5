"""Images per second of one masked pre-training step, ours against the same step on timm's blocks.

ViT-S/14 at 224 px, batch 8: forward, backward, clipping at 3.0, AdamW; the student alone, and with the embedded
teacher. The contenders take turns in one process, so that a drift of the machine hits all alike; medians and ratios are
printed, and written with --json FILE.

    uv run python benchmarks/pretrain_step.py
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

from unveil.config import BlockMasking
from unveil.config.model import vit_small
from unveil.data.order import sample_rng
from unveil.engine.precision import Precision
from unveil.models.vit import ViT
from unveil.pretext.masked_modelling import MaskedModelling, pad_hidden
from unveil.pretext.masking import masking_function
from unveil.pretext.targets.embedded import EmbeddedTeacher

BATCH = 8


class TimmStudent(nn.Module):
    """The same student on timm's ViT blocks: mask token, head on hidden patches, negative cosine similarity."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer

        self.vit = VisionTransformer(img_size=224, patch_size=14, embed_dim=384, depth=12, num_heads=6, num_classes=0)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 384))
        self.head = nn.Linear(384, dim)

    def forward(self, images: Tensor, mask: Tensor, hidden: Tensor, targets: Tensor) -> Tensor:
        tokens = self.vit.patch_embed(images)
        tokens = self.vit._pos_embed(torch.where(mask[:, :, None], self.mask_token.to(tokens.dtype), tokens))
        patches = self.vit.norm(self.vit.blocks(tokens))[:, 1:]
        predictions = self.head(torch.gather(patches, 1, hidden[:, :, None].expand(-1, -1, 384)))
        wanted = torch.gather(targets, 1, hidden[:, :, None].expand(-1, -1, targets.shape[2]))
        return -cosine_similarity(predictions.float(), wanted, dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also ours, compiled")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = vit_small()
    teacher = EmbeddedTeacher(config.grid).to(device)
    masking = masking_function(BlockMasking(count=105, min_block=16))
    masks = torch.stack([masking(sample_rng(0, number), config.grid) for number in range(BATCH)])
    hidden, weight = (part.to(device) for part in pad_hidden(masks, masking.limit(config.grid)))
    masks = masks.to(device)
    pixels = torch.randint(0, 256, (BATCH, 3, 224, 224), dtype=torch.uint8, device=device)
    images = torch.randn(BATCH, 3, 224, 224, device=device)
    fixed_targets = torch.randn(BATCH, masks.shape[1], teacher.dim, device=device)

    ours = MaskedModelling(ViT(config, mask_token=True), teacher, seed=0, normalization="clip").to(device)
    compiled = MaskedModelling(ViT(config, mask_token=True), teacher, seed=0, normalization="clip").to(device)
    peer = TimmStudent(teacher.dim).to(device)
    students: dict[str, tuple[nn.Module, Callable[..., Tensor]]] = {
        "unveil": (ours, lambda targets: ours.regress(images, masks, hidden, targets, None)),
        "timm blocks": (peer, lambda targets: peer(images, masks, hidden, targets)),
    }
    if options.compile:
        compiled.compile_()
        students["unveil compiled"] = (
            compiled,
            lambda targets: compiled._regress(images, masks, hidden, targets, None),
        )
    optimizers = {name: torch.optim.AdamW(module.parameters(), fused=True) for name, (module, _) in students.items()}

    def step(name: str, precision: Precision, with_teacher: bool) -> float:
        module, losses = students[name]
        began = time.perf_counter()
        targets = teacher(pixels) if with_teacher else fixed_targets
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
                ratio = statistics.median(peer / own for peer, own in zip(seconds["timm blocks"], times, strict=True))
                print(f"{what:<45} {results[what]:7.2f} images/s   {ratio:5.2f} x timm", flush=True)
    bf16, fp32 = (results[f"{format}, student only, unveil"] for format in ("bf16", "fp32"))
    print(f"bf16 / fp32, student only: {bf16 / fp32:.2f}; {torch.get_num_threads()} threads, torch {torch.__version__}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
