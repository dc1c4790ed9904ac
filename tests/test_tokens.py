"""Conversations to token ids: rendered, shortened, looked at."""

import shutil

import pytest
import torch
from conftest import CHAT_TEMPLATE
from tiny import TALKS, assert_own_passes, encoder
from tokenizers import Regex, normalizers

from lore.common import InputError
from lore.text.conversations import exchange


def test_rendered_texts_are_golden_with_one_beginning_token(reward_model, text_encoder, tmp_path):
    """A reward model's template, one that looks at the clock, and messages joined plainly."""
    clock = shutil.copytree(reward_model, tmp_path / "model")
    template = "{{ bos_token }}{{ strftime_now('%d %b %Y') }} {{ date_string }}"
    template += "{{ messages[0]['content'] }}{{ messages[1]['content'] }}"
    (clock / "chat_template.jinja").write_text(template)
    for model, text in (
        (encoder(reward_model), "<s><|user|>\nthe cat<|end|>\n<|assistant|>\nsat<|end|>\n"),
        (encoder(clock), "<s>26 Jul 2024 26 Jul 2024 the cat sat"),
        (encoder(text_encoder, "mean"), "<s> the cat \n\nsat"),
    ):
        (tokens,), counts = model.tokeniser.tokens([exchange(" the cat ", "sat")])
        assert model.tokenizer.decode(tokens) == text and counts == {"cut": 0, "cut_replies": 0}


def test_the_last_token_is_read_even_when_it_is_the_pad_token(reward_model):
    """The tokenizer pads with the end token: a search for the pad id would stop one token early."""
    model = encoder(reward_model)
    model.tokenizer.chat_template = model.tokenizer.chat_template.replace("<|end|>\n{%", "</s>{%")
    ids, _ = model.tokeniser.tokens(TALKS)
    assert all(tokens[-1] == model.tokenizer.pad_token_id for tokens in ids)
    assert_own_passes(model, TALKS)


def test_long_conversations_lose_their_oldest_tokens_and_are_counted(reward_model, text_encoder, capsys):
    old = exchange("an old question", "an old answer")
    history = [*old, *exchange("the cat sat on the mat " * 20, "and the dog")]
    talks = [history, exchange("x", "y")]
    whole, _ = encoder(reward_model).tokeniser.tokens(talks)
    short = encoder(reward_model, max_length=60)
    ids, counts = short.tokeniser.tokens(talks)
    assert counts == {"cut": 1, "cut_replies": 0}
    assert 58 <= len(ids[0]) <= 60 < len(whole[0]) / 2 and ids[1].tolist() == whole[1].tolist()
    # turns stay, the first two empty, then the end of the question, then the reply
    text = short.tokenizer.decode(ids[0])
    empty = "<s><|user|>\n<|end|>\n<|assistant|>\n<|end|>\n<|user|>\n"
    assert text.startswith(empty) and text.endswith("mat<|end|>\n<|assistant|>\nand the dog<|end|>\n")
    assert text[len(empty) :].split("<|end|>")[0] in history[2]["content"]
    assert encoder(reward_model, max_length=10**6).tokeniser.longest == 512  # as the model takes
    short.embed(talks)
    told = "1 of 2 conversations are too long: the oldest part of their prompt is left out"
    assert told in capsys.readouterr().out
    words = r"more than 12 tokens \(--max_length\) for the reply alone: 'and the dog'"
    with pytest.raises(InputError, match=words):
        encoder(reward_model, max_length=12).embed(talks)
    mean = encoder(text_encoder, "mean", max_length=12)
    (tokens, _), counts = mean.tokeniser.tokens(talks)
    assert mean.tokenizer.decode(tokens).endswith("and the dog") and len(tokens) <= 12
    assert counts == {"cut": 1, "cut_replies": 0}
    (tokens,), counts = mean.tokeniser.tokens([exchange("x", "the cat sat on the mat " * 20)])
    assert len(tokens) == 12 and counts == {"cut": 0, "cut_replies": 1}  # a text encoder has no choice


LONG = "the cat sat on the mat " * 2000
LONG_TALKS = [
    exchange(LONG, "and the dog"),
    [*exchange("and the dog", LONG), *exchange("x", "y")],
    exchange("x", LONG),
    [*exchange("hi", "hello") * 100, *exchange(LONG, "y")],
    exchange("x" + " " * 20_000 + "x", "y"),
]


@pytest.mark.parametrize("talk", LONG_TALKS)
def test_what_is_cut_off_anyway_is_not_tokenised(reward_model, talk, monkeypatch):
    model = encoder(reward_model, max_length=60)
    whole = encoder(reward_model, max_length=60)
    monkeypatch.setattr(whole.tokeniser, "ending", lambda conversation: conversation)
    rendered, render = [], model.tokeniser.render
    monkeypatch.setattr(model.tokeniser, "render", lambda talk: rendered.append(render(talk)) or rendered[-1])
    (ids,), _ = model.tokeniser.tokens([talk])
    (expected,), _ = whole.tokeniser.tokens([talk])
    assert sum(map(len, rendered)) < 60_000
    assert ids is expected is None or ids.tolist() == expected.tolist()


