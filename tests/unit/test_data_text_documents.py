"""Language models that learn from whole texts: a sample each, and nothing from padding."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.features.documents import Piece, piece_samples
from orchestrator.data.features.tokens import IGNORED
from orchestrator.data.preparing.prepare import prepare
from orchestrator.engine.objective import losses
from orchestrator.engine.objective.objective import build_objective
from orchestrator.errors import SourceError
from orchestrator.spec.data import DataSection, Text
from orchestrator.spec.train import Loss
from orchestrator.storage import Folder
from tests.unit.tokens_case import fit_tokenizer


@given(st.lists(st.text("ab\n", max_size=9), max_size=5), st.integers(1, 7), st.booleans())
@settings(max_examples=100, deadline=None)
def test_every_text_of_two_tokens_is_a_sample(texts: list[str], length: int, keep_end: bool) -> None:
    tokenizer = fit_tokenizer(Text(tokenizer="char"), ["ab\n"])
    samples = piece_samples(
        [Piece(10 + row, text) for row, text in enumerate(texts)], tokenizer, length, keep_end=keep_end
    )
    long = [(10 + row, text) for row, text in enumerate(texts) if len(text) > 1]
    assert samples.rows.tolist() == [row for row, _ in long]
    assert samples.features.shape == samples.targets.shape == (len(long), length)
    for (_, text), features, targets in zip(long, samples.features, samples.targets, strict=True):
        kept = text[-length - 1 :] if keep_end else text[: length + 1]
        assert "".join(map(tokenizer.token, features.tolist())) == kept[:-1]
        known = targets != IGNORED
        assert "".join(map(tokenizer.token, targets[known].tolist())) == kept[1:]
        assert (known == (features != 0)).all()
        assert (np.diff(known.astype(int)) <= 0).all()


def test_padding_is_no_part_of_the_loss(tmp_path: Path) -> None:
    assert IGNORED == losses.IGNORED
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcd"), rng.integers(2, 12))) for _ in range(60)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")
    section = DataSection.model_validate(
        {
            "source": {"kind": "parquet", "path": str(tmp_path / "rows.parquet")},
            "text": {"tokenizer": "char", "length": 8, "pack": False},
        }
    )
    prepared = prepare(section, task="language_modeling", seed=0, storage=Folder.at(tmp_path / "storage"))
    part = prepared.part("train")
    assert part.num_rows == 42
    batch = part.gather(np.arange(part.num_rows))
    inputs = prepared.pipeline.transform(batch.features)
    targets = prepared.pipeline.transform_targets(batch.targets)
    assert (inputs.dtype, targets.dtype) == (torch.int64, torch.int64)
    vocab_size = prepared.manifest.num_outputs
    assert vocab_size == 6
    objective = build_objective("language_modeling", Loss(), num_outputs=vocab_size)
    objective.check_targets(targets)
    outputs = torch.randn(*targets.shape, vocab_size, generator=torch.Generator().manual_seed(0))
    found, counted = objective.losses(outputs, targets), objective.weights(targets)
    assert counted is not None
    tokenizer = prepared.pipeline.tokenizer
    assert tokenizer is not None
    for i, row in enumerate(part.source_rows()):
        ids = tokenizer.ids(texts[row][:9])
        assert inputs[i, : len(ids) - 1].tolist() == ids[:-1].tolist()
        by_hand = F.cross_entropy(outputs[i, : len(ids) - 1], torch.tensor(ids[1:].tolist()), reduction="sum")
        torch.testing.assert_close(found[i], by_hand)
        assert counted[i] == len(ids) - 1


def test_texts_too_short_for_a_sample(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"] * 40}), tmp_path / "rows.parquet")
    section = DataSection.model_validate(
        {
            "source": {"kind": "parquet", "path": str(tmp_path / "rows.parquet")},
            "text": {"tokenizer": "byte", "pack": False},
        }
    )
    with pytest.raises(SourceError, match="train part holds fewer than the 2 tokens of one sample"):
        prepare(section, task="language_modeling", seed=0, storage=Folder.at(tmp_path / "storage"))
