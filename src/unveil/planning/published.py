"""What the paper says its own run took (Table 3d), beside what is planned for it."""

from unveil.planning.datasets import MERGED_30M
from unveil.planning.hardware import GIB
from unveil.planning.plan import Plan

MEMORY_GIB = 26.5
"""The released code prints torch's peak in units of 2^20 bytes."""
IMAGES_PER_SECOND = 3150
DAYS = 14.5
GPUS, GPU = 128, "a100-40gb"
EPOCHS = 150


def compared(plan: Plan) -> str | None:
    """In a sentence or two; None where the plan is not of that run."""
    setting = plan.chosen.setting
    published = (setting.layout, setting.gpus, plan.gpu.name) == ("as-published", GPUS, GPU)
    if plan.recipe != "eva_giant" or not published:
        return None
    excess = plan.chosen.memory.total / GIB / MEMORY_GIB - 1
    mfu = IMAGES_PER_SECOND * plan.flops_per_image / (GPUS * plan.gpu.tera_flops * 1e12)
    days = MERGED_30M * EPOCHS / IMAGES_PER_SECOND / 86_400
    return (
        f"Table 3d: ~{MEMORY_GIB} GB, ~{IMAGES_PER_SECOND:,} images/s, ~{DAYS} days. The memory here is {excess:+.0%} "
        f"of that (GB read as GiB); ~{IMAGES_PER_SECOND:,} images/s are an MFU of {mfu:.1%}. The table's own figures "
        f"do not agree: {MERGED_30M / 1e6:.2f} M images x {EPOCHS} epochs at {IMAGES_PER_SECOND:,} images/s are "
        f"{days:.1f} days, not {DAYS}"
    )
