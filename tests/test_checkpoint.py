"""Models on the Hub and in folders: loaded whole, or refused in one line."""

import math
import shutil

import pytest
import torch
from huggingface_hub import constants
from tiny import LONGROPE, TALKS, a_model, edit_json, encoder, rewritten

from lore.common import InputError
from lore.text.checkpoint import count_positions, rotary_switch


def test_a_model_of_the_hub_is_known_by_its_commit(reward_model, tmp_path, monkeypatch):
    commit, folder = "0123456789" * 4, tmp_path / "models--some--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(commit)
    shutil.copytree(reward_model, folder / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = encoder("some/model")
    assert torch.equal(model.embed(TALKS), encoder(reward_model).embed(TALKS))
    assert (model.identity["model"], model.identity["version"]) == ("some/model", commit)
    assert model.num_features == 32


@pytest.mark.parametrize("head", ["v_head", "v_head.summary"])
def test_a_head_under_another_name(head, tokenizer, tmp_path):
    plain = a_model("LlamaForCausalLM", tmp_path / "plain", tokenizer)
    weights = {f"{head}.weight": torch.randn(1, 32), f"{head}.bias": torch.ones(1)}
    folder = rewritten(plain, tmp_path / "with head", lambda w: w | weights)
    named = encoder(folder, head_name=head)
    assert torch.equal(named.head.T, weights[f"{head}.weight"])
    assert named.embed(TALKS).shape == (4, 32)
    words = f"lacks score.weight; nothing uses its {head}.weight .--head names"
    for other in ("score", "v_head.other"):
        with pytest.raises(InputError, match=words):
            encoder(folder, head_name=other).embed(TALKS)


def test_a_reward_model_has_a_template_and_a_head(reward_model, text_encoder, tokenizer, tmp_path):
    no_head = a_model("LlamaForCausalLM", tmp_path / "no head", tokenizer)
    two = a_model("LlamaForSequenceClassification", tmp_path / "two", tokenizer, num_labels=2)
    for folder, options, words in (
        (text_encoder, {}, "has no chat template"),
        (no_head, {}, "lacks score.weight"),
        (two, {}, r"score.weight has shape \(2, 32\), not \(1, 32\)"),
        (tmp_path / "nothing", {}, "cannot be loaded"),
        (reward_model, {"pooling": "max"}, "pooling = max"),
        (reward_model, {"attention": "flash_attention_2"}, "flash_attention_2: only with --no-share"),
        (reward_model, {"dtype": "int8"}, "dtype: use auto"),
    ):
        with pytest.raises(InputError, match=words):
            encoder(folder, **options).embed(TALKS)


def prefixed(weights, prefix):
    return {prefix + key: tensor for key, tensor in weights.items()}


def without(weights, beginning):
    return {key: tensor for key, tensor in weights.items() if not key.startswith(beginning)}


UP = "model.layers.0.mlp.up_proj"
WRONG = [
    (lambda w: prefixed(w, "module."), "lacks model.embed_tokens.weight; nothing uses its module.score.weight"),
    (lambda w: prefixed(w, "model.model."), "lacks model.embed_tokens.weight; nothing uses its model.model.score"),
    (lambda w: without(w, "model.layers.1."), "it lacks model.layers.1.self_attn.q_proj.weight;"),
    # a layer more than config.json says, a bias that it denies, another architecture's, an adapter's
    (lambda w: w | {"model.layers.2.mlp.up_proj.weight": torch.ones(64, 32)}, "uses its model.layers.2.mlp"),
    (lambda w: w | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}, "nothing uses its .*q_proj.bias"),
    (lambda w: w | {"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}, "nothing uses its .*q_norm.weight"),
    (lambda w: w | {f"{UP}.lora_A.weight": torch.ones(4, 32)}, "nothing uses its .*lora_A.weight"),
    (lambda w: w | {"model.norm.weight": torch.ones(31)}, r"norm.weight has shape \(31,\), not \(32,\)"),
    (lambda w: w | {"pre_score.weight": torch.ones(32, 32)}, "nothing uses its pre_score.weight"),
    (lambda w: w | {"model.norm.weight": torch.zeros(32)}, "gives one vector for 4 different texts"),
    (lambda w: w | {"score.weight": torch.zeros(1, 32)}, "zeros alone"),
    (lambda w: w | {"score.weight": torch.full((1, 32), torch.nan)}, "the head score .* holds NaN"),
    (lambda w: w | {f"{UP}.weight": (100 * w[f"{UP}.weight"]).char()}, f"{UP}.weight is of type I8"),
]  # fmt: skip
LAYERS = {"score.2.weight": torch.ones(1, 32), "score.0.weight": torch.ones(32, 32)}
HEADS = ("score", "score.0", "score.2")  # whichever of several layers is named
WRONG = [(*wrong, "score") for wrong in WRONG]
WRONG += [(lambda w: without(w, "score.") | LAYERS, "nothing uses its score.[02]", head) for head in HEADS]


@pytest.mark.parametrize("change, words, head", WRONG)
def test_weights_of_another_model_are_refused(reward_model, tmp_path, change, words, head):
    folder = rewritten(reward_model, tmp_path / "model", change)
    with pytest.raises(InputError, match=words):
        encoder(folder, head_name=head).embed(TALKS)


def test_weights_that_may_lack_or_be_left_over(reward_model, text_encoder, tmp_path):
    """A prefix that transformers takes off; an old buffer, a language model's head, the bias of a head; a pooler."""
    more = {"lm_head.weight": torch.ones(9, 32), "score.bias": torch.ones(1)}
    more["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    for name, model, pooling, change in (
        ("more", reward_model, "last", lambda w: w | more),
        ("prefix", reward_model, "last", lambda w: prefixed(w, "model.")),
        ("bare", text_encoder, "mean", lambda w: without(w, "pooler.")),
    ):
        folder = rewritten(model, tmp_path / name, change)
        assert torch.equal(encoder(folder, pooling).embed(TALKS), encoder(model, pooling).embed(TALKS))
    folder = rewritten(text_encoder, tmp_path / "wrapped", lambda w: prefixed(w, "student."))
    with pytest.raises(InputError, match=r"it lacks embeddings\.word_embeddings.weight"):
        encoder(folder, "mean").embed(TALKS)


def test_a_configuration_that_does_not_count_its_outputs(reward_model, tmp_path):
    folder = shutil.copytree(reward_model, tmp_path / "model")
    edit_json(folder / "config.json", num_labels=None, id2label=None, label2id=None)
    assert torch.equal(encoder(folder).embed(TALKS), encoder(reward_model).embed(TALKS))
    assert torch.equal(encoder(folder).head, encoder(reward_model).head)


def test_chat_templates_by_name(reward_model, tmp_path):
    folder = shutil.copytree(reward_model, tmp_path / "model")
    choose = encoder(folder).checkpoint.choose_template
    for templates in ({"default": "x", "tool_use": "y"}, {"only": "x"}):
        assert choose(templates) == "x"
    with pytest.raises(InputError, match="no chat template called default, but rag, tool_use"):
        choose({"tool_use": "x", "rag": "y"})
    with pytest.raises(InputError, match="no chat template"):
        choose(["x"])
    template = (
        folder / "chat_template.jinja"
    ).read_text() + "{% if strftime_now('%Y') == '1999' %}x{% endif %}"
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": template}, {"name": "tool_use", "template": "x"}]
    edit_json(folder / "tokenizer_config.json", chat_template=named)
    assert torch.equal(encoder(folder).embed(TALKS), encoder(reward_model).embed(TALKS))


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json"])
def test_a_damaged_folder_is_one_line(reward_model, tmp_path, file):
    folder = shutil.copytree(reward_model, tmp_path / "model")
    for content in ("{", "[]", "{}", '{"model_type": 7}'):
        (folder / file).write_text(content)
        with pytest.raises(InputError):
            encoder(folder).embed(TALKS)


def test_where_rotary_positions_switch():
    from transformers import LlamaConfig

    plain = {"rope_type": "default", "rope_theta": 1e4}
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=128)
    for parameters, switch in (
        (LONGROPE, 60),
        (plain, math.inf),
        ({**plain, "rope_type": "dynamic", "factor": 2.0}, math.inf),
        ({"full_attention": LONGROPE, "sliding_attention": plain}, 60),  # by the kind of layer
    ):
        config.rope_parameters = parameters
        assert rotary_switch(config) == switch


TWENTY = {"max_position_embeddings": 20}
POSITIONS = [
    ("Roberta", TWENTY | {"pad_token_id": 1}, 18),
    ("IBert", TWENTY | {"pad_token_id": 1}, 18),  # a layer of its own kind
    ("OPT", TWENTY | {"ffn_dim": 16, "word_embed_proj_dim": 16}, 20),
    ("GPT2", {"n_positions": 20}, 20),
    ("Mamba", {}, math.inf),
    ("XLNet", {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}, math.inf),  # it says -1
]


@pytest.mark.parametrize("family, options, positions", POSITIONS)
def test_positions_of_tables_of_configurations_and_of_neither(family, options, positions):
    import transformers

    size = {"vocab_size": 50}
    if family != "XLNet":
        size |= {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(transformers, f"{family}Config")(**size | options)
    model = getattr(transformers, f"{family}Model")(config)
    assert count_positions(model, config) == positions
