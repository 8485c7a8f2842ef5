"""RevColV2's pre-training and image classification: supplement, Tables 1 to 5 and section 2.1.

    revcolv2_base_mim -> revcolv2_base_in1k, revcolv2_base_probe_in1k
    revcolv2_base_mim -> revcolv2_base_in22k -> revcolv2_base_in1k_after_in22k
    revcolv2_base_scratch_in1k; and all of them for large
    revcolv2_small_cpu -> finetune_revcolv2_small, or no recipe

The networks are a reconstruction (see `RevColV2Config`): the numbers that a recipe expects are the authors' for their
own. Each starts from the stage before it: give that run to --init-from.
"""

from unveil.config import (
    AdamWConfig,
    AugmentationConfig,
    ClassificationConfig,
    DataConfig,
    EngineConfig,
    LARSConfig,
    MaskedRegression,
    OptimizationConfig,
    PixelTarget,
    PretrainConfig,
    ProbeConfig,
    RandomMasking,
    RandomResizedCrop,
    RevColV2Config,
)
from unveil.config.revcolv2 import revcolv2_base, revcolv2_large, revcolv2_small

RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
"""RandAug (9, 0.5) of Tables 2 to 4 in timm's words."""

IMAGENET_1K, IMAGENET_22K = 1_281_167, 14_197_122
"""Images."""


def revcolv2_base_mim() -> PretrainConfig:
    """Masked pixels with the reconstruction of RevColV2-B, 1,600 epochs of ImageNet-1K: supplement, Table 1.

    Hardware: not given in the paper. Cost: 1,600 epochs of some 12 G multiply-adds an image, forward (counted by hand).
    Expected after fine-tuning: 84.7 % top-1 on ImageNet-1K (section 2.1: 83.1 + 1.6); by a linear probe 67.7 % (Table
    5). Not run.
    From the table: AdamW, rate 1.5e-4 x 4096 / 256, weight decay 0.05, betas 0.9 and 0.95, batch 4096, cosine, 40 of
    1,600 epochs warm up, random crops; no stochastic depth.
    Inferred: the network (reconstruction), 75 % of units of 32 px hidden, pixels normalised in squares of 16 px ("raw
    patches" may mean without; --set target.normalize=false with --set target.normalized_side=none). Of MAE's released
    code: crops of 0.2 to 1 of the area, mirroring, the end of the cosine (0), no clipping.
    """
    return _mim("revcolv2_base_mim", revcolv2_base())


def revcolv2_large_mim() -> PretrainConfig:
    """Masked pixels with the reconstruction of RevColV2-L, 1,600 epochs of ImageNet-1K: supplement, Table 1.

    Hardware: not given in the paper. Cost: 1,600 epochs of some 42 G multiply-adds an image, forward (counted by hand).
    Expected after fine-tuning: 86.3 % top-1 on ImageNet-1K (section 2.1: 82.6 + 3.7); by a linear probe 79.3 % (Table
    5). Not run.
    The settings are those of revcolv2_base_mim (Table 1 is for all sizes); what is inferred there is inferred here.
    """
    return _mim("revcolv2_large_mim", revcolv2_large())


def revcolv2_tiny_cpu() -> PretrainConfig:
    """Seconds on any folder of images: are the columns of RevColV2 (reconstruction) in place? Logs every step.

    Hardware: one CPU core. Expected: the loss begins near 1, the variance of normalised pixels, and falls a little in
    20 steps; nothing useful is learned.
    Ours: the network is a reconstruction's, shrunk.
    """
    return PretrainConfig(
        recipe="revcolv2_tiny_cpu",
        model=revcolv2_small(widths=(16, 32, 32), head_width=16),
        objective=MaskedRegression(loss="squared"),
        masking=RandomMasking(ratio=0.75),
        target=PixelTarget(),
        data=DataConfig(crop=RandomResizedCrop(scale=(0.2, 1.0)), normalization="imagenet", workers=1),
        optimization=OptimizationConfig(
            optimizer=AdamWConfig(learning_rate=1e-3, betas=(0.9, 0.95), epsilon=1e-8),
            global_batch_size=8,
            steps=20,
            warmup_steps=2,
        ),
        engine=EngineConfig(log_every=1, checkpoint_every=10),
    )


