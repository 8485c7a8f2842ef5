"""What `unveil probe` says: before it begins, and of what it has found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unveil.cli.finetune import LabelledData
from unveil.cli.options import as_table, describe_images, describe_network, describe_run
from unveil.config import CenterCrop, ProbeConfig
from unveil.config.resolve import Machine

EXTREMES = 3
"""Classes named at either end, and mistakes."""


def describe(
    config: ProbeConfig,
    data: LabelledData,
    machine: Machine,
    out: Path,
    methods: tuple[str, ...],
    read: str,
) -> str:
    """What is about to happen, in the lines that a person wants to check before paying for it.

    Args:
        read: which features of the network are.
    """
    assert data.validation is not None
    count = len(data.source) if config.labels is None else config.labels
    names = ", ".join(config.classes[:5]) + (", ..." if len(config.classes) > 5 else "")
    held_out = (
        describe_images(data.validation)
        if data.validation_paths
        else f"{len(data.validation):,}, a fifth of the images held out"
    )
    draws = "" if config.draws == 1 else f", drawn {config.draws} times"
    few = [] if config.labels is None else [("labels", f"{config.labels:,}, evenly from all classes{draws}")]
    lines = [
        ("images", describe_images(data.source)),
        ("validation", held_out),
        ("classes", f"{len(config.classes):,}: {names}"),
        *few,
        ("network", describe_network(config.model, init_from=config.init_from)),
        ("features", read),
        ("methods", ", ".join(methods)),
    ]
    if "linear" in methods:
        cached = isinstance(config.data.crop, CenterCrop)
        mirrored = ", those of the mirror images too" if config.data.flip else ""
        views = f"computed once{mirrored}" if cached else "of random crops, computed anew at each step"
        lines += [("recipe", config.recipe), ("its features", views)]
        lines += [line for line in describe_run(config, count, machine, out) if line[0] not in ("arithmetic", "run")]
    return as_table([*lines, ("arithmetic", f"{config.engine.precision} on {machine.device}"), ("out", str(out))])


def results(report: dict[str, Any], out: Path) -> str:
    """The numbers of all methods; the easiest and hardest classes and the worst mistakes of the first."""
    rows = [("", "top-1", "top-5", "mean of classes", "calibration error")]
    for method, found in report["methods"].items():
        spread = f" ± {100 * found['deviation_of_top1']:.2f}" if "deviation_of_top1" in found else ""
        numbers = [_percent(found[name]) for name in ("top5", "mean_class_accuracy", "calibration_error")]
        rows.append((method, _percent(found["top1"]) + spread, *numbers))
    lines = in_columns(rows)
    first, found = next(iter(report["methods"].items()))
    ranked = sorted(
        (entry["accuracy"], name) for name, entry in found["per_class"].items() if entry["accuracy"] is not None
    )
    ends = {"hardest": ranked[:EXTREMES], "easiest": ranked[::-1][:EXTREMES]}
    lines += ["", f"of {first}:"]
    lines += [f"{end}: {', '.join(f'{name} {_percent(share)}' for share, name in some)}" for end, some in ends.items()]
    lines += [
        f"{_percent(mistake['share'])} of {mistake['class']} are taken for {mistake['answer']}"
        for mistake in found.get("most_confused", [])[:EXTREMES]
    ]
    unreadable = report["unreadable_validation_images"]
    lines += [f"warning: {unreadable:,} validation images could not be read and are left out"] if unreadable else []
    kept = report["head_in_model"]
    head = f"; {out}/model.safetensors (with the head of {kept}: unveil predict {out} FILES)" if kept else ""
    picture = f", {out}/confusion.png" if "most_confused" in found else ""
    return "\n".join([*lines, "", f"written: {out}/report.json{picture}{head}"])


def level_results(report: dict[str, Any], out: Path) -> str:
    """A row for each level: its classes by each method, its pixels; in brackets of the network untrained."""
    side, raw = report["colour_side"], report["raw_pixels"]
    methods = list(raw["methods"])
    pixels, colours = ("pixels: R²", "PSNR, dB"), (f"{side} px colours: R²", "PSNR, dB")
    rows = [("", "channels", *(f"{method} top-1, %" for method in methods), *pixels, *colours)]
    for level, before in zip(report["levels"], report["untrained"], strict=True):
        scores = [
            _beside(*(100 * network["methods"][method]["top1"] for network in (level, before)), digits=2)
            for method in methods
        ]
        scores += [
            _beside(level[what][name], before[what][name], digits=digits)
            for what in ("pixels", "colours")
            for name, digits in (("r2", 3), ("psnr", 1))
        ]
        rows.append((f"{level['column'].replace('_', '-')}, {level['stride']} px", str(level["width"]), *scores))
    scores = [f"{100 * found['top1']:.2f}" for found in raw["methods"].values()]
    rows.append((f"image of {raw['side']} px itself", str(3 * raw["side"] ** 2), *scores, "-", "-", "-", "-"))
    images = report["pixel_images"]
    notes = [
        "in brackets: the same network untrained",
        f"pixels: ridge regression from each cell to its square, fitted to {images['fitted']:,} training images and "
        f"judged by {images['judged']:,} others",
    ]
    unreadable = report["unreadable_validation_images"]
    notes += [f"warning: {unreadable:,} validation images could not be read and are left out"] if unreadable else []
    return "\n".join([*in_columns(rows), "", *notes, "", f"written: {out}/report.json, {out}/levels.png"])


def in_columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of cells, flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["   ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _beside(value: float | None, other: float | None, *, digits: int) -> str:
    shown = ["-" if number is None else f"{number:.{digits}f}" for number in (value, other)]
    return f"{shown[0]} ({shown[1]})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
