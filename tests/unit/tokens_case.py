"""A tokenizer of texts that are all at hand."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.data.features.tokens import Tokenizer, count_tokens, fit_vocabulary
from orchestrator.spec.data import Text


def fit_tokenizer(section: Text, texts: Iterable[str], *, language_model: bool = False) -> Tokenizer:
    """The tokenizer of the section, fitted on these texts, as preparation fits it chunk by chunk."""
    return fit_vocabulary(section, count_tokens(section, texts), language_model=language_model)
