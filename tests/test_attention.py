"""Packed conversations, architecture by architecture, against each one's own pass."""

import copy

import pytest
import torch
from tiny import NO_SYSTEM, TALKS, a_model, assert_own_passes, by_itself, dialogue, encoder

from lore.common import InputError
from lore.text.conversations import exchange

WINDOW = {"head_dim": 8, "sliding_window": 8}
WINDOW_AND_ALL = WINDOW | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


@pytest.mark.parametrize(
    "family, options",
    [
        ("Llama", {}), ("Qwen2", {}), ("Qwen3", {"head_dim": 8}), ("Mistral", {"sliding_window": 8}),
        ("Gemma", {"head_dim": 8}), ("Gemma2", WINDOW | {"attn_logit_softcapping": 2.0}),
        ("Gemma3Text", WINDOW_AND_ALL),
    ],
)  # fmt: skip
def test_any_decoder_gives_every_vector_of_its_own_pass(
    family, options, tokenizer, tmp_path, capsys, monkeypatch
):
    """Windows, capped attention, more query heads than keys, pad = end token, no system prompt, padding on the left;
    and what a GPU computes in half precision, with flash attention's meaning in place of its kernel."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side, tokenizer.chat_template = "left", NO_SYSTEM
    assert tokenizer.pad_token == tokenizer.eos_token
    architecture = f"{family}ForSequenceClassification"
    a_model(architecture, tmp_path, tokenizer, pad_token_id=tokenizer.pad_token_id, **options)
    talks = [*dialogue(3), *TALKS, TALKS[0]]
    packed, plain = (encoder(tmp_path, share=share, batch_tokens=400) for share in (True, False))
    for model in (packed, plain):
        table = assert_own_passes(model, talks)
    capped = "this model caps its attention" in capsys.readouterr().out
    assert capped == ("attn_logit_softcapping" in options)
    inputs = torch.tensor(packed.tokeniser.tokens(talks[:1])[0][0][None])
    with torch.no_grad():
        logit = by_itself(packed)(input_ids=inputs).logits
    assert (table[0] @ packed.head).item() == pytest.approx(logit.item(), abs=1e-4)
    calls = []
    monkeypatch.setattr("lore.text.attention.flash_takes", lambda query, value: True)
    kernel = "torch.ops.aten._flash_attention_forward"
    monkeypatch.setattr(kernel, lambda *a, **b: calls.append(1) or (flash(*a, **b), None))
    assert_own_passes(packed, talks)
    assert capped != bool(calls)


def flash(
    q, k, v, starts, path_starts, most_new, longest, dropout, causal, *, scale, window_size_left, **others
):
    """Each stretch of queries against its stretch of keys, from their common end: what flash attention computes."""
    assert q.is_contiguous() and dropout == 0 and causal == (window_size_left < 0)
    assert others == {"return_debug_mask": False, "window_size_right": 0}
    result = torch.empty_like(q)
    for (a, b), (c, d) in zip(starts.unfold(0, 2, 1).tolist(), path_starts.unfold(0, 2, 1).tolist()):
        n, m = b - a, d - c
        assert 0 < n <= most_new and n <= m <= longest
        queries = q[a:b].transpose(0, 1)  # (heads, n, width)
        keys, values = (x[c:d].transpose(0, 1).repeat_interleave(q.shape[1] // x.shape[1], 0) for x in (k, v))
        back = torch.arange(m - n, m).unsqueeze(1) - torch.arange(m)  # (n, m)
        seen = (back >= 0) & (causal | (back <= window_size_left))
        scores = (queries @ keys.mT * scale).masked_fill(~seen, -torch.inf)
        result[a:b] = (scores.softmax(2) @ values).transpose(0, 1)
    assert b == len(q) and d == len(k)
    return result


def test_a_model_whose_attention_cannot_be_replaced_says_so(reward_model, monkeypatch, tokenizer, tmp_path):
    from transformers.models.gemma.modeling_gemma import GemmaAttention
    from transformers.models.llama.modeling_llama import LlamaModel

    options = {"head_dim": 8, "is_causal": False}
    bidirectional = a_model("GemmaForSequenceClassification", tmp_path, tokenizer, **options)
    monkeypatch.setattr(GemmaAttention, "forward", blind_attention)
    with pytest.raises(InputError, match="depends on what is computed beside it; use --no-share"):
        encoder(bidirectional).embed(TALKS)
    forward = LlamaModel.forward
    deaf = lambda *arguments, packing=None, **options: forward(*arguments, **options)
    monkeypatch.setattr(LlamaModel, "forward", deaf)
    with pytest.raises(InputError, match="does not hand on how its conversations are packed: use --no-share"):
        encoder(reward_model).embed(TALKS)


def blind_attention(self, hidden_states, **_):
    """Looks at everything, whatever it is told, as does an architecture without replaceable attention."""
    return hidden_states.mean(1, keepdim=True).expand_as(hidden_states), None


def test_a_model_that_looks_at_its_neighbours_is_refused(tokenizer, tmp_path):
    """Falcon's ALiBi counts the distance along the packed row: wrong beside another conversation, right in front."""
    options = {"alibi": True, "new_decoder_architecture": False}
    a_model("FalconForSequenceClassification", tmp_path, tokenizer, **options)
    talks = [exchange("a single long conversation, the cat sat on the mat " * 4, "ok"), *TALKS]
    with pytest.raises(InputError, match="no-share"):
        encoder(tmp_path, attention="eager").embed(talks)
    assert_own_passes(encoder(tmp_path, attention="eager", share=False), talks)


def test_a_template_that_rewrites_earlier_turns_is_still_exact(reward_model):
    model = encoder(reward_model)
    turn = "<|{{ m['role'] }}|>\n{{ '(last) ' if loop.last }}{{ m['content'] }}<|end|>\n"
    model.tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}" + turn + "{% endfor %}"
    assert_own_passes(model, dialogue(4))
