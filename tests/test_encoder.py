"""Text to vectors."""

import random
from collections import Counter

import pytest
import torch
from tiny import TALKS, a_model, assert_own_passes, dialogue, encoder

from lore.common import InputError
from lore.text.conversations import exchange
from lore.text.encoder import Encoder
from lore.text.throughput import Tally, count_tokens
from lore.text.vector_checks import out_of_memory


def totals(batches, padded):
    """What all batches make the model compute."""
    sums = Counter()
    for batch in batches:
        sums.update(count_tokens(batch, padded))
    return sums


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch_tokens", [1, 300, 100000])
def test_a_tree_gives_every_vector_of_its_own_pass(reward_model, attention, batch_tokens, capsys):
    talks = [*dialogue(6), *TALKS, *dialogue(3, name="another"), *dialogue(1, name="short")]
    random.Random(0).shuffle(talks)
    model = encoder(reward_model, attention=attention, batch_tokens=batch_tokens)
    assert_own_passes(model, talks)
    told = capsys.readouterr().out
    ids = model.tokeniser.tokens(talks)[0]
    prefixes = {tuple(tokens[: n + 1]) for tokens in ids for n in range(len(tokens))}
    batches = model.prepare(talks).batches
    counts = totals(batches, padded=False)
    trees = [tree for batch in batches for tree in batch]
    assert sorted(i for tree in trees for i in tree.members) == list(range(len(talks)))
    assert all(len(tree.tokens) <= batch_tokens for tree in trees if len(tree.members) > 1)  # else it is cut
    opening = len(model.tokeniser.tokens([exchange("", "")])[0][0])  # of the template, at most: once a tree
    if batch_tokens > 300:  # each distinct beginning once
        assert 0 <= counts["tokens"] - len(prefixes) <= opening * len(trees)
    assert counts["plain"] == sum(map(len, ids)) and counts["padded"] == counts["tokens"]
    saved = f"{1 - counts['tokens'] / counts['plain']:.0%} saved by sharing, 0.0% padding"
    assert f"{len(talks)} texts, {counts['tokens']} tokens computed ({saved}): " in told


def test_the_plain_way_pads_and_shares_nothing(reward_model, capsys):
    plain = encoder(reward_model, share=False, batch_tokens=1000)
    batches = plain.prepare(dialogue(2)).batches
    counts = totals(batches, padded=True)
    assert sum(map(len, batches)) == counts["texts"] == 6
    assert counts["plain"] == counts["tokens"] < counts["padded"]
    assert_own_passes(plain, dialogue(2))
    padding = f"{1 - counts['tokens'] / counts['padded']:.1%} padding"
    assert f"0% saved by sharing, {padding}" in capsys.readouterr().out
    with Tally(0) as tally:  # of a process without a part
        pass
    tally.report()
    assert capsys.readouterr().out == ""


def test_batches_are_halved_where_the_memory_does_not_suffice(reward_model, monkeypatch, capsys):
    talks, forward, sizes = ([*dialogue(4), *dialogue(3, name="another"), *TALKS], Encoder.forward, [])
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
    assert failed == sorted(failed, reverse=True)  # never more than did not fit
    assert len(sizes) > len(failed) + 2
    tried = len(failed)
    model.embed(talks)
    assert len([size for size in sizes if size > 200]) == tried  # it has learned
    words = r"no memory for a conversation of \d+ tokens; --max_length shortens it"
    with pytest.raises(InputError, match=words):
        encoder(reward_model).embed([exchange("the cat sat " * 120, "ok")])


def test_running_out_of_real_memory_is_told_from_other_errors(reward_model, monkeypatch):
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**50)
    assert out_of_memory(refused.value) and out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not out_of_memory(RuntimeError("shapes do not match"))

    monkeypatch.setattr(Encoder, "forward", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        encoder(reward_model).embed(TALKS)


def test_a_wrong_head_is_noticed(reward_model, monkeypatch):
    model = encoder(reward_model)
    ids, table = model.tokeniser.tokens(TALKS)[0], model.embed(TALKS)
    model.checks.compare(ids[0], table[0])
    with pytest.raises(InputError, match="depends on what is computed beside it"):
        model.checks.compare(ids[0], table[1])
    monkeypatch.setattr(Encoder, "head", torch.randn(32, 1))
    with pytest.raises(InputError, match=r"but the model says"):  # before the second batch is embedded
        encoder(reward_model, batch_tokens=1).embed(TALKS)


@pytest.mark.parametrize("name", ["T5Model", "T5EncoderModel", "BartModel"])
def test_of_an_encoder_decoder_the_encoder_is_used(name, tokenizer, tmp_path):
    import transformers

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    sizes |= {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64}
    a_model(name, tmp_path, tokenizer, **sizes)
    whole = getattr(transformers, name).from_pretrained(tmp_path)
    assert_own_passes(encoder(tmp_path, "mean"), TALKS, whole.get_encoder().eval())


def test_what_a_model_fails_on_is_one_line(reward_model):
    fails = r"fails on \d+ tokens in float32 \(RuntimeError: The size"
    for share, words in ((False, fails), (True, "takes no packed conversations .*: use --no-share")):
        model = encoder(reward_model, share=share)
        model.model.model.norm.weight = torch.nn.Parameter(torch.ones(31))
        with pytest.raises(InputError, match=words):
            model.embed(TALKS)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("share", [True, False])
def test_mixed_precision_keeps_states_in_float32_and_rounds_less(reward_model, attention, share):
    talks = [*dialogue(4), *TALKS]
    options = {"attention": attention, "share": share}
    exact = encoder(reward_model, **options).embed(talks)
    mixed = encoder(reward_model, dtype="mixed", **options)
    table = mixed.embed(talks)
    half = encoder(reward_model, dtype="bfloat16", **options).embed(talks)
    assert (table.dtype, half.dtype) == (torch.float32, torch.bfloat16) and mixed.identity["dtype"] == "mixed"
    assert not torch.equal(table, table.bfloat16().float())  # not rounded in the end
    error = (table - exact).norm()
    assert 0 < error < 0.05 * exact.norm() and error < (half.float() - exact).norm()


def test_an_encoder_with_fewer_states_than_tokens_is_refused(text_encoder, monkeypatch):
    """Some pool as they go, so that a state stands for several tokens."""
    from transformers import BertModel
    from transformers.modeling_outputs import BaseModelOutput

    forward = BertModel.forward
    pooled = lambda *inputs, **options: BaseModelOutput(forward(*inputs, **options).last_hidden_state[:, ::2])
    monkeypatch.setattr(BertModel, "forward", pooled)
    with pytest.raises(InputError, match="no state for every token"):
        encoder(text_encoder, "mean").embed(TALKS)
