"""Text to vectors on disk."""

import pandas as pd
import pytest
import torch
from tiny import TALKS, encoder

from lore.common import InputError
from lore.splits import load_split
from lore.text.conversations import exchange
from lore.text.embeddings import embed_split
from lore.text.encoder import Encoder


def a_frame():
    sides = {"chosen": [TALKS[0], TALKS[1], TALKS[3]], "rejected": [TALKS[3], TALKS[2], TALKS[0]]}
    return pd.DataFrame({"user_id": ["u", "v", "v"], "prompt": ["p", "q", "p"], **sides})


def test_a_split_is_embedded_once(reward_model, text_encoder, tmp_path, monkeypatch, capsys):
    embed_split(tmp_path / "train", a_frame(), encoder(reward_model))
    split = load_split(tmp_path / "train", "prepare")
    assert split.frame[["chosen", "rejected"]].to_numpy().tolist() == [[0, 2], [1, 3], [2, 0]]
    assert torch.equal(split.table, encoder(reward_model).embed([TALKS[i] for i in (0, 1, 3, 2)]))
    assert torch.equal(split.head, encoder(reward_model).head)
    (tmp_path / "train.parquet").unlink()  # killed between the two files: made again
    embed_split(tmp_path / "train", a_frame(), encoder(reward_model))
    assert len(load_split(tmp_path / "train", "prepare").frame) == 3
    monkeypatch.setattr(Encoder, "forward", lambda *_: pytest.fail("embedded again"))
    embed_split(tmp_path / "train", a_frame(), encoder(reward_model))
    assert capsys.readouterr().out.strip().endswith("done already")
    for frame, other in ((a_frame(), encoder(text_encoder, "mean")), (a_frame()[:2], encoder(reward_model))):
        with pytest.raises(InputError, match=r"train.safetensors was made with .* this run has"):
            embed_split(tmp_path / "train", frame, other)  # it is not written over


LONG = "the cat sat on the mat " * 20


def test_pairs_with_a_reply_that_is_too_long_are_left_out_and_counted(reward_model, tmp_path, capsys):
    frame = a_frame()
    frame["rejected"] = [TALKS[3], exchange("hello?", LONG), TALKS[0]]
    embed_split(tmp_path / "train", frame, encoder(reward_model, max_length=60))
    assert "train: 1 of 3 rows left out" in capsys.readouterr().out
    split = load_split(tmp_path / "train", "prepare")
    assert split.frame[["user_id", "prompt"]].to_numpy().tolist() == [["u", "p"], ["v", "p"]]
    for side, talks in (("chosen", TALKS[::3]), ("rejected", TALKS[::-3])):
        expected = encoder(reward_model).embed(talks)
        assert torch.allclose(split.table[split.frame[side].to_numpy()], expected, atol=1e-5)
    assert len(split.table) == 3  # TALKS 0, 1 and 3, and no row that nothing was written to


def test_rows_that_belong_together_are_left_out_together(reward_model, tmp_path, capsys):
    replies = [exchange("x?", reply) for reply in ("a", "b", LONG, "c", "d", "e")]
    frame = pd.DataFrame(
        {"prompt": [0, 0, 1, 1, 2, 2], "reply": replies}, index=[5, 5, 1, 0, 2, 9]
    )  # shuffled
    model = encoder(reward_model, max_length=60)
    embed_split(tmp_path / "train", frame, model, columns=["reply"], whole="prompt")
    assert "train: 2 of 6 rows left out (every row of the same prompt)" in capsys.readouterr().out
    split = load_split(tmp_path / "train", "prepare", columns=["reply"])
    assert split.frame["prompt"].tolist() == [0, 0, 2, 2]
    expected = encoder(reward_model).embed([exchange("x?", reply) for reply in "abde"])
    assert torch.allclose(split.table[split.frame["reply"].to_numpy()], expected, atol=1e-5)


def test_no_row_left_and_a_reply_whose_row_means_nothing_alone_end_the_run(reward_model, tmp_path):
    frame = pd.DataFrame({"short": [exchange("x?", "a")] * 2, "long": [exchange("x?", LONG)] * 2})
    for columns, words in (
        (["short", "long"], "no row is left; a larger --max_length"),
        (["long"], "longer than the model takes is the reply 'the cat sat"),
    ):
        model = encoder(reward_model, max_length=60)
        with pytest.raises(InputError, match=words):
            embed_split(tmp_path / "-".join(columns), frame[columns], model, columns)
