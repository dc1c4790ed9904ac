"""Text to vectors on tiny randomly initialised models with a real tokenizer and chat template."""

import gzip
import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from embeddings import Encoder, distinct, embed_split, exchange, read_json_lines
from utils import InputError, load_split

CPU = torch.device("cpu")
TALKS = [
    exchange("the cat", "sat on the mat"),
    exchange("hello; I met a friend and the dog lay beside it, she said nothing", "ok"),
    [*exchange("hi", "hello"), *exchange("and the dog?", "the dog lay beside the cat")],
    exchange("x", "y"),
]


def encoder(folder, pooling="last", **options):
    return Encoder(str(folder), pooling, CPU, **options)


def test_rendered_chat_is_golden_with_one_beginning_token(reward_model):
    model = encoder(reward_model)
    ids, cut = model.tokens([exchange(" the cat ", "sat")])
    assert model.tokenizer.decode(ids[0]) == "<s><|user|>\nthe cat<|end|>\n<|assistant|>\nsat<|end|>\n" and cut == 0


def test_text_encoder_joins_messages_plainly(text_encoder):
    model = encoder(text_encoder, "mean")
    ids, _ = model.tokens([exchange("the cat", "sat")])
    assert model.tokenizer.decode(ids[0], skip_special_tokens=True) == "the cat\n\nsat"


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_every_vector_equals_its_own_full_forward_pass(reward_model, batch_size):
    model = encoder(reward_model, batch_size=batch_size)
    table = model.embed(TALKS)
    for tokens, vector in zip(model.tokens(TALKS)[0], table):
        inputs = torch.tensor([tokens])
        with torch.no_grad():
            alone = model.model.model(input_ids=inputs).last_hidden_state[0, -1]
            logit = model.model(input_ids=inputs).logits.item()
        assert torch.allclose(vector, alone, atol=1e-5)
        assert (vector @ model.head).item() == pytest.approx(logit, abs=1e-5)


def test_the_head_is_the_score_weight_and_not_some_other_layer(reward_model):
    head = encoder(reward_model).head
    weight = load_file(reward_model / "model.safetensors")["score.weight"]
    assert head.shape == (32, 1) and head.dtype == torch.float32 and torch.equal(head, weight.T)


def test_a_wrong_head_is_noticed(reward_model, monkeypatch):
    model = encoder(reward_model)
    ids, table = model.tokens(TALKS)[0], model.embed(TALKS)
    model.check_head(ids[0], table[0])
    with pytest.raises(InputError, match="but the model says"):
        model.check_head(ids[0], table[1])
    monkeypatch.setattr(Encoder, "head", torch.randn(32, 1))
    with pytest.raises(InputError, match="but the model says"):  # before the second batch is embedded
        encoder(reward_model, batch_size=1).embed(TALKS)


def test_the_last_token_is_read_even_when_it_is_the_pad_token(reward_model):
    """The tokenizer pads with the end token: a search for the pad id would stop one token early."""
    model = encoder(reward_model)
    model.tokenizer.chat_template = model.tokenizer.chat_template.replace("<|end|>\n{%", "</s>{%")
    ids, _ = model.tokens(TALKS)
    assert all(tokens[-1] == model.tokenizer.pad_token_id for tokens in ids)
    table = model.embed(TALKS)
    for tokens, vector in zip(ids, table):
        with torch.no_grad():
            alone = model.model.model(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1]
        assert torch.allclose(vector, alone, atol=1e-5)


def test_mean_pooling_is_the_mean_over_the_texts_own_tokens(text_encoder):
    model = encoder(text_encoder, "mean", batch_size=4)
    table = model.embed(TALKS)
    for tokens, vector in zip(model.tokens(TALKS)[0], table):
        with torch.no_grad():
            alone = model.model(input_ids=torch.tensor([tokens])).last_hidden_state[0].mean(0)
        assert torch.allclose(vector, alone, atol=1e-5)
    assert model.head is None


