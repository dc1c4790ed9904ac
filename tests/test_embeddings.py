"""Text to vectors on tiny randomly initialised models with a real tokenizer and chat template."""

import copy
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CHAT_TEMPLATE, ROOT
from safetensors.torch import load_file, save_file

from lore.common import InputError
from lore.conversations import exchange
from lore.embeddings import embed_split
from lore.encoder import Encoder, out_of_memory, work
from lore.packing import batches, halves, parts_of, plant
from lore.tables import load_split

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
    ids, cut, _ = model.tokens([exchange(" the cat ", "sat")])
    assert (
        model.tokenizer.decode(ids[0]) == "<s><|user|>\nthe cat<|end|>\n<|assistant|>\nsat<|end|>\n"
        and cut == 0
    )


def test_text_encoder_joins_messages_plainly(text_encoder):
    model = encoder(text_encoder, "mean")
    ids, *_ = model.tokens([exchange("the cat", "sat")])
    assert model.tokenizer.decode(ids[0], skip_special_tokens=True) == "the cat\n\nsat"


@pytest.mark.parametrize("batch_tokens", [1, 100, 1000])
def test_every_vector_equals_its_own_full_forward_pass(reward_model, batch_tokens):
    model = encoder(reward_model, batch_tokens=batch_tokens)
    table = model.embed(TALKS)
    whole = by_itself(model)
    for tokens, vector in zip(model.tokens(TALKS)[0], table):
        inputs = torch.tensor(tokens[None])
        with torch.no_grad():
            alone = whole.model(input_ids=inputs).last_hidden_state[0, -1]
            logit = whole(input_ids=inputs).logits.item()
        assert torch.allclose(vector, alone, atol=1e-5)
        assert (vector @ model.head).item() == pytest.approx(logit, abs=1e-5)


def totals(found, padded):
    """What all batches make the model compute."""
    counts = [work(batch, padded) for batch in found]
    return {name: sum(count[name] for count in counts) for name in counts[0]}


