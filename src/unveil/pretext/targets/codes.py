"""A frozen tokeniser: which code each patch should be told by."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from unveil.config import PretrainConfig, UnveilError, VectorQuantizedDistillation
from unveil.config.revcolv2 import require_vit
from unveil.config.serialize import from_json
from unveil.data.normalization import normalize
from unveil.models.vit import ViT
from unveil.pretext.codebook import Codebook
from unveil.pretext.targets.inference import fast_precision, fit_images, round_matrices
from unveil.pretext.tokenizer import code_features, code_head
from unveil.weights.load import read_backbone


class FrozenTokenizer:
    """Encoder and codebook of a run of VQ-KD; its decoder is left behind. Like teachers, it is part of no network."""

    def __init__(self, config: PretrainConfig, state: dict[str, Tensor], *, name: str, digest: str) -> None:
        """`config`, `state`: of the run. `digest`: of its weights.

        Raises:
            UnveilError: the run trained no tokeniser; weights that are not of this configuration.
        """
        objective = config.objective
        if not isinstance(objective, VectorQuantizedDistillation):
            raise UnveilError(
                f"{name} trained no tokeniser (its objective is {type(objective).__name__}); give a run of vqkd_base "
                "or a recipe like it: --set objective.tokenizer=RUN"
            )
        self.name = name
        self.digest = digest
        self.grid = config.model.grid
        self.image_size = config.model.image_size
        self.codes = objective.codes
        self._normalization = config.data.normalization
        with torch.device("meta"):
            self._backbone = ViT(require_vit(config.model, "a tokeniser"))
            self._head = code_head(self._backbone, objective)
            self._codebook = Codebook(
                objective.codes, objective.code_dim, decay=1.0, revive_below=0.0, seed=0, global_batch_size=1
            )
        parts = {"backbone": self._backbone, "code_head": self._head, "codebook": self._codebook}
        try:
            for part, module in parts.items():
                module.load_state_dict(_below(state, f"{part}."), assign=True)
                module.eval().requires_grad_(False)
        except RuntimeError as error:
            raise UnveilError(
                f"{name} does not fit the run's config.json ({str(error).splitlines()[0]}); restore it"
            ) from error
        self._place = torch.device("cpu")
        self._features = code_features

    def to(self, place: torch.device | str) -> "FrozenTokenizer":
        """Move the weights there, and round the encoder's matrices to what is computed in there; returns itself."""
        self._place = torch.device(place)
        for module in (self._backbone, self._head, self._codebook):
            module.to(place)
        round_matrices(self._backbone, fast_precision(self._place))
        return self

    def compile_(self) -> None:
        """Compile the encoder."""
        self._features = torch.compile(code_features, dynamic=False)

    def __call__(
        self, images: UInt8[Tensor, "b 3 h w"], patches: Int64[Tensor, "b k"] | None = None
    ) -> Int64[Tensor, "b m"]:
        """The number of each patch's code, row by row; or of these patches' only."""
        precision = fast_precision(self._place)
        with torch.inference_mode(), torch.autocast(self._place.type, precision, enabled=precision != torch.float32):
            pixels = fit_images(images, (self.image_size, self.image_size)).round().to(torch.uint8)
            normalized = normalize(pixels, self._normalization)
            features = self._features(self._backbone, self._head, normalized, only=patches)
        return self._codebook.nearest(features)


def load_tokenizer(place: str) -> FrozenTokenizer:
    """The tokeniser of a run folder, or of one of its checkpoints.

    Raises:
        UnveilError: nothing there, a run that trained no tokeniser, or files that are damaged.
    """
    path = Path(place).expanduser()
    if not path.exists():
        raise UnveilError(
            f"there is no tokeniser at {place}; train one (unveil pretrain IMAGES --recipe vqkd_base), or give the run "
            "that did: --set objective.tokenizer=RUN"
        )
    file, state = read_backbone(path, weights="raw")
    run = file.parent.parent.parent / "config.json"
    try:
        said: Any = json.loads(run.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnveilError(
            f"{run}, which says what tokeniser {file} is, cannot be read ({error}); give the folder of its run"
        ) from None
    if not isinstance(said, dict) or said.get("kind") != PretrainConfig.__name__:
        raise UnveilError(f"{place} is no pre-training run and holds no tokeniser; give --set objective.tokenizer=RUN")
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return FrozenTokenizer(from_json(PretrainConfig, said), state, name=str(file), digest=digest)


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
