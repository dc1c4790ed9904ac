"""Models on the Hub and in folders: loaded whole, or refused in one line."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from tiny import TALKS, a_model, encoder

from lore.common import InputError


def test_a_model_of_the_hub_is_known_by_its_commit(reward_model, tmp_path):
    """In a process of its own, as the place of the Hub's files is read at import."""
    commit, folder = "0123456789" * 4, tmp_path / "models--some--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(commit)
    shutil.copytree(reward_model, folder / "snapshots" / commit)
    code = (
        "import torch; from lore.conversations import exchange; from lore.encoder import Encoder;"
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


def test_the_head_is_the_score_weight_and_not_some_other_layer(reward_model):
    head = encoder(reward_model).head
    weight = load_file(reward_model / "model.safetensors")["score.weight"]
    assert head.shape == (32, 1) and head.dtype == torch.float32 and torch.equal(head, weight.T)


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