def by_itself(model):
    """The same model as transformers loads and runs it, nothing replaced."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(
        model.name, attn_implementation="eager"
    ).eval()


def alone(model, conversation):
    """The vector of a conversation from its own full forward pass."""
    tokens = torch.tensor(model.tokens([conversation])[0][0][None])
    with torch.no_grad():
        return by_itself(model).base_model(input_ids=tokens).last_hidden_state[0, -1]


def dialogue(turns, rejected=2, name=""):
    """The chosen path of a dialogue with every turn of it, and the branches that were not taken."""
    path, conversations = [], []
    for turn in range(turns):
        path.append({"role": "user", "content": f"{name} question {turn}: and the cat?"})
        for reply in range(rejected):
            other = {
                "role": "assistant",
                "content": f"{'no, ' * (reply + 1)}the dog lay in turn {turn}",
            }
            conversations.append([*path, other])
        path.append(
            {
                "role": "assistant",
                "content": f"yes, the cat sat in turn {turn} " + "and sat " * turn,
            }
        )
        conversations.append(path[:])
    return conversations


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch_tokens", [1, 100000])
def test_a_tree_of_conversations_gives_every_vector_of_its_own_pass(
    reward_model, attention, batch_tokens, capsys
):
    talks = [*dialogue(4), *TALKS, *dialogue(3, name="another"), *dialogue(1, name="short")]
    talks = [
        talks[i] for i in torch.randperm(len(talks), generator=torch.Generator().manual_seed(0))
    ]
    model = encoder(reward_model, attention=attention, batch_tokens=batch_tokens)
    table = model.embed(talks)
    for talk, vector in zip(talks, table):
        assert torch.allclose(vector, alone(model, talk), atol=1e-5)
    ids = model.tokens(talks)[0]
    prefixes = {tuple(tokens[: n + 1]) for tokens in ids for n in range(len(tokens))}
    found, _ = model.prepared(talks)
    trees, counts = [tree for batch in found for tree in batch], totals(found, padded=False)
    shared_between_trees = len(trees) * len(
        model.tokens([exchange("", "")])[0][0]
    )  # at most the template's beginning
    if batch_tokens > 1:  # each distinct beginning once
        assert len(prefixes) <= counts["tokens"] <= len(prefixes) + shared_between_trees
    assert counts["plain"] == sum(map(len, ids)) and counts["padded"] == counts["tokens"]
    saved = f"{1 - counts['tokens'] / counts['plain']:.0%} saved by sharing, 0.0% padding"
    assert (
        f"{len(talks)} texts, {counts['tokens']} tokens computed ({saved}): "
        in capsys.readouterr().out
    )


def test_a_tree_is_cut_where_it_grows_too_large(reward_model):
    talks = dialogue(6)
    small = encoder(reward_model, batch_tokens=300)
    trees = [tree for batch in small.prepared(talks)[0] for tree in batch]
    assert len(trees) > 1 and all(
        len(tree.tokens) <= 300 or len(tree.members) == 1 for tree in trees
    )
    assert sorted(i for tree in trees for i in tree.members) == list(range(len(talks)))
    assert torch.allclose(small.embed(talks), encoder(reward_model).embed(talks), atol=1e-5)


def test_a_tree_unpacks_to_its_token_lists():
    lists = [[1, 2, 3], [1, 2], [1, 2, 3, 4], [5], [1, 7, 3], [1, 2, 3], [300, 2]]
    ids = [np.array(tokens, dtype=np.int32) for tokens in lists]
    (tree,) = plant(range(len(ids)), ids)
    assert len(tree.tokens) == 9 == sum(tree.new) and sorted(tree.members) == list(range(7))
    for member, path in zip(tree.members, tree.paths):
        assert [tree.tokens[i] for i in path] == lists[member]
        assert [tree.depth[i] for i in path] == list(range(len(path)))
    (first,), (second,) = halves([tree])
    assert first.members + second.members == tree.members
    for half in (first, second):
        for member, path in zip(half.members, half.paths):
            assert [half.tokens[i] for i in path] == lists[member]


def test_a_template_that_rewrites_earlier_turns_is_still_exact(reward_model):
    model = encoder(reward_model)
    turn = "<|{{ m['role'] }}|>\n{{ '(last) ' if loop.last }}{{ m['content'] }}<|end|>\n"
    model.tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}" + turn + "{% endfor %}"
    table = model.embed(dialogue(4))
    for talk, vector in zip(dialogue(4), table):
        assert torch.allclose(vector, alone(model, talk), atol=1e-5)


def test_the_plain_way_pads_and_shares_nothing(reward_model, capsys):
    plain = encoder(reward_model, share=False, batch_tokens=1000)
    found, _ = plain.prepared(dialogue(2))
    counts = totals(found, padded=True)
    assert (
        sum(map(len, found)) == counts["texts"] == 6
        and counts["plain"] == counts["tokens"] < counts["padded"]
    )
    assert torch.allclose(
        plain.embed(dialogue(2)), encoder(reward_model).embed(dialogue(2)), atol=1e-5
    )
    assert (
        f"0% saved by sharing, {1 - counts['tokens'] / counts['padded']:.1%} padding"
        in capsys.readouterr().out
    )


TINY = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_labels": 1, "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
WINDOW_AND_ALL = ["sliding_attention", "full_attention", "sliding_attention"]
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}"
    + CHAT_TEMPLATE
)


def a_model(architecture, folder, tokenizer, **options):
    """Folder with a tiny, randomly initialised model of that architecture."""
    import transformers

    torch.manual_seed(1)
    config = getattr(transformers, f"{architecture.split('For')[0]}Config")(**TINY | options)
    getattr(transformers, architecture)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "architecture, options",
    [
        ("LlamaForSequenceClassification", {}),
        ("Qwen2ForSequenceClassification", {}),
        ("Qwen3ForSequenceClassification", {"head_dim": 8}),
        ("MistralForSequenceClassification", {"sliding_window": 8}),
        ("GemmaForSequenceClassification", {"head_dim": 8}),
        (
            "Gemma2ForSequenceClassification",
            {"head_dim": 8, "sliding_window": 8, "attn_logit_softcapping": 2.0},
        ),
        (
            "Gemma3TextForSequenceClassification",
            {"head_dim": 8, "sliding_window": 8, "layer_types": WINDOW_AND_ALL},
        ),
    ],
)
def test_any_decoder_gives_every_vector_of_its_own_pass(
    architecture, options, tokenizer, tmp_path, capsys
):
    """Windows, capped attention, more query heads than keys, pad = end token, no system prompt, padding on the left."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side, tokenizer.chat_template = "left", NO_SYSTEM
    assert tokenizer.pad_token == tokenizer.eos_token
    a_model(architecture, tmp_path, tokenizer, pad_token_id=tokenizer.pad_token_id, **options)
    talks = [*dialogue(3), *TALKS]
    packed, plain = (encoder(tmp_path, share=share, batch_tokens=400) for share in (True, False))
    tables, whole = [packed.embed(talks), plain.embed(talks)], by_itself(packed)
    assert ("this model caps its attention" in capsys.readouterr().out) == (
        "attn_logit_softcapping" in options
    )
    for i, talk in enumerate(talks):
        inputs = torch.tensor(packed.tokens([talk])[0][0][None])
        with torch.no_grad():
            alone, logit = (
                whole.base_model(input_ids=inputs).last_hidden_state[0, -1],
                whole(input_ids=inputs).logits,
            )
        for table in tables:
            assert torch.allclose(table[i], alone, atol=1e-5)
        assert (tables[0][i] @ packed.head).item() == pytest.approx(logit.item(), abs=1e-4)


