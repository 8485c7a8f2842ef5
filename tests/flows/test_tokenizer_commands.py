"""A tokeniser, the network that predicts its codes, and a classifier from that, by commands alone."""

from pathlib import Path

from tests.flows.commands import QUICK, Unveil, metrics
from unveil.config import FashionScenes
from unveil.data.samples.writers import write_samples

TOKENIZER = (
    *("--set", "objective=VectorQuantizedDistillation", "--set", "objective.codes=48"),
    *("--set", "objective.decoder_depth=1", "--steps", 3),
)
PREDICTION = (
    *("--recipe", "tokens_small_cpu", "--workers", 0, "--set", "engine.trackers=", "--set", "model.patch_size=8"),
    *("--set", "model.depth=2", "--steps", 2, "--global-batch-size", 8),
)
AGGREGATION = (
    *("--set", "objective.aggregation=PatchAggregation"),
    *("--set", "objective.aggregation.after_block=1"),
)


def test_from_images_to_codes_to_a_classifier(tmp_path: Path, unveil: Unveil) -> None:
    scenes, tokenizer, tokens = tmp_path / "scenes", tmp_path / "tokenizer", tmp_path / "tokens"
    write_samples(scenes, "folders", FashionScenes(count=20, size=32), test_count=10)
    held_out = ("--set", "data.validation=ImageFiles", "--set", f"data.validation.paths={scenes}/test")
    trained = unveil("pretrain", scenes / "train", "--out", tokenizer, *QUICK, *TOKENIZER, *held_out)
    assert trained.status == 0, trained.err
    assert "masking     none, the student sees whole images\n" in trained.out
    assert metrics(tokenizer)[-1].keys() >= {"codebook_use", "validation_codebook_use"}

    predict = ("pretrain", scenes / "train", "--out", tokens, *PREDICTION, "--set", f"objective.tokenizer={tokenizer}")
    predicted = unveil(*predict, *AGGREGATION)
    assert predicted.status == 0, predicted.err
    assert f"tokeniser   {tokenizer}\n" in predicted.out
    assert metrics(tokens)[-1].keys() >= {"aggregation_loss", "code_accuracy"}

    network = ("--set", "model.patch_size=8", "--set", "model.depth=2")
    tuned = unveil(
        *("finetune", "classification", scenes, "--out", tmp_path / "tuned", "--recipe", "finetune_small"),
        *("--init-from", tokens, "--steps", 1, "--global-batch-size", 4, "--workers", 0),
        *("--set", "engine.trackers=", *network),
    )
    assert tuned.status == 0, tuned.err
    assert "weights from " + str(tokens) in tuned.out
    probed = unveil("probe", scenes, "--model", tokenizer, "--out", tmp_path / "probed", "--method", "knn")
    assert probed.status == 0, probed.err


def test_what_is_refused(tmp_path: Path, photos: Path, unveil: Unveil) -> None:
    recipe = ("pretrain", photos, "--recipe", "tokens_small_cpu", "--out", tmp_path / "run", "--workers", 0)
    told = unveil(*recipe, "--teacher", "pixels")
    assert told.status != 0
    assert "tokens_small_cpu predicts the codes of a tokeniser, which has learned from a teacher" in told.complaint
    missing = unveil(*recipe, "--set", f"objective.tokenizer={tmp_path}/none")
    assert missing.status != 0
    assert f"there is no tokeniser at {tmp_path}/none; train one (unveil pretrain IMAGES" in missing.complaint
    assert not (tmp_path / "run").exists()
    negative = unveil(*recipe[:2], "--set", "objective=VectorQuantizedDistillation", "--set", "objective.codes=1")
    assert negative.status != 0
    assert "objective.codes must be at least 2" in negative.complaint
