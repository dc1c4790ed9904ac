"""A reward as a checkpoint that other tools load: one linear head, or several, on the base's own weights.

The folder links the base's weights and tokenizer, or holds copies of them, and has a shard of its own
with the heads, so that a person takes the disk of d numbers. Heads are V w + e over LOGIT_SCALE:
differences are log-odds.
"""

import json
import os
from pathlib import Path
from shutil import copyfile

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lore.common import require, told_as
from lore.text.conversations import exchange

WHOLE = "model.safetensors"
INDEX = f"{WHOLE}.index.json"
SETTINGS = "tokenizer_config.json"
REWRITTEN = (SETTINGS, "special_tokens_map.json", "config.json")  # the pad token is another
TOKENIZER = (".json", ".model", ".txt")  # files that it may consist of
EXACT = 1e-3  # of its length, by which a vector of the exported folder may be off
ROUNDED = 0.05  # the same in half precision
TINY = 1e-12
FETCHED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "README.md"]


def base_folder(encoder):
    """The folder of an encoder's model, fetched where it is on the Hub. InputError: not to be had."""
    if Path(encoder.name).is_dir():
        return Path(encoder.name).resolve()
    from huggingface_hub import snapshot_download

    revision = encoder.checkpoint.revision
    with told_as(f"{encoder.name} cannot be fetched", OSError, ValueError):
        return Path(snapshot_download(encoder.name, revision=revision, allow_patterns=FETCHED))


def weight_files(base):
    """In which safetensors file of a model each tensor is: a whole one goes first, as for transformers."""
    if (base / WHOLE).exists():
        with safe_open(base / WHOLE, framework="pt") as file:
            return dict.fromkeys(file.keys(), WHOLE)
    none = f"{base} has no .safetensors weights to link; save the model anew as such"
    require((base / INDEX).exists(), none)
    return json.loads((base / INDEX).read_text())["weight_map"]


def write_weights(folder, base, heads, take):
    """The base's shards, and after them, so that it is read last, one with score.weight."""
    file_of = weight_files(base)
    files = sorted({*file_of.values()})
    count = len(files) + 1
    names = {file: f"model-{i:05d}-of-{count:05d}.safetensors" for i, file in enumerate(files, 1)}
    last = f"model-{count:05d}-of-{count:05d}.safetensors"
    for file, name in names.items():
        take((base / file).resolve(), folder / name)
    # float32: in bfloat16 rewards tie often
    save_file({"score.weight": heads.float().contiguous()}, folder / last, {"format": "pt"})
    (folder / last).chmod(0o644)  # safetensors hides its files from the group
    file_of = {key: names[file] for key, file in file_of.items()} | {"score.weight": last}
    size = sum((folder / name).stat().st_size for name in (*names.values(), last))
    index = {"metadata": {"total_size": size}, "weight_map": file_of}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def write_config(folder, encoder, labels, pad):
    """config.json of the sequence classifier with these labels."""
    from transformers import AutoModelForSequenceClassification

    config = encoder.config
    classes = AutoModelForSequenceClassification._model_mapping
    config.architectures = [classes[type(config)].__name__]
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "regression"  # else a sigmoid is put on a single label
    config.pad_token_id = pad
    config.value_head_prefix = "score"
    config.dtype = encoder.dtype
    config.save_pretrained(folder)


def write_tokenizer(folder, base, encoder, pad, take):
    """The base's tokenizer with its one chat template and a pad token that ends no reply."""
    tokenizer = encoder.tokenizer
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    tokenizer.model_max_length = encoder.tokeniser.longest
    tokenizer.save_pretrained(folder)
    # what is too long loses the oldest part of its prompt; a side set after loading is not saved
    stated = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    stated |= {"padding_side": "right", "truncation_side": "left"}
    (folder / SETTINGS).write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        is_rewritten = file.name in REWRITTEN or file.suffix not in TOKENIZER
        if not is_rewritten and (base / file.name).exists():
            file.unlink()
            take((base / file.name).resolve(), file)


def pad_token(encoder):
    """Id of a token that stands in no conversation: a classifier reads the last one that is no padding.

    InputError: there is none.
    """
    tokenizer = encoder.tokenizer
    written = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    for ids in encoder.tokeniser.tokenise([exchange("a", "b")]):
        written |= {*ids}
    special = [(number, token) for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    special.sort(key=lambda item: "pad" not in str(item[1]).lower())
    numbers = [tokenizer.pad_token_id, *(number for number, _ in special)]
    left = [number for number in numbers if number is not None and number not in written]
    require(left, f"{encoder.name} has no special token left to pad with")
    return left[0]


def write_checkpoint(folder, encoder, heads, labels, copy=False):
    """A whole folder but for its card: heads (labels, d) in units of log-odds; copy: no links to the base.

    InputError: what was written does not score as the encoder and the heads do.
    """
    base = base_folder(encoder)
    pad = pad_token(encoder)
    take = copyfile if copy else os.symlink
    write_config(folder, encoder, labels, pad)
    write_tokenizer(folder, base, encoder, pad, take)
    write_weights(folder, base, heads, take)
    require_same_scores(folder, encoder, heads)


def require_same_scores(folder, encoder, heads):
    """InputError unless the folder, loaded as others load it, has the encoder's vector and its rewards."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    talk = exchange("What is worth reading?", "It depends on what you liked.")
    vector = encoder.embed([talk])[0].float()  # (d,)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(talk, tokenize=False)
    tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    attention = "eager" if encoder.attention == "eager" else "sdpa"
    load = AutoModelForSequenceClassification.from_pretrained  # on the CPU: a GPU holds the encoder
    model = load(folder, dtype=encoder.dtype, attn_implementation=attention).eval()
    with torch.no_grad():
        again = model.base_model(**tokens).last_hidden_state[0, -1].float()  # (d,)
        rewards = model(**tokens).logits[0].float()  # (labels,)
    off = float((again - vector).norm() / vector.norm())
    size = heads.norm(dim=1) * again.norm() + TINY
    off_head = float(((rewards - heads.float() @ again).abs() / size).max())  # (labels, d) @ (d,)
    exact = max(off, off_head) < (EXACT if encoder.precision == "float32" else ROUNDED)  # NaN is not
    words = f"exported, it does not score as it did before ({off:.1g} of a vector off)"
    require(exact, f"{encoder.name}: {words}: are weights of another model beside its own?")


def licence_of(base):
    """What the head of a model's card says of its licence: {license: .., license_name: .., license_link: ..}."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    card = base / "README.md"
    try:
        fields = (card.exists() and metadata_load(card)) or {}
    except (ValueError, YAMLError):
        fields = {}
    stated = {}
    for name in ("license", "license_name", "license_link"):
        if isinstance(fields.get(name), str):
            stated[name] = " ".join(fields[name].split())
    return stated if stated.get("license") else {"license": "unknown"}
