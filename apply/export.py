"""A person's reward as a standard checkpoint: one linear head on the model that the basis was learned on.

    python apply/export.py --basis BASIS --output FOLDER --user ann      one head, for one person
    python apply/export.py --basis BASIS --output FOLDER                     one head, the population's
    python apply/export.py --basis BASIS --output FOLDER --all                   a head for each basis reward

Reads:  --basis, a .safetensors file of a train_basis.py or of adapt.py, and its model
Writes: --output, a folder that AutoModelForSequenceClassification loads; the model's weights are
        linked, not copied: the folder itself takes the disk of the heads (and moves with its model
        only; with --copy it moves alone). With --all everybody's mixtures stand in
        mixtures.safetensors: rewards are logits @ W.T. README.md in it is a model card.
Cost:   the model is loaded twice: what was written is scored once, and must give what the basis gives.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from outputs import require_folder, whole_folder
from safetensors.torch import save_file

import saved_basis
from checkpoint_export import base_folder, licence_of, write_checkpoint
from lore.common import require, start
from lore.fit.likelihood import LOGIT_SCALE
from lore.settings import settings
from saved_basis import encoder_of_basis, open_basis, worth_of

# ------------------------------------------------------------------------------- settings ---
basis = ""  # a basis of train_basis.py or adapt.py
output = ""  # a folder that is not there yet
user = ""  # id of the person whose reward it is; empty = the population's
all = False  # a head for each basis reward, and everybody's mixtures
copy = False  # copy the model's weights and tokenizer as well, for a folder that moves elsewhere
# -------------------------------------------------------------------------------------------

CARD = """---
library_name: transformers
pipeline_tag: text-classification
{stated}
---

# {title}

{what}

- **Scale**: V w / {scale:g}: the difference of two replies to one prompt is the log-odds of a choice between
  them; by itself a reward says nothing
- **Text**: rendered by the chat template of this folder's tokenizer, which writes all special tokens
  (so tokenise with `add_special_tokens=False`); read up to {encoder.tokeniser.longest} tokens, longer ones lose the
  beginning (with `truncation=True`; LoRe's own scripts cut within the prompt and keep the template
  whole, so that a text cut here scores a little differently there). Padding goes to the right, with
  `{encoder.tokenizer.pad_token}`, which ends no reply.
- **Basis**: {file}, rank {K}, learned on {base} ({encoder.identity[version]}), pooling last,
  {encoder.precision}.
- **Held out**: {held_out}{attention}
- **Licence of the base**: {licence[license]}. {weights}

{tools}
Learned with LoRe (arXiv 2504.14439). How well a reward predicts choices and how good a policy is that
was trained on it agree only weakly; nothing is promised of the latter.
"""
ATTENTION = '\n- **Attention**: scored with `attn_implementation="{}"`; load it so, others may differ.'
ONE_HEAD = """Loads with `AutoModelForSequenceClassification` (one label, `problem_type` regression: read the
logit as it is). `score.weight` is float32: loaded in bfloat16, rewards of like replies tie often, and a
strict comparison counts a tie as wrong. TRL, OpenRLHF (value_head_prefix score) and vLLM
(`pooling_task="classify"`; `LLM.reward` is for other models) take a single label. rewardbench quantises to
8 bits unless told `--not_quantized`.
"""
MANY_HEADS = """Loads with `AutoModelForSequenceClassification` ({labels} labels, `problem_type` regression).
With W of `mixtures.safetensors` (people, labels), rows in the order of `user_ids` in its header, everybody's
rewards are `logits @ W.T`; `population` (labels,) is the mixture of who is unknown. transformers and vLLM return
all logits of one pass. **One label is what others expect**: TRL refuses more, OpenRLHF stops on the
sizes, and rewardbench scores with whichever it finds first; export a person by itself for those.
"""


def card_of(args, basis, encoder, title, what, tools):
    """README.md of the folder."""
    is_folder = Path(encoder.name).is_dir()  # its path is of this machine, and names nothing elsewhere
    base = Path(encoder.name).name if is_folder else encoder.name
    licence = licence_of(base_folder(encoder))
    stated = licence if is_folder else licence | {"base_model": base}
    linked = "The base's weights are linked into this folder: it moves with its base only (or --copy)."
    return CARD.format(
        stated="\n".join(f"{name}: {json.dumps(value)}" for name, value in stated.items()),
        title=" ".join(title.split()),
        what=" ".join(what.split()),
        scale=LOGIT_SCALE,
        encoder=encoder,
        file=Path(args.basis).name,
        K=basis.V.shape[1],
        base=base,
        held_out=worth_of(basis) or "this basis does not say how well it predicts.",
        licence=licence,
        weights="The base's weights are in this folder." if args.copy else linked,
        attention="" if encoder.attention == "sdpa" else ATTENTION.format(encoder.attention),
        tools=tools,
    )


def known_of(basis, user):
    """A sentence on a person: by how many comparisons they are known, and adapt.py's word on them."""
    pairs = (basis.pairs or {}).get(user, "an unknown number of")
    word = (basis.words or {}).get(user)
    seen = "one of those it was fitted to" if user in basis.user_ids else "a later one"
    what = f"The reward of person {user} of a low-rank basis, {seen}, known by {pairs} comparisons"
    return f"{what}; leaving out one prompt at a time says: {word}." if word else f"{what}."


