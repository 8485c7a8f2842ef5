"""Activation checkpointing: what backward needs of a block is computed once more instead of being kept."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from unveil.config.model import ActivationCheckpointing, recomputes

_aten = torch.ops.aten
KEPT: list[Any] = [
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
]
"""What "selective" keeps: matrix products and attention take nearly all of the time, the rest most of the memory."""


def run_block(block: Callable[..., Tensor], number: int, setting: ActivationCheckpointing, *inputs: Any) -> Tensor:
    """`block(*inputs)`, the block being the `number`th of its network, from 0 on.

    Nothing random is drawn within a block (drop path's noise is among its inputs), so backward sees the same numbers.
    """
    if not torch.is_grad_enabled() or not recomputes(setting, number):
        return block(*inputs)
    settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if setting == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, KEPT)
    return checkpoint(block, *inputs, **settings)
