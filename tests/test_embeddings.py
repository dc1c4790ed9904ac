"""Text to vectors on disk."""

import pandas as pd
import pytest
import torch
from tiny import TALKS, encoder

from lore.common import InputError
from lore.embeddings import embed_split
from lore.encoder import Encoder
from lore.tables import load_split


def a_frame():
    return pd.DataFrame(
        {
            "user_id": ["u", "v", "v"],
            "prompt": ["p", "q", "p"],
            "chosen": [TALKS[0], TALKS[1], TALKS[3]],
            "rejected": [TALKS[3], TALKS[2], TALKS[0]],
        }
    )


def test_a_split_is_embedded_once(reward_model, tmp_path, monkeypatch, capsys):
    embed_split(tmp_path / "train", a_frame(), encoder(reward_model))
    split = load_split(tmp_path / "train", "prepare")
    assert split.frame[["chosen", "rejected"]].to_numpy().tolist() == [[0, 2], [1, 3], [2, 0]]
    assert torch.equal(split.table, encoder(reward_model).embed([TALKS[i] for i in (0, 1, 3, 2)]))
    assert torch.equal(split.head, encoder(reward_model).head)
    monkeypatch.setattr(Encoder, "forward", lambda *_: pytest.fail("embedded again"))
    embed_split(tmp_path / "train", a_frame(), encoder(reward_model))
    assert capsys.readouterr().out.strip().endswith("done already")


def test_a_half_finished_split_is_made_again(reward_model, tmp_path):
    embed_split(tmp_path / "train", a_frame(), encoder(reward_model))
    (tmp_path / "train.parquet").unlink()  # killed between the two files
    embed_split(tmp_path / "train", a_frame(), encoder(reward_model))
    assert len(load_split(tmp_path / "train", "prepare").frame) == 3


def test_a_split_of_another_model_or_text_is_not_overwritten(reward_model, text_encoder, tmp_path):
    embed_split(tmp_path / "train", a_frame(), encoder(reward_model))
    for other_frame, other in (
        (a_frame(), encoder(text_encoder, "mean")),
        (a_frame()[:2], encoder(reward_model)),
    ):
        with pytest.raises(InputError, match=r"made of other text|made with .* this run has"):
            embed_split(tmp_path / "train", other_frame, other)
