"""Conversations to token ids: rendered, shortened, looked at."""

import shutil

import pytest
import torch
from tiny import NO_SYSTEM, TALKS, by_itself, encoder

from lore.common import InputError
from lore.conversations import exchange


def test_rendered_chat_is_golden_with_one_beginning_token(reward_model):
    model = encoder(reward_model)
    ids, cut, _ = model.tokens([exchange(" the cat ", "sat")])
    assert (
        model.tokenizer.decode(ids[0]) == "<s><|user|>\nthe cat<|end|>\n<|assistant|>\nsat<|end|>\n"
        and cut == 0
    )


def test_text_encoder_joins_messages_plainly(text_encoder):
    model = encoder(text_encoder, "mean")
    ids, *_ = model.tokens([exchange("the cat", "sat")])
    assert model.tokenizer.decode(ids[0], skip_special_tokens=True) == "the cat\n\nsat"


def test_a_template_that_looks_at_the_clock_does_not(reward_model, tmp_path):
    shutil.copytree(reward_model, tmp_path / "model")
    template = "{{ bos_token }}{{ strftime_now('%d %b %Y') }} {{ date_string }}"
    template += "{{ messages[0]['content'] }}{{ messages[1]['content'] }}"
    (tmp_path / "model/chat_template.jinja").write_text(template)
    model = encoder(tmp_path / "model")
    assert (
        model.tokenizer.decode(model.tokens([exchange("the cat", "sat")])[0][0])
        == "<s>26 Jul 2024 26 Jul 2024the catsat"
    )


def test_a_chat_template_that_refuses_a_conversation_is_one_line(reward_model):
    model = encoder(reward_model)
    model.tokenizer.chat_template = NO_SYSTEM
    with pytest.raises(
        InputError, match=r"chat template of .* refuses a conversation: no system prompt"
    ):
        model.embed([[{"role": "system", "content": "be good"}, *TALKS[0]]])


def test_the_last_token_is_read_even_when_it_is_the_pad_token(reward_model):
    """The tokenizer pads with the end token: a search for the pad id would stop one token early."""
    model = encoder(reward_model)
    model.tokenizer.chat_template = model.tokenizer.chat_template.replace("<|end|>\n{%", "</s>{%")
    ids, *_ = model.tokens(TALKS)
    assert all(tokens[-1] == model.tokenizer.pad_token_id for tokens in ids)
    table = model.embed(TALKS)
    for tokens, vector in zip(ids, table):
        with torch.no_grad():
            alone = (
                by_itself(model)
                .model(input_ids=torch.tensor(tokens[None]))
                .last_hidden_state[0, -1]
            )
        assert torch.allclose(vector, alone, atol=1e-5)


def test_long_conversations_lose_their_oldest_tokens_and_are_counted(
    reward_model, text_encoder, capsys
):
    history = [
        *exchange("an old question", "an old answer"),
        *exchange("the cat sat on the mat " * 20, "and the dog"),
    ]
    talks = [history, exchange("x", "y")]
    whole, longest = encoder(reward_model), 60
    assert len(whole.tokens(talks)[0][0]) > 2 * longest
    short = encoder(reward_model, max_length=longest)
    ids, cut, cut_replies = short.tokens(talks)
    assert (cut, cut_replies) == (1, 0) and ids[1].tolist() == whole.tokens(talks)[0][1].tolist()
    text = short.tokenizer.decode(
        ids[0]
    )  # turns stay, the first two empty, then the end of the question, then the reply
    empty = "<s><|user|>\n<|end|>\n<|assistant|>\n<|end|>\n<|user|>\n"
    assert text.startswith(empty) and text.endswith(
        "mat<|end|>\n<|assistant|>\nand the dog<|end|>\n"
    )
    assert (
        text[len(empty) :].split("<|end|>")[0] in history[2]["content"]
        and longest - 2 <= len(ids[0]) <= longest
    )
    assert (
        encoder(reward_model, max_length=10**6).tokeniser.longest == 512
    )  # no more than the model takes
    short.embed(talks)
    assert (
        "1 of 2 conversations are too long: the oldest part of their prompt is left out"
        in capsys.readouterr().out
    )
    with pytest.raises(
        InputError, match=r"more than 12 tokens \(--max_length\) for the reply alone: 'and the dog'"
    ):
        encoder(reward_model, max_length=12).embed(talks)
    mean = encoder(text_encoder, "mean", max_length=12)
    (tokens, _), cut, cut_replies = mean.tokens(talks)
    assert (
        mean.tokenizer.decode(tokens).endswith("and the dog")
        and len(tokens) <= 12
        and (cut, cut_replies) == (1, 0)
    )
    (tokens,), cut, cut_replies = mean.tokens([exchange("x", "the cat sat on the mat " * 20)])
    assert (len(tokens), cut, cut_replies) == (12, 0, 1)  # a text encoder has no choice
