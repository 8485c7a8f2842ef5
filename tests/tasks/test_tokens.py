"""Texts to tokens, as open_clip's own function has them."""

import pickle

import open_clip
import pytest
import torch

from unveil.tasks.contrastive import tokens
from unveil.tasks.contrastive.tokens import Tokenizer

LONG = "a very long caption that never ends " * 30
TEXTS = [
    "a photo of a cat",
    "",
    "  Two\tCATS,\nit's   3 o'clock!  ",
    "caf\u00e9 &amp;amp; cr\u00e8me br\u00fbl\u00e9e &lt;3",
    "schÃ¶n mis-decoded, 漢字 and 🐈‍⬛",
    "antidisestablishmentarianism" * 9,
    LONG,
]


@pytest.mark.parametrize("context_length", [77, 16])
def test_like_open_clip(context_length: int) -> None:
    found = Tokenizer(context_length)(TEXTS)
    assert torch.equal(found, open_clip.tokenize(TEXTS, context_length=context_length))
    assert found.dtype == torch.int64 and found.shape == (len(TEXTS), context_length)
    # The end has the highest number, by which text towers find it.
    assert (found.max(dim=1).values == 49407).all() and (found[:, 0] == 49406).all()


def test_the_edge_of_the_context() -> None:
    tokenizer = Tokenizer(8)
    assert [len(tokenizer.encode("cat " * words)) for words in (5, 6, 7)] == [7, 8, 9]
    five, six, seven = tokenizer(["cat " * words for words in (5, 6, 7)])
    assert five.tolist() == [49406, *[2368] * 5, 49407, 0]
    assert six.tolist() == seven.tolist() == [49406, *[2368] * 6, 49407]
    assert tokenizer([]).shape == (0, 8)


def test_back_to_text() -> None:
    tokenizer = Tokenizer()
    assert tokenizer.decode(tokenizer(["A  Cat, and a DOG!"])[0]) == "a cat , and a dog !"
    assert tokenizer.decode(tokenizer([""])[0]) == ""


def test_a_copy_in_another_process() -> None:
    tokenizer = Tokenizer(16)
    stored = pickle.dumps(tokenizer)
    assert len(stored) < 200
    tokens._encoding.cache_clear()
    assert torch.equal(pickle.loads(stored)(TEXTS), open_clip.tokenize(TEXTS, context_length=16))


def test_memory_does_not_grow_with_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "KNOWN_WORDS", 50)
    tokenizer = Tokenizer()
    words = [f"{chr(97 + first)}{chr(97 + second)}zzq" for first in range(26) for second in range(20)]
    found = tokenizer([*words, "<start_of_text> <end_of_text>"])
    assert len(tokens._encoding().cache) <= 50 + 2
    assert torch.equal(found, open_clip.tokenize([*words, "<start_of_text> <end_of_text>"]))