BEGINNING = "{{ bos_token }}"
EVERY_TURN = "{% for m in messages %}<|{{ m['role'] }}|>"
LIST_OF_PARTS = BEGINNING + EVERY_TURN + "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}"
NO_REPLY = BEGINNING + "{% for m in messages[:-1] %}{{ m['content'] }}"
HISTORY = [*exchange("hi", "hello"), *exchange("and the dog?", "it lay beside the cat")]
UNREAD = "does not read the text of a"


@pytest.mark.parametrize(
    "template, words",
    [
        (LIST_OF_PARTS + "<|end|>{% endfor %}", f"{UNREAD} reply"),
        (NO_REPLY + "<|end|>{% endfor %}", f"{UNREAD} reply"),
        (BEGINNING + "{{ messages[-1]['content'] }}", f"{UNREAD} prompt"),
        ("{% for m in messages[:2] %}{{ m['content'] }} {% endfor %}", f"{UNREAD} reply"),
        (CHAT_TEMPLATE.replace("in messages", "in messages[-2:]"), f"{UNREAD} turn before them"),
        ("{{ messages[0]['content'] + 1 }}", "can only concatenate"),
        ("{{ 1 // 0 }}", "division .*by zero"),
        ("{{ messages[0].content.nothing() }}", "has no attribute"),
        ("{{ nothing.at_all }}", "is undefined"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "[Ee]xpected"),
        ("{{ 'x'.index('y') }}", "substring not found"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "recursion"),
    ],
)
def test_a_template_that_fails_or_does_not_write_a_text_is_refused(reward_model, template, words):
    """Each shape of conversation is looked at, not the first alone."""
    model = encoder(reward_model)
    model.tokenizer.chat_template = template
    with pytest.raises(InputError, match=f"(?s)chat template.*{words}|{words}"):
        model.embed([TALKS[0], HISTORY])


def test_no_tokens_at_all_is_one_line(reward_model, text_encoder):
    model = encoder(text_encoder, "mean")
    model.tokenizer.backend_tokenizer.post_processor = None  # writes no special tokens either
    with pytest.raises(InputError, match="makes no tokens of the text ''"):
        model.embed([[{"role": "user", "content": ""}]])
    model = encoder(reward_model)
    model.tokenizer.chat_template = "{% if messages[1]['content'] != 'y' %}x{% endif %}"
    with pytest.raises(InputError, match="makes no tokens of the text 'y'"):
        model.embed([exchange("x", "y")])


def test_tokens_that_the_model_has_no_row_for_are_one_line(reward_model):
    model = encoder(reward_model)
    rows = len(model.tokenizer)
    model.tokenizer.add_tokens(["<new>"])
    assert len(model.embed(TALKS)) == len(TALKS)  # not in the text
    message = f"has token {rows}, in the text 'a <new> word', but the model has {rows}"
    with pytest.raises(InputError, match=message):
        model.embed([exchange("x", "a <new> word")])


def test_texts_that_have_the_same_tokens_are_counted(reward_model, text_encoder, capsys):
    """A tokenizer knows none of some letters, as English ones know no other script; a limit leaves the same end."""
    model = encoder(reward_model)
    unknown = normalizers.Replace(Regex("[\u4e00-\u9fff]"), "?")
    model.tokenizer.backend_tokenizer.normalizer = unknown
    replies = ["\u4e00\u4e01", "\u4e02\u4e03", "yes"]
    table = model.embed([exchange("which?", reply) for reply in replies])
    assert torch.equal(table[0], table[1])  # the same tokens are computed once
    assert not torch.allclose(table[0], table[2])
    assert "1 of 3 texts have the tokens of another text" in capsys.readouterr().out
    same_end = [f"{word}, " + "the cat sat on the mat " * 4 for word in ("yes", "no")]
    encoder(text_encoder, "mean", max_length=16).embed([exchange("x", end) for end in same_end])
    out = capsys.readouterr().out
    assert "1 of 2 texts have the tokens" in out and "2 of 2 replies alone" in out


def test_what_stands_beside_the_content_is_read_or_refused(reward_model, text_encoder):
    ask, say = exchange("a?", "ok")
    done = {"role": "tool", "content": "done"}
    talks = []
    for tool in ("tide", "sink"):
        call = {"tool_calls": [{"type": "function", "function": {"name": tool}}]}
        talks.append([ask, say | {"content": ""} | call, done, say])
    model = encoder(reward_model)
    for deaf in (model, encoder(text_encoder, "mean")):
        with pytest.raises(InputError, match="does not read the tool_calls of a message"):
            deaf.embed(talks)
    named = [[{**message, "name": name} for message in TALKS[0]] for name in ("ann", "bob")]
    alike = model.embed(named)
    assert torch.equal(alike[0], alike[1])  # this template writes no names: the same tokens
    more = "{{ m['name'] }}{% if m['tool_calls'] %}{{ m['tool_calls'] | tojson }}{% endif %}<|end|>"
    model.tokenizer.chat_template = CHAT_TEMPLATE.replace("<|end|>", more)
    for pair in (talks, named):
        first, second = model.embed(pair)
        assert not torch.allclose(first, second, atol=1e-3)