@pytest.mark.parametrize("head", ["v_head", "v_head.summary"])
def test_a_head_under_another_name(head, tokenizer, tmp_path):
    a_model("LlamaForCausalLM", tmp_path, tokenizer)
    weights = load_file(tmp_path / "model.safetensors")
    weights |= {f"{head}.weight": torch.randn(1, 32), f"{head}.bias": torch.ones(1)}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    named = encoder(tmp_path, head_name=head)
    assert torch.equal(named.head.T, weights[f"{head}.weight"])
    assert named.embed(TALKS).shape == (4, 32)
    for other in ("score", "v_head.other"):
        with pytest.raises(
            InputError, match=f"has no head {other} with one output.*--head names another"
        ):
            encoder(tmp_path, head_name=other).embed(TALKS)


def test_a_model_whose_attention_cannot_be_replaced_says_so(
    reward_model, monkeypatch, tokenizer, tmp_path
):
    bidirectional = a_model(
        "GemmaForSequenceClassification", tmp_path, tokenizer, head_dim=8, is_causal=False
    )
    monkeypatch.setattr(
        "transformers.models.gemma.modeling_gemma.GemmaAttention.forward", blind_attention
    )
    with pytest.raises(InputError, match="depends on what is computed beside it; use --no-share"):
        encoder(bidirectional).embed(TALKS)
    from transformers.models.llama.modeling_llama import LlamaModel

    forward = LlamaModel.forward
    monkeypatch.setattr(
        LlamaModel, "forward", lambda self, *args, packing=None, **kw: forward(self, *args, **kw)
    )
    with pytest.raises(
        InputError, match="does not hand on how its conversations are packed: use --no-share"
    ):
        encoder(reward_model).embed(TALKS)


def blind_attention(self, hidden_states, **_):
    """Looks at everything, whatever it is told, as does an architecture without replaceable attention."""
    return hidden_states.mean(1, keepdim=True).expand_as(hidden_states), None


def test_a_model_that_looks_at_its_neighbours_is_refused(tokenizer, tmp_path):
    """Falcon's ALiBi counts the distance along the packed row: wrong beside another conversation, right in front."""
    a_model(
        "FalconForSequenceClassification",
        tmp_path,
        tokenizer,
        alibi=True,
        new_decoder_architecture=False,
    )
    talks = [exchange("a single long conversation, the cat sat on the mat " * 4, "ok"), *TALKS]
    with pytest.raises(InputError, match="no-share"):
        encoder(tmp_path, attention="eager").embed(talks)
    plain = encoder(tmp_path, attention="eager", share=False)
    table, whole = plain.embed(talks), by_itself(plain)
    for talk, vector in zip(talks, table):
        with torch.no_grad():
            states = whole.base_model(
                input_ids=torch.tensor(plain.tokens([talk])[0][0][None])
            ).last_hidden_state
        assert torch.allclose(vector, states[0, -1], atol=1e-5)


