"""What every kind of run is built from: the machine, the images, the loader."""

import os
from collections.abc import Callable

import torch

from unveil.config import (
    BackboneConfig,
    ClassificationConfig,
    ContrastiveConfig,
    FashionScenes,
    ImageFiles,
    PretrainConfig,
    ProbeConfig,
    UnveilError,
)
from unveil.config.data import Source
from unveil.config.resolve import Machine
from unveil.data.loader import TrainingLoader
from unveil.data.reading import Collate, View
from unveil.data.samples.scenes import FashionSceneSource
from unveil.data.sources.base import Source as ImageSource
from unveil.data.sources.open import open_images
from unveil.engine import Parallel, fastest_precision
from unveil.models.backbone import masked_backbone


def find_machine(parallel: Parallel) -> Machine:
    """What this process has to work with."""
    cuda = parallel.device.type == "cuda"
    if cuda:
        memory = torch.cuda.get_device_properties(parallel.device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // parallel.world_size
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", parallel.world_size))
    return Machine(
        device="cuda" if cuda else "cpu",
        world_size=parallel.world_size,
        cores=max(1, cores // here),
        memory_gib=memory / 2**30,
        precision=fastest_precision(parallel.device),
    )


def build_source(config: Source, on_progress: Callable[[int], None] | None = None) -> ImageSource:
    """The images of a configuration.

    Args:
        on_progress: called with the number of images found so far.

    Raises:
        UnveilError: nothing there, or nothing that is an image.
    """
    match config:
        case ImageFiles(paths=paths):
            return open_images(paths, on_progress=on_progress)
        case FashionScenes():
            return FashionSceneSource(config)


def count_parameters(model: BackboneConfig) -> int:
    """Of the student without its head, for which no memory is taken."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in masked_backbone(model).parameters())


def build_training_loader(
    config: PretrainConfig | ClassificationConfig | ProbeConfig | ContrastiveConfig,
    source: ImageSource,
    view: View,
    collate: Collate,
    parallel: Parallel,
    *,
    paired: bool = False,
) -> TrainingLoader:
    """Batches of a resolved configuration, for this process.

    Raises:
        UnveilError: crops are to be resized on the device where no pre-training is.
    """
    if config.data.resize_on == "device" and not isinstance(config, PretrainConfig):
        raise UnveilError("data.resize_on=device is for pre-training only; leave it out")
    assert config.optimization.micro_batch_size is not None and config.data.workers is not None
    return TrainingLoader(
        source,
        view,
        collate,
        seed=config.engine.seed,
        global_batch_size=config.optimization.global_batch_size,
        micro_batch_size=config.optimization.micro_batch_size,
        rank=parallel.rank,
        world_size=parallel.world_size,
        paired=paired,
        workers=config.data.workers,
        max_unreadable_share=config.data.max_unreadable_share,
    )
