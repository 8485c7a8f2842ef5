"""Zero-shot weights against open_clip's own builder, the cache, and answers that are known."""

import logging
from collections.abc import Sequence
from pathlib import Path

import open_clip
import pytest
import torch
from jaxtyping import Float, UInt8
from open_clip import build_zero_shot_classifier
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tasks.embedders import ColourEmbedder
from unveil.config import UnveilError
from unveil.tasks.contrastive import zero_shot as module
from unveil.tasks.contrastive.embedder import Embedder
from unveil.tasks.contrastive.prompts import imagenet_classes, imagenet_templates
from unveil.tasks.contrastive.zero_shot import zero_shot_classifier, zero_shot_weights

NAMES, SENTENCES = ("red", "green", "blue"), ("a {} thing", "something {}", "{} and {}")


class OpenClipEmbedder(ColourEmbedder):
    """open_clip's network at random weights, with its own tokenizer."""

    name = "tiny"
    identity = "0123"
    image_size = 16
    width = 24
    logit_scale = 14.0
    logit_bias = 0.0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = open_clip.model.CLIP(
            24,
            {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
            {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        ).eval()
        self.tokenizer = open_clip.tokenizer.SimpleTokenizer()

    @torch.no_grad()
    def encode_images(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return self.model.encode_image(images.float() / 255, normalize=True)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        self.texts += len(texts)
        return self.model.encode_text(self.tokenizer(list(texts)), normalize=True)


def test_weights_equal_open_clips_builder() -> None:
    embedder = OpenClipEmbedder()
    classes = imagenet_classes()[:7]
    ours = zero_shot_weights(embedder, classes, imagenet_templates())
    theirs = build_zero_shot_classifier(
        embedder.model, embedder.tokenizer, classes, open_clip.OPENAI_IMAGENET_TEMPLATES, num_classes_per_batch=3
    )
    torch.testing.assert_close(ours, theirs.T, atol=1e-5, rtol=1e-5)
    assert embedder.texts == 7 * 80
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(7))


def test_the_classifier_answers_by_scaled_cosines() -> None:
    embedder = ColourEmbedder()
    assert isinstance(embedder, Embedder)
    classifier = zero_shot_classifier(embedder, ("red", "green", "nothing at all"))
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    images[0, 0], images[1, 1] = 255, 255
    logits = classifier.logits(images)
    # The third text names no colour: grey, at 45 degrees or so from all of them.
    grey = 10.0 / 3**0.5 - 2.0
    torch.testing.assert_close(logits, torch.tensor([[8.0, -2.0, grey], [-2.0, 8.0, grey]]), atol=1e-3, rtol=0)
    for row, (first, second) in enumerate([("red", "green"), ("green", "red")]):
        answers = classifier.predict(images, top_k=5)[row]
        assert [label for label, _ in answers] == [first, "nothing at all", second]
        assert sum(share for _, share in answers) == pytest.approx(1.0)
        assert answers[0][1] == pytest.approx(float(logits[row].softmax(dim=0).max()), abs=1e-6)
    assert [len(answer) for answer in classifier.predict(images, top_k=2)] == [2, 2]


def test_the_cache_is_used_only_for_the_same_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEXTS_AT_A_TIME", 4)
    embedder = ColourEmbedder()
    cache = tmp_path / "not" / "there yet"
    first = zero_shot_weights(embedder, NAMES, SENTENCES, cache=cache)
    assert embedder.texts == 9 and len(list(cache.iterdir())) == 1
    again = zero_shot_weights(embedder, NAMES, SENTENCES, cache=cache)
    assert embedder.texts == 9 and torch.equal(first, again)
    # Another order, other sentences, another model: each is computed.
    zero_shot_weights(embedder, NAMES[::-1], SENTENCES, cache=cache)
    zero_shot_weights(embedder, NAMES, SENTENCES[::-1], cache=cache)
    monkeypatch.setattr(ColourEmbedder, "identity", "another")
    zero_shot_weights(embedder, NAMES, SENTENCES, cache=cache)
    assert embedder.texts == 4 * 9 and len(list(cache.iterdir())) == 4
    # One pass through the text tower is not worth a file.
    zero_shot_weights(embedder, NAMES, cache=cache)
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("damage", ["torn", "other shape", "other content"])
def test_a_damaged_cache_is_built_again(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "TEXTS_AT_A_TIME", 4)
    wanted = zero_shot_weights(ColourEmbedder(), NAMES, SENTENCES, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    match damage:
        case "torn":
            file.write_bytes(file.read_bytes()[:-10])
        case "other shape":
            save_file({"weights": torch.zeros(2, 3)}, file)
        case "other content":
            save_file({"something": torch.zeros(3, 3)}, file)
    with caplog.at_level(logging.WARNING):
        again = zero_shot_weights(ColourEmbedder(), NAMES, SENTENCES, cache=tmp_path)
    assert torch.equal(again, wanted) and "built again" in caplog.text
    assert torch.equal(load_file(file)["weights"], wanted)


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "TEXTS_AT_A_TIME", 4)
    (tmp_path / "file").write_text("in the way")
    weights = zero_shot_weights(ColourEmbedder(), NAMES, SENTENCES, cache=tmp_path / "file" / "cache")
    assert weights.shape == (3, 3) and "not kept for the next time" in caplog.text


def test_what_is_no_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    for classes, templates in (((), SENTENCES), (NAMES, ())):
        with pytest.raises(UnveilError, match="at least one class and one template"):
            zero_shot_weights(ColourEmbedder(), classes, templates)
    monkeypatch.setattr(ColourEmbedder, "encode_texts", lambda self, texts: torch.full((len(texts), 3), torch.nan))
    with pytest.raises(UnveilError, match="texts about 'red' with numbers that are not finite"):
        zero_shot_weights(ColourEmbedder(), NAMES, SENTENCES)


def test_sentences_that_are_cut_off_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Each word of this one is a token, and two mark its ends; a long word that is one token is no reason."""
    model = ColourEmbedder()
    model.context_length = 8
    zero_shot_weights(model, ["red", "photograph photograph"], ["{}", "a " * 4 + "{}", "a " * 7 + "{}"])
    assert [record.message for record in caplog.records] == [
        "2 of 6 texts are longer than the 8 tokens that the model reads, and are cut off there: a a a a a a a red ..."
    ]