def reward_of(args, basis):
    """Heads (1, d) of --user or the population, their labels, title and text of the card."""
    if args.user:
        return basis.rewards([args.user]).T, ["reward"], f"Reward of {args.user}", known_of(basis, args.user)
    head = (basis.V @ basis.prior.mean.float()).unsqueeze(0)  # (d, K) @ (K,) -> (1, d)
    what = f"The population's reward of a low-rank basis of {len(basis.user_ids)} people."
    return head, ["reward"], "Reward of a population", what


def rewards_of_all(folder, basis):
    """The same of each basis reward, and of what each person has of their own, (labels, d).

    Everybody's mixtures of them, (P, labels), are written to the folder.
    """
    users = basis.everybody
    W, E = basis.parameters_of(users)  # (P, K), (P, d)
    heads = basis.V.T
    labels = [f"basis reward {k}" for k in range(len(heads))]
    if E is not None:  # that of each
        heads = torch.cat([heads, E])  # (K + P, d)
        W = torch.cat([W, torch.eye(len(users))], dim=1)
        labels += [f"own part of {user}" for user in users]
    population = torch.zeros(len(labels))
    population[: len(basis.prior.mean)] = basis.prior.mean
    tensors = {"W": W.contiguous(), "population": population}
    save_file(tensors, folder / "mixtures.safetensors", {"user_ids": json.dumps(users)})
    what = f"The rewards of a low-rank basis, of which {len(users)} people mix their own."
    return heads, labels, "Basis of rewards", what


def main():
    args = settings(globals(), saved_basis)
    basis = open_basis(args.basis)
    require(not (args.user and args.all), "--user and --all: one of the two")
    basis.positions([args.user] if args.user else [])
    require_folder(args.output)
    encoder = encoder_of_basis(args.basis, basis, args)
    words = "was learned on means of a text encoder, which no standard classifier has"
    require(encoder.pooling == "last", f"{args.basis} {words}")
    with whole_folder(args.output) as folder:
        reward = rewards_of_all(folder, basis) if args.all else reward_of(args, basis)
        heads, labels, title, what = reward
        write_checkpoint(folder, encoder, heads / LOGIT_SCALE, labels, args.copy)
        tools = MANY_HEADS.format(labels=len(labels)) if args.all else ONE_HEAD
        card = card_of(args, basis, encoder, title, what, tools)
        (folder / "README.md").write_text(card, encoding="utf-8")
    size = sum(f.stat().st_size for f in Path(args.output).iterdir() if not f.is_symlink())
    print(f"{args.output} takes {size / 1000:.0f} kB beside {encoder.name}; its card: README.md")


if __name__ == "__main__":
    start(main)
