"""AdamW, LARS and LAMB with their parameter groups, and their state by parameter name."""

from typing import Any

from torch import Tensor
from torch.optim import AdamW, Optimizer

from unveil.config import AdamWConfig, LAMBConfig, LARSConfig, TowerOptimization
from unveil.engine.lamb import LAMB
from unveil.engine.lars import LARS
from unveil.engine.task import HasTowers, Task

OptimizerConfig = AdamWConfig | LARSConfig | LAMBConfig


def build_optimizer(
    task: Task, config: OptimizerConfig, layer_decay: float | None = None, *, divided: bool = False
) -> Optimizer:
    """The optimizer over all trainable parameters of the task; AdamW as one fused kernel where the device has it.

    `divided` (ZeRO stage 1): each process keeps the state of some parameters, steps these, and sends them to the rest.

    Not decayed (released code): vectors and scalars; with AdamW and LAMB also biases of any shape and the names in
    `task.no_weight_decay()`. Each group carries "lr_scale", by which the scheduled learning rate is multiplied:
    `layer_decay` to the power of the number of layer groups above its own; and "param_names". In a tower its own rate,
    weight decay and layer decay count, and its own layers.
    """
    towers = task.towers() if isinstance(task, HasTowers) else [(TowerOptimization(), task.layer_groups())]
    spared = task.no_weight_decay()
    _check_names(task, [name for _, layers in towers for layer in layers for name, _ in layer], spared)
    groups: dict[tuple[float, float], list[tuple[str, Tensor]]] = {}
    for tower, layers in towers:
        ratio = 1.0 if tower.learning_rate is None else tower.learning_rate / config.learning_rate
        fall = tower.layer_decay or layer_decay or 1.0
        decay = config.weight_decay if tower.weight_decay is None else tower.weight_decay
        for number, layer in enumerate(layers):
            lr_scale = ratio * fall ** (len(layers) - 1 - number)
            for name, parameter in layer:
                by_name = not isinstance(config, LARSConfig) and (name.endswith(".bias") or name in spared)
                weight_decay = decay if parameter.ndim > 1 and not by_name else 0.0
                groups.setdefault((lr_scale, weight_decay), []).append((name, parameter))
    described: list[dict[str, Any]] = [
        {
            "params": [parameter for _, parameter in named],
            "param_names": [name for name, _ in named],
            "weight_decay": weight_decay,
            "lr_scale": lr_scale,
        }
        for (lr_scale, weight_decay), named in groups.items()
    ]
    devices = {parameter.device.type for named in groups.values() for _, parameter in named}
    kind, settings = _kind_and_settings(config, fused=devices <= {"cpu", "cuda"})
    settings |= {"lr": config.learning_rate}
    if divided:
        # Loaded only where it is used: it takes a while to import.
        from torch.distributed.optim import ZeroRedundancyOptimizer

        return ZeroRedundancyOptimizer(described, optimizer_class=kind, **settings)
    return kind(described, **settings)


def _kind_and_settings(config: OptimizerConfig, *, fused: bool) -> tuple[type[Optimizer], dict[str, Any]]:
    match config:
        case AdamWConfig():
            return AdamW, {"betas": config.betas, "eps": config.epsilon, "fused": fused}
        case LARSConfig():
            momentum, decay, trust = config.momentum, config.weight_decay, config.trust_coefficient
            return LARS, {"momentum": momentum, "weight_decay": decay, "trust_coefficient": trust}
        case LAMBConfig():
            adam = {"betas": config.betas, "epsilon": config.epsilon, "weight_decay": config.weight_decay}
            return LAMB, adam | {"trust_ratio": config.trust_ratio}


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """The scheduled rate, to each group by its scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def parameters_by_name(optimizer: Optimizer, *, kept_here: bool = False) -> dict[str, Tensor]:
    """All parameters, or those whose state this process keeps: all, unless the optimizer is divided among processes."""
    own = {parameter for group in _own(optimizer).param_groups for parameter in group["params"]}
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
        if not kept_here or parameter in own
    }


def state_by_name(optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    """The moments of each parameter under its name, so that they survive another order or grouping of parameters.

    Of an optimizer that is divided among processes: those that this process keeps.
    """
    state = _own(optimizer).state
    named = parameters_by_name(optimizer, kept_here=True)
    return {name: dict(state[parameter]) for name, parameter in named.items() if parameter in state}


def load_state_by_name(optimizer: Optimizer, state: dict[str, dict[str, Any]]) -> None:
    """Put back what `state_by_name` gave, on the device of each parameter.

    Raises:
        ValueError: it belongs to other parameters than those whose state this process keeps.
    """
    names = {parameter: name for name, parameter in parameters_by_name(optimizer, kept_here=True).items()}
    foreign = set(state) - set(names.values())
    if foreign:
        raise ValueError(f"the optimizer state is of other parameters: {sorted(foreign)[:5]}")
    own = _own(optimizer)
    parameters = [parameter for group in own.param_groups for parameter in group["params"]]
    by_number = {
        number: state[names[parameter]] for number, parameter in enumerate(parameters) if names[parameter] in state
    }
    own.load_state_dict(own.state_dict() | {"state": by_number})


def _own(optimizer: Optimizer) -> Optimizer:
    """This process's part of it; ZeroRedundancyOptimizer has an optimizer within for that."""
    return getattr(optimizer, "optim", optimizer)


def _check_names(task: Task, listed: list[str], spared: set[str]) -> None:
    # A parameter that a task forgets would silently never learn, a misspelt name silently be decayed.
    names = {name: parameter.requires_grad for name, parameter in task.named_parameters()}
    trainable = {name for name, learns in names.items() if learns}
    wrong = (set(listed) ^ trainable) | {name for name in listed if listed.count(name) > 1}
    if wrong:
        raise ValueError(f"layer_groups() must hold every trainable parameter exactly once; not so: {sorted(wrong)}")
    if not spared <= set(names):
        raise ValueError(f"no_weight_decay() names what is no parameter: {sorted(spared - set(names))}")