def test_a_model_of_the_hub_is_known_by_its_commit(reward_model, tmp_path):
    """In a process of its own, as the place of the Hub's files is read at import."""
    commit, folder = "0123456789" * 4, tmp_path / "models--some--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(commit)
    shutil.copytree(reward_model, folder / "snapshots" / commit)
    code = (
        "import torch; from embeddings import Encoder, exchange;"
        "model = Encoder('some/model', 'last', torch.device('cpu'));"
        "model.embed([exchange('a', 'b'), exchange('a', 'c')]); print(model.identity['version'], model.num_features)"
    )
    environment = os.environ | {
        "HF_HUB_CACHE": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{commit} 32"


def test_a_template_that_looks_at_the_clock_does_not(reward_model, tmp_path):
    shutil.copytree(reward_model, tmp_path / "model")
    template = "{{ bos_token }}{{ strftime_now('%d %b %Y') }} {{ date_string }}{{ messages[0]['content'] }}"
    (tmp_path / "model/chat_template.jinja").write_text(template)
    model = encoder(tmp_path / "model")
    assert (
        model.tokenizer.decode(model.tokens([exchange("the cat", "sat")])[0][0])
        == "<s>26 Jul 2024 26 Jul 2024the cat"
    )


def test_a_chat_template_that_refuses_a_conversation_is_one_line(reward_model):
    model = encoder(reward_model)
    model.tokenizer.chat_template = NO_SYSTEM
    with pytest.raises(
        InputError, match=r"chat template of .* refuses a conversation: no system prompt"
    ):
        model.embed([[{"role": "system", "content": "be good"}, *TALKS[0]]])


def test_batches_are_halved_where_the_memory_does_not_suffice(reward_model, monkeypatch, capsys):
    talks, forward, sizes = (
        [*dialogue(4), *dialogue(3, name="another"), *TALKS],
        Encoder.forward,
        [],
    )
    expected = encoder(reward_model).embed(talks)

    def limited(self, batch):
        sizes.append(sum(len(tree.tokens) for tree in batch))
        if sizes[-1] > 200:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch)

    monkeypatch.setattr(Encoder, "forward", limited)
    capsys.readouterr()
    model = encoder(reward_model)
    assert torch.allclose(model.embed(talks), expected, atol=1e-5)
    assert f"not enough memory for {sizes[0]} tokens at a time" in capsys.readouterr().err
    failed = [size for size in sizes if size > 200]
    assert (
        failed == sorted(failed, reverse=True) and len(sizes) > len(failed) + 2
    )  # never more than did not fit
    tried = len(failed)
    model.embed(talks)
    assert len([size for size in sizes if size > 200]) == tried  # it has learned
    with pytest.raises(
        InputError, match=r"no memory for a conversation of \d+ tokens; --max_length shortens it"
    ):
        encoder(reward_model).embed([exchange("the cat sat " * 120, "ok")])