def test_long_conversations_lose_their_oldest_tokens_and_are_counted(reward_model, text_encoder, capsys):
    talks = [exchange("the cat sat on the mat " * 20, "and the dog"), exchange("x", "y")]
    short, whole = encoder(reward_model, max_length=12), encoder(reward_model)
    (cut, same), count = short.tokens(talks)
    everything = whole.tokens(talks)[0]
    assert count == 1 and cut == everything[0][:1] + everything[0][-11:] and same == everything[1]
    assert encoder(reward_model, max_length=10**6).longest == 512  # no more than the model takes
    short.embed(talks)
    assert capsys.readouterr().out.startswith("1 of 2 conversations are too long")
    mean = encoder(text_encoder, "mean", max_length=12)
    assert mean.tokenizer.decode(mean.tokens(talks)[0][0]).endswith("and the dog")


def test_bfloat16_on_request(reward_model):
    table = encoder(reward_model, dtype="bfloat16").embed(TALKS)
    assert table.dtype == torch.bfloat16
    assert torch.allclose(table.float(), encoder(reward_model).embed(TALKS), atol=0.1, rtol=0.1)


def test_repeats_are_found_and_lists_in_place_of_text_are_refused():
    unique, rows = distinct([TALKS[0], TALKS[1], TALKS[0]])
    assert unique == TALKS[:2] and rows == [0, 1, 0]
    with pytest.raises(InputError, match=r"content of a message is a list, not text: \"\['a', 'b'\]\""):
        distinct([exchange("question", ["a", "b"])])


# ------------------------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(Encoder, "embed", lambda *_: pytest.fail("embedded again"))
    embed_split(tmp_path / "train", a_frame(), encoder(reward_model))
    assert capsys.readouterr().out.strip().endswith("done already")


def test_a_half_finished_split_is_made_again(reward_model, tmp_path):
    embed_split(tmp_path / "train", a_frame(), encoder(reward_model))
    (tmp_path / "train.parquet").unlink()  # killed between the two files
    embed_split(tmp_path / "train", a_frame(), encoder(reward_model))
    assert len(load_split(tmp_path / "train", "prepare").frame) == 3


def test_a_split_of_another_model_or_text_is_not_overwritten(reward_model, text_encoder, tmp_path):
    embed_split(tmp_path / "train", a_frame(), encoder(reward_model))
    for other_frame, other in ((a_frame(), encoder(text_encoder, "mean")), (a_frame()[:2], encoder(reward_model))):
        with pytest.raises(InputError, match="made of other text or by another model"):
            embed_split(tmp_path / "train", other_frame, other)


# ------------------------------------------------------------------------------------------------------------------


def test_a_reward_model_needs_a_chat_template_and_a_score_head(reward_model, text_encoder, tokenizer, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    with pytest.raises(InputError, match="has no chat template"):
        encoder(text_encoder).embed(TALKS)
    tiny = {
        "vocab_size": 300,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    for name, model in (
        ("language model", LlamaForCausalLM(LlamaConfig(**tiny))),
        ("two outputs", LlamaForSequenceClassification(LlamaConfig(**tiny, num_labels=2))),
    ):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        with pytest.raises(InputError, match="has no score head with one output"):
            encoder(tmp_path / name).embed(TALKS)
    with pytest.raises(InputError, match="cannot be loaded"):
        encoder(tmp_path / "nothing").embed(TALKS)
    with pytest.raises(InputError, match="pooling = max"):
        encoder(reward_model, "max")
    with pytest.raises(InputError, match="batch_size = 0"):
        encoder(reward_model, batch_size=0)
    with pytest.raises(InputError, match="dtype: use auto"):
        encoder(reward_model, dtype="int8")


def test_json_lines_plain_and_gzipped_and_what_is_wrong_with_them(tmp_path):
    rows = [{"a": 1}, {"a": 2}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "plain.json").write_text(text)
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("plain.json", "packed.jsonl.gz"):
        assert list(read_json_lines(tmp_path / name)) == [(1, rows[0]), (2, rows[1])]
    (tmp_path / "broken.json").write_text(text + '{"a": \n')
    (tmp_path / "list.json").write_text("[1]\n")
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(text.encode() * 500)[:-20])
    (tmp_path / "fake.json.gz").write_text("<html>")
    for name, message in (
        ("broken.json", "broken.json, line 3: broken JSON"),
        ("list.json", "line 1: not a JSON object"),
        ("cut.json.gz", "damaged file"),
        ("fake.json.gz", "after line 0: damaged file"),
    ):
        with pytest.raises(InputError, match=message):
            list(read_json_lines(tmp_path / name))
