"""What a recipe's network costs, with its head and its losses."""

from collections.abc import Callable
from dataclasses import replace

from unveil.config import (
    BackboneConfig,
    ClassificationConfig,
    ContrastiveConfig,
    FeatureDistillation,
    MaskedAutoencoding,
    MaskedRegression,
    MaskedTokenPrediction,
    PretrainConfig,
    ProbeConfig,
    RevColV2Config,
    TowerOptimization,
    VectorQuantizedDistillation,
    ViTConfig,
)
from unveil.config.resolve import AnyRun
from unveil.config.revcolv2 import require_vit
from unveil.planning.columns import columns
from unveil.planning.cost import Cost, Storage, blocks, linear, norm, only_forward, text_tower, vit
from unveil.planning.teachers import Teacher, hidden_patches


def network_cost(config: AnyRun, storage: Storage, teacher: Teacher | None, classes: int) -> Cost:
    """Of what a run trains, for one image (of a CLIP: for one pair).

    Args:
        teacher: of a pre-training.
        classes: of a classifier.
    """
    match config:
        case PretrainConfig():
            assert teacher is not None
            return _pretraining(config, storage, teacher)
        case ClassificationConfig():
            return _classification(config, storage, classes)
        case ProbeConfig():
            model = backbone_of(config)
            match model:
                case ViTConfig():
                    network = vit(model, storage)
                case RevColV2Config():
                    network = columns(model, storage, reads="bottom_up")
            return only_forward(network) + linear(1, model.width, classes, gradient_to_input=False)
        case ContrastiveConfig():
            return _contrastive(config, storage)


def _pretraining(config: PretrainConfig, storage: Storage, teacher: Teacher) -> Cost:
    if isinstance(config.model, RevColV2Config):
        return _masked_pixels(config, config.model, storage)
    model, dim = vit_of(config), teacher.dim
    width, patches = model.width, model.grid[0] * model.grid[1]
    # The crops of student and teacher as bytes, and the student's as the floats that its patch embedding is given.
    images = Cost(saved=3 * model.image_size**2 + 3 * teacher.own_view**2)
    # The released code computes the last block for all patches.
    only = None if storage.attention == "published" else hidden_patches(config)
    match config.objective:
        case MaskedRegression():
            hidden = hidden_patches(config)
            head = linear(hidden, width, dim, saved=hidden * storage.number * width)
            # Prediction, its unit vector, the target and its unit vector in float32.
            loss = Cost(saved=hidden * 4 * 4 * dim)
            if only is None:
                # Features and targets of all patches, out of which it takes the hidden ones.
                loss += Cost(saved=patches * 4 * (width + dim))
            return images + vit(model, storage, mask_token=True, only=only) + head + loss
        case MaskedAutoencoding():
            return images + _autoencoder(config, config.objective, storage, dim)
        case FeatureDistillation():
            head = linear(patches, width, dim, saved=patches * storage.number * width)
            loss = Cost(saved=patches * 3 * 4 * dim)
            return images + vit(model, storage) + head + loss
        case VectorQuantizedDistillation():
            return images + vit(model, storage) + _tokenizer(config, config.objective, storage, dim)
        case MaskedTokenPrediction():
            network = vit(model, storage, mask_token=True, only=only)
            return images + network + _token_head(config, config.objective, storage, dim)


def _autoencoder(config: PretrainConfig, objective: MaskedAutoencoding, storage: Storage, dim: int) -> Cost:
    """An encoder of visible patches, a decoder of all; of the hidden ones' answers its loss."""
    model, hidden = vit_of(config), hidden_patches(config)
    decoder, patches = objective.decoder(model), model.grid[0] * model.grid[1]
    seen, width = patches - hidden, decoder.width
    # The released code decodes all patches to the end.
    wanted = None if storage.attention == "published" else hidden
    told = wanted or 1 + patches
    # The mask token, and a table of positions; those of the encoder, which it counts among what learns, are fixed too.
    others = Cost(parameters=(2 + patches) * width, learned=width - (1 + patches) * model.width)
    return (
        vit(model, storage, seen=seen)
        + linear(1 + seen, model.width, width, saved=(1 + seen) * storage.number * model.width)
        + blocks(decoder, 1 + patches, storage, wanted=wanted)
        + norm(width, told)
        + linear(told, width, dim, saved=told * storage.number * width)
        + others
        # Prediction and target in float32.
        + Cost(saved=hidden * 2 * 4 * dim)
    )