def revcolv2_small_cpu() -> PretrainConfig:
    """RevColV2 (reconstruction) on small images (32 px), for a laptop and some 10,000 of them: 4.1 M parameters.

    Hardware: 2 CPU cores. Expected: at its own length not run. After a fifth of it a probe gives 44 % on
    CIFAR-10-JPEG-12k, fine-tuning 46 % with 1,000 labels, 37 % from scratch (docs/lab_book.md).
    Ours: a reconstruction with three levels (strides 2, 4 and 8) and two columns each way; where nothing is hidden
    193 M multiply-adds an image, small_cpu's ViT (2.7 M parameters) 173 M. No layer scale: one that begins at 1e-6
    hardly acts in a short run.
    """
    return PretrainConfig(
        recipe="revcolv2_small_cpu",
        model=revcolv2_small(),
        objective=MaskedRegression(loss="squared"),
        masking=RandomMasking(ratio=0.75),
        target=PixelTarget(),
        data=DataConfig(crop=RandomResizedCrop(scale=(0.2, 1.0)), normalization="imagenet"),
        optimization=OptimizationConfig(
            optimizer=AdamWConfig(learning_rate=1e-3, betas=(0.9, 0.95), epsilon=1e-8),
            global_batch_size=64,
            epochs=100.0,
            warmup_epochs=5.0,
        ),
        engine=EngineConfig(log_every=10, checkpoint_every=500),
    )


def revcolv2_base_in22k() -> ClassificationConfig:
    """Intermediate fine-tuning of the reconstruction of RevColV2-B on ImageNet-22K, 90 epochs: supplement, Table 2.

    From revcolv2_base_mim. Hardware: not given in the paper. Expected: no number is published. Not run.
    From the table: rate 2.5e-4 x 4096 / 256, layer decay 0.8, drop path 0.1, no average of the weights, and the rest.
    Inferred: the network (reconstruction), crops of 0.08 to 1 of the area, mirroring, the end of the cosine (1e-6), no
    clipping, a test crop of 7/8.
    """
    return _in22k("revcolv2_base_in22k", revcolv2_base(drop_path=0.1))


def revcolv2_large_in22k() -> ClassificationConfig:
    """Intermediate fine-tuning of the reconstruction of RevColV2-L on ImageNet-22K, 90 epochs: supplement, Table 2.

    From revcolv2_large_mim. Hardware: not given in the paper. Expected: no number is published. Not run.
    As revcolv2_base_in22k, with drop path 0.2; what is inferred there is inferred here.
    """
    return _in22k("revcolv2_large_in22k", revcolv2_large(drop_path=0.2))


def revcolv2_base_in1k() -> ClassificationConfig:
    """The reconstruction of RevColV2-B on ImageNet-1K after masked pre-training, 100 epochs: supplement, Table 3.

    From revcolv2_base_mim. Hardware: not given in the paper.
    Expected: 84.7 % top-1 (section 2.1: 83.1 + 1.6). Not run.
    From the table: rate 5e-4 x 1024 / 256, layer decay 0.75, drop path 0.1, average of the weights 0.9999, and the
    rest. Inferred: as in revcolv2_base_in22k.
    """
    return _in1k("revcolv2_base_in1k", revcolv2_base(drop_path=0.1), epochs=100.0)


def revcolv2_large_in1k() -> ClassificationConfig:
    """The reconstruction of RevColV2-L on ImageNet-1K after masked pre-training, 50 epochs: supplement, Table 3.

    From revcolv2_large_mim. Hardware: not given in the paper.
    Expected: 86.3 % top-1 (section 2.1: 82.6 + 3.7). Not run.
    From the table: as revcolv2_base_in1k, drop path 0.1 included, for 50 epochs. Inferred: as in revcolv2_base_in22k.
    """
    return _in1k("revcolv2_large_in1k", revcolv2_large(drop_path=0.1), epochs=50.0)


def revcolv2_base_in1k_after_in22k() -> ClassificationConfig:
    """The reconstruction of RevColV2-B on ImageNet-1K after ImageNet-22K, 30 epochs: supplement, Table 4.

    From revcolv2_base_in22k. Hardware: not given in the paper. Expected: no number was to be had for base. Not run.
    From the table: rate 2.5e-5 x 512 / 256, weight decay 0.01, layer decay 0.9, no warm-up, neither Mixup nor CutMix,
    drop path 0.1, average of the weights 0.9999, a new head. Inferred: as in revcolv2_base_in22k.
    """
    return _after_in22k("revcolv2_base_in1k_after_in22k", revcolv2_base(drop_path=0.1))


