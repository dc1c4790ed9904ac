"""Tiny randomly initialised models with a real tokenizer and chat template, and conversations for them."""

import copy
import json
import shutil

import torch
from conftest import CHAT_TEMPLATE
from safetensors.torch import load_file, save_file

from lore.text.conversations import exchange
from lore.text.encoder import Encoder

CPU = torch.device("cpu")
TALKS = [
    exchange("the cat", "sat on the mat"),
    exchange("hello; I met a friend and the dog lay beside it, she said nothing", "ok"),
    [*exchange("hi", "hello"), *exchange("and the dog?", "the dog lay beside the cat")],
    exchange("x", "y"),
]
TINY = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_labels": 1, "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 8.0,
    "original_max_position_embeddings": 60,
}  # fmt: skip
REFUSAL = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}"
NO_SYSTEM = REFUSAL + CHAT_TEMPLATE


def encoder(folder, pooling="last", **options):
    return Encoder(str(folder), pooling, CPU, **options)


def a_model(architecture, folder, tokenizer, **options):
    """Folder with a tiny, randomly initialised model of that architecture."""
    import transformers

    torch.manual_seed(0)
    family = architecture.removesuffix("Model").removesuffix("Encoder").split("For")[0]
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer), **copy.deepcopy(TINY | options)
    )
    getattr(transformers, architecture)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rewritten(model, folder, change):
    """A copy of a model's folder with other tensors. change: {name: tensor} -> the same"""
    shutil.copytree(model, folder)
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def edit_json(file, **values):
    """Change values of a JSON file; None takes one away."""
    config = json.loads(file.read_text()) | values
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def by_itself(model):
    """The same model as transformers loads and runs it, nothing replaced."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(model.name, attn_implementation="eager").eval()


def assert_own_passes(model, talks, whole=None):
    """Each vector is that of its conversation's own full forward pass; the vectors. whole: the model itself."""
    if whole is None:
        whole = by_itself(model).base_model if model.pooling == "last" else model.model
    table = model.embed(talks)
    for tokens, vector in zip(model.tokeniser.tokens(talks)[0], table, strict=True):
        with torch.no_grad():
            states = whole(input_ids=torch.tensor(tokens[None])).last_hidden_state[0]
        expected = states[-1] if model.pooling == "last" else states.mean(0)
        assert torch.allclose(vector, expected, atol=1e-5)
    return table


def dialogue(turns, rejected=2, name=""):
    """The chosen path of a dialogue with every turn of it, and the branches that were not taken."""
    path, conversations = [], []
    for turn in range(turns):
        path.append({"role": "user", "content": f"{name} question {turn}: and the cat?"})
        for reply in range(rejected):
            text = f"{'no, ' * (reply + 1)}the dog lay in turn {turn}"
            conversations.append([*path, {"role": "assistant", "content": text}])
        text = f"yes, the cat sat in turn {turn} " + "and sat " * turn
        path.append({"role": "assistant", "content": text})
        conversations.append(path[:])
    return conversations
