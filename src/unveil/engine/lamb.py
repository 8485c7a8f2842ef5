"""Layer-wise adaptive moments for large batches (You et al. 2020, algorithm 2)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class LAMB(Optimizer):
    """Adam whose step on each tensor p is rescaled to the tensor: by |p| / |step|, within bounds.

    The step is that of AdamW, with bias correction, its weight decay included before the norm is taken. Vectors and
    scalars are rescaled too, as the algorithm has it, and where either norm is 0 the factor is 1. The bounds are
    DeepSpeed's; timm's Lamb, which knows none but 1 from above, is the same without them where everything is rescaled.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        epsilon: float,
        weight_decay: float,
        trust_ratio: tuple[float, float],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "epsilon": epsilon,
            "weight_decay": weight_decay,
            "trust_ratio": trust_ratio,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                count = state["step"].item()
                mean = state["exp_avg"].lerp_(parameter.grad, 1 - first)
                square = state["exp_avg_sq"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
                update = mean / (1 - first**count) / ((square / (1 - second**count)).sqrt_() + group["epsilon"])
                update.add_(parameter, alpha=group["weight_decay"])
                length, step_length = parameter.norm(), update.norm()
                ratio = (length / step_length).clamp(*group["trust_ratio"])
                parameter.sub_(update * torch.where((length > 0) & (step_length > 0), ratio, 1.0) * group["lr"])