def revcolv2_large_in1k_after_in22k() -> ClassificationConfig:
    """The reconstruction of RevColV2-L on ImageNet-1K after ImageNet-22K, 30 epochs: supplement, Table 4.

    From revcolv2_large_in22k. Hardware: not given in the paper.
    Expected: 88.4 % top-1 (abstract; the size of the images is not said). Not run.
    From the table: as revcolv2_base_in1k_after_in22k, with drop path 0.2. Inferred: as in revcolv2_base_in22k.
    """
    return _after_in22k("revcolv2_large_in1k_after_in22k", revcolv2_large(drop_path=0.2))


def revcolv2_base_scratch_in1k() -> ClassificationConfig:
    """The reconstruction of RevColV2-B on ImageNet-1K without pre-training, 300 epochs: supplement, section 2.1.

    From scratch. Hardware: not given in the paper. Expected: 83.1 % top-1. Not run.
    From the section: MAE's setting of training from scratch, with an average of the weights of 0.999 (maybe the 0.9999
    of Tables 3 and 4 is meant: --set ema_decay=0.9999). That setting is in no released code; here it is recalled from
    MAE's paper: rate 1e-4 x 4096 / 256, weight decay 0.3, betas 0.9 and 0.95, 20 of 300 epochs warm up, Mixup, CutMix,
    label smoothing, drop path 0.1. Inferred: the network, the head's small start (of Tables 2 and 3), and what is in
    revcolv2_base_in22k.
    """
    return _scratch("revcolv2_base_scratch_in1k", revcolv2_base(drop_path=0.1), epochs=300.0)


def revcolv2_large_scratch_in1k() -> ClassificationConfig:
    """The reconstruction of RevColV2-L on ImageNet-1K without pre-training, 200 epochs: supplement, section 2.1.

    From scratch. Hardware: not given in the paper. Expected: 82.6 % top-1. Not run.
    As revcolv2_base_scratch_in1k, with what is recalled of MAE's paper for large: drop path 0.2, 200 epochs.
    """
    return _scratch("revcolv2_large_scratch_in1k", revcolv2_large(drop_path=0.2), epochs=200.0)


def revcolv2_base_probe_in1k() -> ProbeConfig:
    """Linear probe of the reconstruction of RevColV2-B on ImageNet-1K: supplement, Table 5. From revcolv2_base_mim.

    Hardware: not given in the paper. Expected: 67.7 % top-1. Not run.
    From section 2.2: 90 epochs by LARS as in MAE, on the last level of the bottom-up columns. Of MAE's released code:
    rate 0.1 x 16384 / 256, batch 16,384, 10 epochs warm up, no weight decay, crops of 0.08 to 1 of the area (which
    differ from its as in mae_base_probe_in1k). Inferred: the network (reconstruction), and the mean over the level's
    cells, for there is no cls token.
    """
    return _probe("revcolv2_base_probe_in1k", revcolv2_base())


def revcolv2_large_probe_in1k() -> ProbeConfig:
    """Linear probe of the reconstruction of RevColV2-L on ImageNet-1K: supplement, Table 5. From revcolv2_large_mim.

    Hardware: not given in the paper. Expected: 79.3 % top-1. Not run.
    The settings are those of revcolv2_base_probe_in1k; what is inferred there is inferred here.
    """
    return _probe("revcolv2_large_probe_in1k", revcolv2_large())


def _mim(recipe: str, model: RevColV2Config) -> PretrainConfig:
    """Table 1."""
    an_epoch = IMAGENET_1K // 4096
    return PretrainConfig(
        recipe=recipe,
        model=model,
        objective=MaskedRegression(loss="squared"),
        masking=RandomMasking(ratio=0.75),
        target=PixelTarget(normalized_side=16),
        data=DataConfig(crop=RandomResizedCrop(scale=(0.2, 1.0)), normalization="imagenet"),
        optimization=OptimizationConfig(
            optimizer=AdamWConfig(learning_rate=2.4e-3, betas=(0.9, 0.95), epsilon=1e-8, weight_decay=0.05),
            global_batch_size=4096,
            epochs=1600.0,
            warmup_epochs=40.0,
            min_learning_rate=0.0,
            clip_gradient_norm=None,
        ),
        engine=EngineConfig(log_every=10, checkpoint_every=20 * an_epoch),
    )


