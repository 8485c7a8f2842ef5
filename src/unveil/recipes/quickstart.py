"""The quickstart's settings: minutes on two CPU cores. How they were found: docs/lab_book.md."""

from dataclasses import replace

from unveil.config import (
    AdamWConfig,
    BackboneConfig,
    BlockMasking,
    CenterCrop,
    ClassificationConfig,
    ClipModelConfig,
    ContrastiveConfig,
    DataConfig,
    EmbeddedTarget,
    EngineConfig,
    FashionScenes,
    MaskedRegression,
    OptimizationConfig,
    PixelTarget,
    PretrainConfig,
    RandomMasking,
    RandomResizedCrop,
    TextConfig,
    TowerOptimization,
    ViTConfig,
)
from unveil.config.quickstart import CaptionsChapter, FewLabels, QuickstartConfig
from unveil.config.revcolv2 import revcolv2_small

MODEL = ViTConfig(
    image_size=28,
    patch_size=4,
    width=192,
    depth=6,
    heads=3,
    mlp_width=768,
    init_std=0.1,
    position_init="sine_cosine",
)
"""Both sides' network. The giant's initial deviation, 0.015, is too small for one this narrow and a run this short."""

COLUMNS = replace(revcolv2_small(), init_std=0.05, reversible="off")
"""revcolv2_small_cpu's RevColV2 (reconstruction), 4.1 M parameters. Larger weights at the start let so short a
run learn more; and so small a network keeps all that backward needs, and computes nothing again."""


def quickstart_pretraining() -> PretrainConfig:
    """A small ViT on 9,000 unlabelled fashion scenes, the embedded teacher's features computed once for each scene.

    Hardware: 2 CPU cores, some minutes. Expected: docs/lab_book.md, quickstart.
    """
    return PretrainConfig(
        recipe="quickstart",
        model=MODEL,
        # The paper hides 40 %; so short a run learns more from 30 %.
        masking=BlockMasking(ratio=0.3),
        target=EmbeddedTarget(),
        cache_targets=True,
        data=DataConfig(
            source=FashionScenes(split="train", count=9000),
            crop=CenterCrop(),
            # Half of the scenes are drawn mirrored; another half would double the teacher's time.
            flip=False,
            workers=0,
        ),
        optimization=OptimizationConfig(
            optimizer=AdamWConfig(learning_rate=1e-3, epsilon=1e-8),
            global_batch_size=32,
            steps=1600,
            warmup_steps=100,
        ),
        engine=EngineConfig(log_every=10, checkpoint_every=500, keep_last=1, trackers=()),
    )


def quickstart_columns_pretraining() -> PretrainConfig:
    """RevColV2 (reconstruction) on the same scenes, drawn at 32 px: the pixels of hidden squares of 8 px.

    Hardware: 2 CPU cores, some minutes. Expected: docs/lab_book.md, quickstart with RevColV2.
    """
    return PretrainConfig(
        recipe="quickstart_revcolv2",
        model=COLUMNS,
        objective=MaskedRegression(loss="squared"),
        masking=RandomMasking(ratio=0.75),
        target=PixelTarget(),
        data=DataConfig(
            source=FashionScenes(split="train", count=9000, size=32),
            crop=RandomResizedCrop(scale=(0.5, 1.0)),
            # Half of the scenes are drawn mirrored.
            flip=False,
            normalization="imagenet",
            workers=0,
        ),
        optimization=OptimizationConfig(
            optimizer=AdamWConfig(learning_rate=1e-3, betas=(0.9, 0.95), epsilon=1e-8),
            global_batch_size=32,
            steps=1500,
            warmup_steps=100,
        ),
        engine=EngineConfig(log_every=10, checkpoint_every=500, keep_last=1, trackers=()),
    )


def _finetuning(
    name: str, *, steps: int, learning_rate: float, layer_decay: float | None, model: BackboneConfig = MODEL
) -> ClassificationConfig:
    return ClassificationConfig(
        recipe=name,
        model=model,
        classes=(),
        data=DataConfig(crop=RandomResizedCrop(scale=(0.5, 1.0)), flip=True, workers=0),
        optimization=OptimizationConfig(
            optimizer=AdamWConfig(learning_rate=learning_rate, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.05),
            global_batch_size=32,
            steps=steps,
            warmup_steps=steps // 10,
            min_learning_rate=1e-6,
            clip_gradient_norm=1.0,
            layer_decay=layer_decay,
        ),
        engine=EngineConfig(log_every=10, trackers=()),
        label_smoothing=0.1,
    )