def test_running_out_of_real_memory_is_told_from_other_errors(reward_model, monkeypatch):
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**50)
    assert out_of_memory(refused.value) and out_of_memory(
        torch.OutOfMemoryError("CUDA out of memory")
    )
    assert out_of_memory(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not out_of_memory(RuntimeError("shapes do not match"))

    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Encoder, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        encoder(reward_model).embed(TALKS)


def test_parts_hold_everything_once_families_together_longest_first(monkeypatch):
    monkeypatch.setattr("packing.PART_BYTES", 120)
    talks = [*dialogue(2), *TALKS, *dialogue(3, name="another")]
    for together in (True, False):
        parts = parts_of(talks, together)
        assert (
            sorted(row for part in parts for row in part) == list(range(len(talks)))
            and len(parts) > 2
        )
        longest = [
            max(sum(len(message["content"]) for message in talks[row]) for row in part)
            for part in parts
        ]
        assert longest[0] == max(longest) and longest[-1] == min(longest)
        where = {row: number for number, part in enumerate(parts) for row in part}
        families = {talks[row][0]["content"] for row in where}
        system = [[{"role": "system", "content": "be good"}, *talk] for talk in talks]
        assert parts_of(system, together) != [
            list(range(len(talks)))
        ]  # what all have in common makes no family
        if together:
            assert all(
                len({where[r] for r in where if talks[r][0]["content"] == f}) == 1 for f in families
            )
    assert parts_of(talks, True) == parts_of(talks[:], True)


@pytest.mark.parametrize(
    "padded, expected",
    [(True, [[40], [12, 10], [9, 5], [3]]), (False, [[40], [12, 10], [9, 5, 3]])],
)
def test_batches_keep_to_their_budget_largest_first(padded, expected):
    trees = [plant([0], [np.arange(n, dtype=np.int32)])[0] for n in (5, 40, 10, 12, 3, 9)]
    assert [
        [len(tree.tokens) for tree in batch] for batch in batches(trees, 24, padded)
    ] == expected


def test_the_head_is_the_score_weight_and_not_some_other_layer(reward_model):
    head = encoder(reward_model).head
    weight = load_file(reward_model / "model.safetensors")["score.weight"]
    assert head.shape == (32, 1) and head.dtype == torch.float32 and torch.equal(head, weight.T)


def test_a_wrong_head_is_noticed(reward_model, monkeypatch):
    model = encoder(reward_model)
    ids, table = model.tokens(TALKS)[0], model.embed(TALKS)
    model.check_head(ids[0], table[0])
    with pytest.raises(InputError, match="depends on what is computed beside it"):
        model.check_head(ids[0], table[1])
    monkeypatch.setattr(Encoder, "head", torch.randn(32, 1))
    with pytest.raises(
        InputError, match=r"but the model says"
    ):  # before the second batch is embedded
        encoder(reward_model, batch_tokens=1).embed(TALKS)


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


def test_mean_pooling_is_the_mean_over_the_texts_own_tokens(text_encoder):
    model = encoder(text_encoder, "mean", batch_tokens=200)
    table = model.embed(TALKS)
    for tokens, vector in zip(model.tokens(TALKS)[0], table):
        with torch.no_grad():
            alone = model.model(input_ids=torch.tensor(tokens[None])).last_hidden_state[0].mean(0)
        assert torch.allclose(vector, alone, atol=1e-5)
    assert model.head is None


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
    assert encoder(reward_model, max_length=10**6).longest == 512  # no more than the model takes
    short.embed(talks)
    assert (
        "1 of 2 conversations are too long: the oldest part of their prompt is left out"
        in capsys.readouterr().out
    )
    with pytest.raises(
        InputError, match=r"more than 12 tokens \(--max_length\) for the reply alone: 'and the dog'"
    ):
        encoder(reward_model, max_length=12).tokens(talks)
    mean = encoder(text_encoder, "mean", max_length=12)
    (tokens, _), cut, cut_replies = mean.tokens(talks)
    assert (
        mean.tokenizer.decode(tokens).endswith("and the dog")
        and len(tokens) <= 12
        and (cut, cut_replies) == (1, 0)
    )
    (tokens,), cut, cut_replies = mean.tokens([exchange("x", "the cat sat on the mat " * 20)])
    assert (len(tokens), cut, cut_replies) == (12, 0, 1)  # a text encoder has no choice


def test_bfloat16_on_request(reward_model):
    table = encoder(reward_model, dtype="bfloat16").embed(TALKS)
    assert table.dtype == torch.bfloat16
    assert torch.allclose(table.float(), encoder(reward_model).embed(TALKS), atol=0.1, rtol=0.1)


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


# ------------------------------------------------------------------------------------------------------------------


def test_a_reward_model_needs_a_chat_template_and_a_score_head(
    reward_model, text_encoder, tokenizer, tmp_path
):
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
        with pytest.raises(InputError, match="has no head score with one output"):
            encoder(tmp_path / name).embed(TALKS)
    with pytest.raises(InputError, match="cannot be loaded"):
        encoder(tmp_path / "nothing").embed(TALKS)
    with pytest.raises(InputError, match="pooling = max"):
        encoder(reward_model, "max")
    with pytest.raises(InputError, match="attention = flash_attention_2: only with --no-share"):
        encoder(reward_model, attention="flash_attention_2")
    with pytest.raises(InputError, match="dtype: use auto"):
        encoder(reward_model, dtype="int8")
