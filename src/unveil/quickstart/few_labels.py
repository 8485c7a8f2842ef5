"""The chapters that ask what few labels make of the pre-trained features."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unveil.build import find_machine, finetune
from unveil.config import ClassificationConfig, PixelTarget
from unveil.config.quickstart import FewLabels
from unveil.config.resolve import resolve
from unveil.data.normalization import normalize
from unveil.data.sources.subset import SubsetSource
from unveil.engine import Parallel, Precision, evaluate
from unveil.models.backbone import Backbone, masked_backbone
from unveil.models.revcolv2 import RevColV2
from unveil.pretext.targets.cache import TargetCache
from unveil.quickstart.images import labelled_batches
from unveil.quickstart.story import BATCH, StepReporter, Story, end_where_stopped
from unveil.tasks.classification.frozen_features import few_labels, knn_accuracy, linear_probe


def extract_all(story: Story, parallel: Parallel, precision: Precision, done: Callable[[float], None]) -> None:
    """Mean patch features of the pre-trained network, of the same network untrained, of the teacher; and raw pixels.

    Where the pixels themselves are to be predicted, they stand for the teacher.
    """
    config = story.config.pretrain
    torch.manual_seed(config.engine.seed + 1)
    untrained = masked_backbone(config.model).to(parallel.device)
    which = config.data.normalization
    methods: dict[str, Callable[[Tensor], Tensor]] = {
        "pretrained": lambda pixels: frozen_features(story.task.backbone.eval(), normalize(pixels, which)),
        "scratch": lambda pixels: frozen_features(untrained.eval(), normalize(pixels, which)),
        "teacher": lambda pixels: story.task.target(pixels).mean(dim=1),
        "raw_pixels": lambda pixels: pixels.flatten(1).float(),
    }
    if isinstance(config.target, PixelTarget):
        del methods["teacher"]
    for turn, (name, method) in enumerate(methods.items()):
        parts = []
        for images in (story.train, story.test):
            if name == "teacher" and images is story.train and story.task.cache is not None:
                parts.append(_cached_means(story.task.cache, images.places))
                continue
            with torch.no_grad(), precision.autocast():
                batches = [method(batch.to(parallel.device)).float().cpu() for batch in images.pixels.split(BATCH)]
            parts.append(torch.cat(batches))
        story.features[name] = (parts[0], parts[1])
        done((turn + 1) / len(methods))


def frozen_features(backbone: Backbone, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
    """The mean of the patches, of RevColV2 those of the bottom-up columns, which its linear probe reads (supplement,
    section 2.2)."""
    if isinstance(backbone, RevColV2):
        return backbone(images, need=("bottom_up",)).patches.mean(dim=1)
    return backbone(images).patches.mean(dim=1)


def _cached_means(cache: TargetCache, places: Int64[Tensor, "n"]) -> Float[Tensor, "n d"]:
    """Mean patch features that pre-training had computed already."""
    upright = torch.zeros(BATCH, dtype=torch.bool)
    return torch.cat([cache.lookup(part, upright[: len(part)]).float().mean(dim=1) for part in places.split(BATCH)])


def probe(story: Story, done: Callable[[float], None]) -> None:
    """Linear probe and kNN of each method with few and with all labels; few ones are drawn anew for each seed."""
    labels = story.train.labels
    counts = [count for count in story.config.probe_labels if count < len(labels)]
    linear: dict[str, dict[str, list[float]]] = {}
    nearest: dict[str, dict[str, list[float]]] = {}
    for turn, count in enumerate([*counts, len(labels)]):
        seeds = story.config.probe_seeds if count < len(labels) else 1
        chosen = [torch.tensor(few_labels(labels.tolist(), count, seed)) for seed in range(seeds)]
        key = str(count)
        linear[key], nearest[key] = {}, {}
        for name, (train, test) in story.features.items():
            pairs = [(train[places], labels[places]) for places in chosen]
            linear[key][name] = [linear_probe(x, y, test, story.test.labels) for x, y in pairs]
            nearest[key][name] = [knn_accuracy(x, y, test, story.test.labels) for x, y in pairs]
        done((turn + 1) / (len(counts) + 1))
    story.report["linear_probe"], story.report["knn"] = linear, nearest


def compare_finetuning(
    story: Story, run: Path, parallel: Parallel, precision: Precision, done: Callable[[float], None]
) -> None:
    """Fine-tune with few labels from the pre-trained weights and from scratch, each with its own settings."""
    settings = [few for few in story.config.finetune if few.labels <= len(story.train.labels)]
    work = sum(few.seeds * sum(_steps(side) for side in _sides(few).values()) for few in settings)
    spent = 0
    results: dict[str, dict[str, list[float]]] = {}
    for few in settings:
        results[str(few.labels)] = {name: [] for name in _sides(few)}
        for seed in range(few.seeds):
            places = few_labels(story.train.labels.tolist(), few.labels, seed)
            source = SubsetSource(story.source, places)
            for name, side in _sides(few).items():
                model = replace(story.config.pretrain.model, drop_path=side.model.drop_path)
                side = replace(
                    side,
                    model=model,
                    classes=story.classes,
                    engine=replace(side.engine, seed=seed, precision=precision.format),
                    init_from=str(run) if name == "pretrained" else None,
                )
                side = resolve(side, images=len(source), machine=find_machine(parallel))
                before = spent
                reporter = StepReporter(lambda share, b=before, s=_steps(side): done((b + share * s) / work))
                task, outcome = finetune(side, source, parallel=parallel, watchers=(reporter,))
                end_where_stopped(outcome)
                accuracy = evaluate(task, labelled_batches(story.test), parallel, precision)["accuracy"]
                results[str(few.labels)][name].append(accuracy)
                spent += _steps(side)
    story.report["finetune"] = results


def _sides(few: FewLabels) -> dict[str, ClassificationConfig]:
    return {"pretrained": few.pretrained, "scratch": few.scratch}


def _steps(side: ClassificationConfig) -> int:
    assert side.optimization.steps is not None
    return side.optimization.steps