def _clip(name: str, visual: TowerOptimization) -> ContrastiveConfig:
    return ContrastiveConfig(
        recipe=name,
        model=ClipModelConfig(
            vision=MODEL,
            # Captions are short: a longer context would only cost time.
            text=TextConfig(context_length=20, width=128, heads=2, depth=2, mlp_width=512),
            embedding_width=128,
            projection_bias=False,
        ),
        data=DataConfig(crop=RandomResizedCrop(scale=(0.9, 1.0)), flip=True, workers=0),
        optimization=OptimizationConfig(
            optimizer=AdamWConfig(learning_rate=1e-3, epsilon=1e-8),
            global_batch_size=64,
            steps=300,
            warmup_steps=30,
            min_learning_rate=0.0,
            clip_gradient_norm=1.0,
        ),
        engine=EngineConfig(log_every=10, checkpoint_every=1000, keep_last=1, trackers=()),
        visual=visual,
    )


def quickstart() -> QuickstartConfig:
    """Everything that `unveil quickstart` runs: pre-training, probes, and fine-tuning beside the same from scratch.

    Hardware: 2 CPU cores with bf16, 10 minutes; with captions (`--chapters all`) 4 more. Expected: docs/lab_book.md,
    quickstart.
    """
    return QuickstartConfig(
        pretrain=quickstart_pretraining(),
        test=FashionScenes(split="test", count=2000),
        probe_labels=(100, 1000),
        probe_seeds=3,
        finetune=(
            FewLabels(
                labels=100,
                seeds=3,
                pretrained=_finetuning("pretrained", steps=60, learning_rate=5e-4, layer_decay=0.75),
                scratch=_finetuning("scratch", steps=100, learning_rate=3e-4, layer_decay=None),
            ),
            FewLabels(
                labels=1000,
                seeds=1,
                pretrained=_finetuning("pretrained", steps=150, learning_rate=1e-3, layer_decay=0.75),
                scratch=_finetuning("scratch", steps=600, learning_rate=2e-4, layer_decay=None),
            ),
        ),
        captions=CaptionsChapter(
            seeds=1,
            pretrained=_clip("clip_pretrained", TowerOptimization(layer_decay=0.75)),
            scratch=_clip("clip_scratch", TowerOptimization()),
        ),
    )


def quickstart_columns() -> QuickstartConfig:
    """Everything that `unveil quickstart --model revcolv2` runs: the same story with RevColV2 (reconstruction).

    Hardware: two CPU cores, ten minutes. Expected: docs/lab_book.md, quickstart with RevColV2.
    """
    return QuickstartConfig(
        pretrain=quickstart_columns_pretraining(),
        test=FashionScenes(split="test", count=2000, size=32),
        probe_labels=(100, 1000),
        probe_seeds=3,
        finetune=(
            FewLabels(
                labels=100,
                seeds=3,
                pretrained=_columns_finetuning("pretrained", steps=120, learning_rate=1e-3),
                scratch=_columns_finetuning("scratch", steps=120, learning_rate=1e-3),
            ),
            FewLabels(
                labels=1000,
                seeds=1,
                pretrained=_columns_finetuning("pretrained", steps=300, learning_rate=1e-3),
                scratch=_columns_finetuning("scratch", steps=600, learning_rate=2e-4),
            ),
        ),
        captions=None,
    )


def _columns_finetuning(name: str, *, steps: int, learning_rate: float) -> ClassificationConfig:
    """Without layer decay: so short a pre-training leaves the early blocks much to learn."""
    config = _finetuning(name, steps=steps, learning_rate=learning_rate, layer_decay=None, model=COLUMNS)
    # As in pre-training, or the network would see other colours than those that it has learned on.
    return replace(config, data=replace(config.data, normalization="imagenet"))