def _in22k(recipe: str, model: RevColV2Config) -> ClassificationConfig:
    """Table 2."""
    optimizer = AdamWConfig(learning_rate=4e-3, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.05)
    optimization = _optimization(optimizer, batch=4096, epochs=90.0, warmup_epochs=5.0, layer_decay=0.8)
    return _classification(recipe, model, optimization, images=IMAGENET_22K, mixes=True, ema_decay=None)


def _in1k(recipe: str, model: RevColV2Config, *, epochs: float) -> ClassificationConfig:
    """Table 3."""
    optimizer = AdamWConfig(learning_rate=2e-3, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.05)
    optimization = _optimization(optimizer, batch=1024, epochs=epochs, warmup_epochs=5.0, layer_decay=0.75)
    return _classification(recipe, model, optimization, images=IMAGENET_1K, mixes=True, ema_decay=0.9999)


def _after_in22k(recipe: str, model: RevColV2Config) -> ClassificationConfig:
    """Table 4."""
    optimizer = AdamWConfig(learning_rate=5e-5, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.01)
    optimization = _optimization(optimizer, batch=512, epochs=30.0, warmup_epochs=0.0, layer_decay=0.9)
    return _classification(recipe, model, optimization, images=IMAGENET_1K, mixes=False, ema_decay=0.9999)


def _scratch(recipe: str, model: RevColV2Config, *, epochs: float) -> ClassificationConfig:
    """Section 2.1."""
    optimizer = AdamWConfig(learning_rate=1.6e-3, betas=(0.9, 0.95), epsilon=1e-8, weight_decay=0.3)
    optimization = _optimization(optimizer, batch=4096, epochs=epochs, warmup_epochs=20.0, layer_decay=None)
    return _classification(recipe, model, optimization, images=IMAGENET_1K, mixes=True, ema_decay=0.999)


def _optimization(
    optimizer: AdamWConfig, *, batch: int, epochs: float, warmup_epochs: float, layer_decay: float | None
) -> OptimizationConfig:
    return OptimizationConfig(
        optimizer=optimizer,
        global_batch_size=batch,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        min_learning_rate=1e-6,
        clip_gradient_norm=None,
        layer_decay=layer_decay,
    )


def _classification(
    recipe: str,
    model: RevColV2Config,
    optimization: OptimizationConfig,
    *,
    images: int,
    mixes: bool,
    ema_decay: float | None,
) -> ClassificationConfig:
    an_epoch = images // optimization.global_batch_size
    return ClassificationConfig(
        recipe=recipe,
        model=model,
        data=DataConfig(crop=RandomResizedCrop(scale=(0.08, 1.0)), normalization="imagenet"),
        augmentation=AugmentationConfig(
            rand_augment=RAND_AUGMENT, mixup=0.8 if mixes else 0.0, cutmix=1.0 if mixes else 0.0
        ),
        optimization=optimization,
        engine=EngineConfig(log_every=10, checkpoint_every=an_epoch, evaluate_every=an_epoch),
        pooling="mean",
        label_smoothing=0.1,
        head_init_scale=0.001,
        ema_decay=ema_decay,
        test_crop=0.875,
    )


def _probe(recipe: str, model: RevColV2Config) -> ProbeConfig:
    an_epoch = IMAGENET_1K // 16_384
    return ProbeConfig(
        recipe=recipe,
        model=model,
        data=DataConfig(crop=RandomResizedCrop(scale=(0.08, 1.0)), normalization="imagenet"),
        optimization=OptimizationConfig(
            optimizer=LARSConfig(learning_rate=6.4, momentum=0.9, weight_decay=0.0, trust_coefficient=0.001),
            global_batch_size=16_384,
            epochs=90.0,
            warmup_epochs=10.0,
            min_learning_rate=0.0,
            clip_gradient_norm=None,
        ),
        engine=EngineConfig(log_every=10, checkpoint_every=an_epoch, evaluate_every=an_epoch),
        pooling="mean",
        test_crop=0.875,
    )
