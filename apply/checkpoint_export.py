"""A reward as a checkpoint that other tools load: one linear head, or several, on the base's own weights.

The folder links the base's weights and tokenizer and holds a shard of its own with the heads, so that
a person takes the disk of d numbers. Heads are V w + e over LOGIT_SCALE: differences are log-odds.
"""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lore.common import InputError
from lore.text.conversations import exchange, first_line

INDEX = "model.safetensors.index.json"
REWRITTEN = ("tokenizer_config.json", "special_tokens_map.json")  # of a tokenizer: the pad token
TOKENIZER = (".json", ".model", ".txt")  # files that it may consist of
FETCHED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "README.md"]


def base_folder(encoder):
    """The folder of an encoder's model, fetched where it is on the Hub. InputError: not to be had."""
    if Path(encoder.name).is_dir():
        return Path(encoder.name).resolve()
    from huggingface_hub import snapshot_download

    revision = encoder.checkpoint.revision
    try:
        return Path(snapshot_download(encoder.name, revision=revision, allow_patterns=FETCHED))
    except (OSError, ValueError) as error:
        raise InputError(f"{encoder.name} cannot be fetched: {first_line(error)}") from error


def weight_files(base):
    """Names of the safetensors files of a model, and which tensor is where."""
    if (base / INDEX).exists():
        places = json.loads((base / INDEX).read_text())["weight_map"]
        return sorted({*places.values()}), places
    if not (base / "model.safetensors").exists():
        raise InputError(f"{base} has no .safetensors weights to link; save the model anew as such")
    with safe_open(base / "model.safetensors", framework="pt") as file:
        return ["model.safetensors"], dict.fromkeys(file.keys(), "model.safetensors")


def write_weights(folder, base, heads):
    """Links to the base's shards, and after them, so that it is read last, one with score.weight."""
    files, places = weight_files(base)
    count = len(files) + 1
    name_of = {file: f"model-{i:05d}-of-{count:05d}.safetensors" for i, file in enumerate(files, 1)}
    own = f"model-{count:05d}-of-{count:05d}.safetensors"
    for file, name in name_of.items():
        (folder / name).symlink_to((base / file).resolve())
    # float32: in bfloat16 rewards tie often
    save_file({"score.weight": heads.float().contiguous()}, folder / own, {"format": "pt"})
    (folder / own).chmod(0o644)  # safetensors hides its files from the group
    places = {key: name_of[file] for key, file in places.items()} | {"score.weight": own}
    size = sum((folder / name).stat().st_size for name in (*name_of.values(), own))
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def write_config(folder, encoder, labels, pad):
    """config.json of the sequence classifier with these labels."""
    from transformers import AutoModelForSequenceClassification

    config = encoder.config
    known = AutoModelForSequenceClassification._model_mapping
    config.architectures = [known[type(config)].__name__]
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "regression"  # else a sigmoid is put on a single label
    config.pad_token_id = pad
    config.value_head_prefix = "score"
    config.dtype = encoder.dtype
    config.save_pretrained(folder)


def write_tokenizer(folder, base, encoder, pad):
    """The base's tokenizer with its one chat template and a pad token that ends no reply."""
    tokenizer = encoder.tokenizer
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "left"  # what is too long loses the oldest part of its prompt
    if encoder.max_length:
        tokenizer.model_max_length = encoder.max_length
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        own = file.name in REWRITTEN or file.suffix not in TOKENIZER
        if not own and file.name != "config.json" and (base / file.name).exists():
            file.unlink()
            file.symlink_to((base / file.name).resolve())


def pad_token(encoder):
    """Id of a token that stands in no conversation: a classifier reads the last one that is no padding.

    InputError: there is none.
    """
    tokenizer = encoder.tokenizer
    written = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    for ids in encoder.tokeniser.tokenise([exchange("a", "b")]):
        written |= {*ids}
    special = []
    for number, token in tokenizer.added_tokens_decoder.items():
        if token.special:
            special.append(number)
    special.sort(
        key=lambda number: "pad" not in str(tokenizer.added_tokens_decoder[number]).lower()
    )
    for number in [tokenizer.pad_token_id, *special]:
        if number is not None and number not in written:
            return number
    raise InputError(f"{encoder.name} has no special token left to pad with")


def write_checkpoint(folder, encoder, heads, labels):
    """A whole folder but for its card: heads (labels, d) in units of log-odds."""
    base = base_folder(encoder)
    pad = pad_token(encoder)
    write_config(folder, encoder, labels, pad)
    write_tokenizer(folder, base, encoder, pad)
    write_weights(folder, base, heads)


def licence_of(base):
    """What the card of a model says of its licence, or that it says nothing."""
    card = base / "README.md"
    if card.exists():
        for line in card.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("license:"):
                return line.partition(":")[2].strip()
    return "not stated in its folder"


@contextmanager
def whole_folder(path):
    """A temporary folder that is renamed to PATH when the block ends well, removed otherwise.

    InputError: something is there already.
    """
    if not path:
        raise InputError("where to? name a new folder with --output")
    path = Path(path)
    if path.exists():
        raise InputError(f"{path} is there already; name a new folder, or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def score_heads(basis, users):
    """(labels, d) and names of heads of which everybody's reward is a mixture: the columns of V, and,
    where people have something of their own, that of each; and these mixtures (P, labels)."""
    names = [f"basis reward {k}" for k in range(basis.V.shape[1])]
    places = basis.positions(users)
    W = torch.cat([basis.W, basis.W_unseen])[places]  # (P, K)
    heads = basis.V.T
    if basis.E is not None:
        heads = torch.cat([heads, torch.cat([basis.E, basis.E_unseen])[places]])  # (K + P, d)
        W = torch.cat([W, torch.eye(len(users))], dim=1)
        names += [f"own part of {user}" for user in users]
    return heads, names, W