def _masked_pixels(config: PretrainConfig, model: RevColV2Config, storage: Storage) -> Cost:
    """Columns of which the bottom-up ones see the visible units, and the finest cells of the hidden units to pixels."""
    hidden, unit = hidden_patches(config), 3 * model.mask_unit**2
    cells, width, patch = hidden * (model.mask_unit // model.patch_size) ** 2, model.widths[0], 3 * model.patch_size**2
    images = Cost(saved=3 * model.image_size**2)
    head = norm(width, cells) + linear(cells, width, patch, saved=storage.number * cells * width)
    # Of the squared error the difference, in float32.
    loss = Cost(saved=hidden * 4 * unit)
    return images + columns(model, storage, mask_tokens=True, hidden=hidden) + head + loss


def _tokenizer(config: PretrainConfig, objective: VectorQuantizedDistillation, storage: Storage, dim: int) -> Cost:
    """Behind the encoder: the way to the codes in float32, the codebook, the decoder, the way to the features."""
    model = vit_of(config)
    width, patches = model.width, model.grid[0] * model.grid[1]
    decoder = replace(model, image_size=model.grid[0], patch_size=1, depth=objective.decoder_depth)
    codes, length, number = objective.codes, objective.code_dim, storage.number
    to_codes = linear(patches, width, width, saved=patches * 8 * width) + linear(patches, width, length)
    # Each feature against each code; codes learn from averages, not from gradients.
    nearest = Cost(forward=2 * patches * codes * length, saved=patches * 4 * 4 * length)
    decoding = vit(decoder, storage, channels=length, image_learns=True)
    to_features = linear(patches, width, width, saved=patches * 2 * number * width)
    to_features += linear(patches, width, dim, saved=patches * 4 * 4 * dim)
    return to_codes + nearest + decoding + to_features


def _token_head(config: PretrainConfig, objective: MaskedTokenPrediction, storage: Storage, codes: int) -> Cost:
    model, hidden = vit_of(config), hidden_patches(config)
    width, tokens = model.width, 1 + model.grid[0] * model.grid[1]
    # Beside the vectors, the logarithms of all codes' probabilities.
    head = linear(hidden, width, codes, saved=hidden * (storage.number * width + 4 * codes))
    if objective.aggregation is None:
        return head
    shared = replace(head, parameters=0, learned=0, matrices=0)
    norm_again = Cost(saved=norm(width, hidden).saved)
    more = blocks(replace(model, activation_checkpointing=False), tokens, storage, depth=objective.aggregation.depth)
    return head + more + norm_again + shared


def _classification(config: ClassificationConfig, storage: Storage, classes: int) -> Cost:
    model = config.model
    match model:
        case ViTConfig():
            network = vit(
                model,
                storage,
                final_norm=config.pooling == "cls",
                patch_embedding_learns=not config.freeze_patch_embedding,
            )
        case RevColV2Config():
            network = columns(model, storage, reads="top")
    if config.pooling == "mean":
        network += norm(model.width, 1)
    images = Cost(saved=3 * model.image_size**2)
    return images + network + linear(1, model.width, classes, saved=4 * classes)


def _contrastive(config: ContrastiveConfig, storage: Storage) -> Cost:
    """Of one pass through both towers; of several micro-batches each goes forward twice, which is not counted."""
    model = config.model
    seen = int(model.vision.grid[0] * model.vision.grid[1] * (1.0 - config.patch_dropout))
    images, texts, width = model.vision, model.text, model.embedding_width
    seeing = _side(
        config.visual,
        lambda frozen: vit(images, storage, seen=seen, frozen=frozen),
        linear(1, images.width, width, bias=model.projection_bias),
    )
    reading = _side(
        config.text,
        lambda frozen: text_tower(texts, storage, frozen=frozen),
        linear(1, texts.width, width, bias=False),
    )
    return seeing + reading + Cost(parameters=1, learned=1, saved=3 * images.image_size**2)


def _side(tower: TowerOptimization, layers: Callable[[int], Cost], projection: Cost) -> Cost:
    """A tower with its way into the shared space. `layers`: by how many of them are locked."""
    if tower.locked == "all":
        return only_forward(layers(0) + projection)
    return layers(tower.locked) + projection


def backbone_of(config: AnyRun) -> BackboneConfig:
    """The image network of a run."""
    return config.model.vision if isinstance(config, ContrastiveConfig) else config.model


def vit_of(config: AnyRun) -> ViTConfig:
    """The same where it is a ViT.

    Raises:
        UnveilError: it is a RevColV2.
    """
    return require_vit(backbone_of(config), "this objective")
