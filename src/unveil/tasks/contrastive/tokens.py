"""Texts to the numbers that a text tower reads: open_clip's byte-pair encoding, which is OpenAI's."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

KNOWN_WORDS = 200_000
"""Most words whose pieces are kept: open_clip keeps all, which in a run over web captions fills the memory."""


MARKS = 2
"""Tokens of a text without a word: its start and its end."""


@dataclass(frozen=True)
class Tokenizer:
    """Picklable and without a state of its own. Making one loads the vocabulary, which forked workers then share."""

    context_length: int = 77
    """Tokens of a text, start and end among them; a longer one is cut off, and its last token is the end."""

    def __post_init__(self) -> None:
        _encoding()

    def __call__(self, texts: Sequence[str]) -> Int64[Tensor, "n t"]:
        """Start, text, end, and zeros up to the context length."""
        rows = [self.fit(self.encode(text)) for text in texts]
        return torch.stack(rows) if rows else torch.zeros(0, self.context_length, dtype=torch.int64)

    def encode(self, text: str) -> list[int]:
        """Start, all of the text, end: in lower case, with single spaces, HTML and broken Unicode mended."""
        encoding = _encoding()
        if len(encoding.cache) > KNOWN_WORDS:
            # Its marks stand for themselves there; they must stay.
            marks = [encoding.decoder[number] for number in encoding.all_special_ids]
            encoding.cache = {mark: mark for mark in marks}
        return [encoding.sot_token_id, *encoding.encode(text), encoding.eot_token_id]

    def fit(self, tokens: Sequence[int]) -> Int64[Tensor, "t"]:
        """What `encode` gives, cut off or filled up with zeros."""
        fitted = torch.zeros(self.context_length, dtype=torch.int64)
        fitted[: len(tokens)] = torch.tensor(tokens[: self.context_length])
        if len(tokens) > self.context_length:
            fitted[-1] = tokens[-1]
        return fitted

    def decode(self, tokens: Int64[Tensor, "t"]) -> str:
        """The cleaned text that tokens of one row stand for."""
        encoding = _encoding()
        ends = {0, encoding.sot_token_id, encoding.eot_token_id}
        return encoding.decode([token for token in tokens.tolist() if token not in ends]).strip()


@cache
def _encoding() -> Any:
    """One for each process."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()
