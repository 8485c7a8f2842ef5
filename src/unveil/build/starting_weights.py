"""What a classifier starts from: the network of a run or a file, and what of its head is of use."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from unveil.config import BackboneConfig, ClassificationConfig, UnveilError
from unveil.data.normalization import Normalization
from unveil.models.backbone import Backbone
from unveil.models.revcolv2 import RevColV2
from unveil.models.timm_backbone import TimmBackbone
from unveil.models.vit import ViT
from unveil.tasks.classification.task import Classification
from unveil.weights.families import recognize
from unveil.weights.infer import columns_of, head_of, known_about, pooling_of, vision_of
from unveil.weights.load import UNTOLD, load_backbone, read_backbone, read_network
from unveil.weights.report import LoadReport
from unveil.weights.revcolv2 import load_columns

FC_NORM, HEAD = "norm after pooling", "classification head"
"""What a report calls them."""

ENOUGH = 0.5
"""Share of the classes that must have a row in the old head; fewer, and it is of other classes altogether."""


def fill_network(network: Backbone, path: Path) -> LoadReport:
    """Fill an image network from a run or a file.

    Raises:
        UnveilError: nothing to read, or a network of another kind or shape.
    """
    match network:
        case RevColV2():
            return load_columns(network, path)
        case ViT():
            return load_backbone(network, path)


def network_in(path: Path, settings: Sequence[str] = ()) -> tuple[BackboneConfig, Normalization | None]:
    """The sizes of the network that `path` holds, and how its input is normalised where that is known.

    Of a run its config.json is read, of a file all of it.

    Args:
        settings: NAME=VALUE; those that say of a file what no shape in it tells are taken from among them.

    Raises:
        UnveilError: nothing there, a layout that is not known, or sizes that the file does not tell.
    """
    config = path / "config.json"
    if config.is_file():
        try:
            said = json.loads(config.read_text(encoding="utf-8"))
            columns = columns_of(said["model"])
            return columns or vision_of(said["model"]), said["data"]["normalization"]
        except (ValueError, KeyError, TypeError) as error:
            raise UnveilError(f"{config} is not the configuration of a run of unveil ({error}); restore it") from None
    if path.is_file() and (columns := columns_of(known_about(path).get("model"))):
        return columns, known_about(path).get("normalization")
    network = read_network(path, settings=[text for text in settings if text.partition("=")[0] in UNTOLD])
    return network.config, known_about(network.file).get("normalization")


def start_from(task: Classification, config: ClassificationConfig) -> LoadReport:
    """Fill `task` from `config.init_from`: the backbone, the norm after pooling where there is one, the head on demand.

    As in the released code a network that was fine-tuned before keeps its norm after pooling, also where its head is
    dropped; a pre-trained one has none, and the fresh one stays. "keep" takes the head as it is, "remap" picks its rows
    by the names of the classes.

    Raises:
        UnveilError: weights of another network, or a head that is not there, sees something else, or is of other
            classes.
    """
    assert config.init_from is not None and not isinstance(task.backbone, TimmBackbone)
    path = Path(config.init_from)
    report = fill_network(task.backbone, path)
    file, state = read_backbone(path)
    native = recognize(state, source=str(file)).native
    loaded: dict[str, Tensor] = {}
    if config.pooling == "mean" and "fc_norm.weight" in native:
        loaded |= {name: native[name] for name in ("fc_norm.weight", "fc_norm.bias")}
    notes = list(report.notes)
    if config.head_from != "new":
        rows, absent = _head_rows(task, config, file, state)
        loaded |= rows
        if absent:
            notes.append(
                f"no row of the old head is of {len(absent)} of the {len(config.classes)} classes, which start anew: "
                + _some(absent)
            )
    own = task.state_dict()
    with torch.no_grad():
        for name, value in loaded.items():
            own[name].copy_(value)
    fresh = [name for name in own if not name.startswith("backbone.") and name not in loaded]
    taken = {FC_NORM} if "fc_norm.weight" in loaded else set()
    taken |= {HEAD} if "head.weight" in loaded else set()
    return replace(
        report,
        loaded=[*report.loaded, *loaded],
        missing=[*report.missing, *fresh],
        left_out={part: names for part, names in report.left_out.items() if part not in taken},
        notes=notes,
    )


def _head_rows(
    task: Classification, config: ClassificationConfig, file: Path, state: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Rows of the file's head for the task's classes, the task's own where it has none; and the names of those.

    Raises:
        UnveilError: see `start_from`.
    """
    head = head_of(state)
    if head is None:
        raise UnveilError(f"{file} has no classification head to {config.head_from}; use --set head_from=new")
    pooling = known_about(file).get("pooling") or pooling_of(state)
    if pooling == "mean" and pooling_of(state) == "cls":
        raise UnveilError(
            f"the head in {file} sees the mean of the patches behind the network's norm, and in fine-tuning the norm "
            "comes after the mean; use --set head_from=new"
        )
    if pooling != config.pooling:
        raise UnveilError(
            f"the head in {file} sees {_POOLED[pooling]}, and this network gives it {_POOLED[config.pooling]}; use "
            f"--set pooling={pooling}, or --set head_from=new"
        )
    weight, bias = head
    known = known_about(file).get("classes")
    names = tuple(known) if known else _imagenet_names(len(weight))
    if config.head_from == "keep":
        if len(weight) != len(config.classes) or (known and names != config.classes):
            raise UnveilError(
                f"the head in {file} is of {len(weight)} classes{_named(names)}, the data of {len(config.classes)}"
                f"{_named(config.classes)}; use --set head_from=remap to pick its rows by name, or head_from=new"
            )
        return {"head.weight": weight, "head.bias": bias}, []
    if names is None:
        raise UnveilError(
            f"nothing says which classes the {len(weight)} rows of the head in {file} are of; give the run that made "
            "it, or use --set head_from=new"
        )
    row_of = {name: row for row, name in enumerate(names)}
    absent = [name for name in config.classes if name not in row_of]
    if len(absent) > (1.0 - ENOUGH) * len(config.classes):
        raise UnveilError(
            f"the head in {file} has no row for {len(absent)} of the {len(config.classes)} classes ({_some(absent)}): "
            f"its classes are called{_named(names)[1:]}; use --set head_from=new"
        )
    rows = torch.tensor([row_of.get(name, 0) for name in config.classes])
    new = torch.tensor([name not in row_of for name in config.classes])
    own = task.head.state_dict()
    weight = torch.where(new[:, None], own["weight"], weight[rows])
    return {"head.weight": weight, "head.bias": torch.where(new, own["bias"], bias[rows])}, absent


_POOLED = {"mean": "the mean of the patches", "cls": "the cls token"}


def _imagenet_names(count: int) -> tuple[str, ...] | None:
    """WordNet numbers of the published ImageNet head with so many rows; their order is that of the class folders."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    return None if subset is None else tuple(ImageNetInfo(subset).label_names())


def _named(names: tuple[str, ...] | None) -> str:
    return "" if names is None else f" ({_some(names)})"


def _some(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
