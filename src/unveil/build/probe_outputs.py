"""What a probe leaves behind: its report, the picture of its confusions, and the network with its head."""

import math
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.build.probe_methods import Measured, Method
from unveil.config import ProbeConfig
from unveil.config.serialize import to_json
from unveil.engine.disk import write_json
from unveil.models.vit import ViT
from unveil.tasks.classification.feature_table import FrozenFeatures
from unveil.tasks.classification.linear_probe import Head
from unveil.tasks.classification.metrics import Scores, most_confused, summarize
from unveil.weights.names import BACKBONE

REPORT, PICTURE, MODEL = "report.json", "confusion.png", "model.safetensors"

MISTAKES = 20
"""Of the most frequent, in the report."""

TITLES: dict[Method, str] = {"linear": "linear probe", "lbfgs": "L-BFGS", "knn": "nearest neighbours"}


def write_probe(
    config: ProbeConfig,
    frozen: FrozenFeatures,
    found: dict[Method, list[Measured]],
    *,
    out: Path | None,
    training_images: int,
    unreadable: int,
) -> dict[str, Any]:
    """Write all files of a probe to `out`; gives the report.

    The picture is of the first method; the head is that of the first which has one, and there is none of several draws,
    nor of RevColV2, which `unveil.load` does not take.

    Args:
        training_images: in each draw.
        unreadable: validation images that could not be read.

    Raises:
        UnveilError: the disk is full or refuses.
    """
    totals = {method: merged(draws) for method, draws in found.items()}
    kept = None
    if isinstance(frozen.backbone, ViT):
        kept = next((method for method, draws in found.items() if len(draws) == 1 and draws[0].head is not None), None)
    report: dict[str, Any] = {
        "recipe": config.recipe,
        "init_from": config.init_from,
        "pooling": config.pooling,
        "image_size": config.model.image_size,
        "normalization": config.data.normalization,
        "classes": len(config.classes),
        "training_images": training_images,
        "draws": config.draws,
        "unreadable_validation_images": unreadable,
        "head_in_model": kept,
        "methods": {method: describe_method(config, method, found[method], totals[method]) for method in found},
    }
    if out is None:
        return report
    first = next(iter(found))
    _write_picture(out / PICTURE, config, first, totals[first])
    head = None if kept is None else found[kept][0].head
    if head is not None:
        _write_model(out / MODEL, config, frozen, head)
    # Last, because its presence says that the others are there.
    write_json(out / REPORT, report)
    return report


def merged(draws: list[Measured]) -> dict[str, Tensor]:
    """Sums over the draws, whose scores are the means of theirs: all are judged by the same images."""
    names = draws[0].state
    return {name: torch.stack([draw.state[name] for draw in draws]).sum(dim=0) for name in names}


def describe_method(
    config: ProbeConfig, method: Method, draws: list[Measured], total: dict[str, Tensor]
) -> dict[str, Any]:
    """What a report says of a method.

    Args:
        total: the merged sums of the draws.
    """
    report: dict[str, Any] = summarize(total, config.classes)
    if method == "knn":
        report |= {"neighbours": config.neighbours, "temperature": config.temperature}
    if len(draws) > 1:
        numbers = [Scores.of(draw.state).numbers() for draw in draws]
        report["of_each_draw"] = [{name: _finite(value) for name, value in row.items()} for row in numbers]
        report["deviation_of_top1"] = statistics.stdev(row["accuracy"] for row in numbers)
    if "confusion" in total:
        report["most_confused"] = [
            {"class": config.classes[true], "answer": config.classes[answer], "share": share}
            for true, answer, share in most_confused(total["confusion"], MISTAKES)
        ]
    return report


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _write_picture(file: Path, config: ProbeConfig, method: Method, total: dict[str, Tensor]) -> None:
    from unveil.visualize.confusion import confusion_picture
    from unveil.visualize.figures import save_picture

    if "confusion" not in total:
        file.unlink(missing_ok=True)
        return
    scores = Scores.of(total)
    title = f"{TITLES[method]}: top-1 {100 * scores.top1:.1f} %, mean of the classes {100 * scores.balanced:.1f} %"
    save_picture(confusion_picture(total["confusion"], config.classes, title=title), file)


def _write_model(file: Path, config: ProbeConfig, frozen: FrozenFeatures, head: Head) -> None:
    """The frozen network with the head on it, for `unveil.load` and everything that reads weights."""
    from unveil.weights.write import notes, write_weights

    state = {BACKBONE + name: value for name, value in frozen.backbone.state_dict().items() if name != "mask_token"}
    if frozen.pooled_norm is not None:
        state |= {f"fc_norm.{name}": value for name, value in frozen.pooled_norm.state_dict().items()}
    state |= {"head.weight": head[0], "head.bias": head[1]}
    known = {
        "model": to_json(frozen.backbone.config),
        "classes": list(config.classes),
        "normalization": config.data.normalization,
        "pooling": config.pooling,
    }
    write_weights(file, state, notes(known, layout="native", source=Path(config.init_from or "the network")))
