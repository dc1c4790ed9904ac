"""A model on the Hub or in a local folder: its version, its tokenizer, its weights loaded whole or refused."""

import hashlib
import math
import pickle
import re
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from lore.common import require, told_as
from lore.processes import rank

TEMPLATE_DATE = "26 Jul 2024"  # where a template writes today's: vectors must not depend on the day
FIXED_DATE = f"{{% macro strftime_now(format) %}}{TEMPLATE_DATE}{{% endmacro %}}"
# kinds of files in a model's folder that its vectors depend on
MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")
SAMPLE = 2**16  # bytes of a file that are hashed at a time
SAMPLES = 64  # how many times at most: a hash of 16 GB takes a second
REFUSALS = (  # what from_pretrained raises on a folder that it cannot read
    OSError, ValueError, ImportError, RuntimeError, TypeError, LookupError, AttributeError, EOFError,
    SafetensorError, pickle.UnpicklingError,
)  # fmt: skip
WITH_REPORT = {"output_loading_info": True, "ignore_mismatched_sizes": True}
POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")  # names of learned positions
# Of a checkpoint's weights, all that need not be used: what is computed today, a language model's head.
UNUSED = re.compile(
    r"^(lm_head|cls)\.|^score\.bias$|(inv_freq|masked_bias|position_ids|token_type_ids|att\w*\.bias)$"
)


class Checkpoint:
    """A model by its name on the Hub or its folder; nothing is loaded before it is asked for.

    wanted: the Hub's commit, None = the newest to be had here.
    """

    def __init__(self, name, wanted=None):
        self.name = name
        self.wanted = wanted

    @cached_property
    def revision(self):
        """The Hub's commit that all is loaded from; None for a folder."""
        from transformers.utils.hub import cached_file, extract_commit_hash

        if Path(self.name).is_dir():
            return None
        with told_as(f"{self.name} cannot be loaded", *REFUSALS):
            config = cached_file(self.name, "config.json", revision=self.wanted)
            return extract_commit_hash(config, None)

    @cached_property
    def version(self):
        """The Hub's commit, or a hash of the folder: weights by samples, tokenizer and template whole."""
        if not Path(self.name).is_dir():
            return self.revision
        digest = hashlib.sha256()
        for file in sorted(Path(self.name).iterdir()):
            if file.suffix in MODEL_FILES:
                hash_samples(digest, file)
        return digest.hexdigest()[:16]

    @cached_property
    def config(self):
        from transformers import AutoConfig

        return self.load(AutoConfig)

    def load(self, auto_class, **options):
        """What the class of transformers makes of it. InputError: nothing."""
        import transformers

        transformers.logging.set_verbosity_error()
        if rank() > 0:
            transformers.utils.logging.disable_progress_bar()
        revision = self.revision or "main"
        with told_as(f"{self.name} cannot be loaded", *REFUSALS):
            return auto_class.from_pretrained(self.name, revision=revision, **options)

    def load_tokenizer(self, with_template):
        """The tokenizer; with_template: with one chat template that knows no date but TEMPLATE_DATE."""
        from transformers import AutoTokenizer

        tokenizer = self.load(AutoTokenizer)
        if not with_template:
            return tokenizer
        template = self.choose_template(tokenizer.chat_template)
        clock = "strftime_now" in template
        tokenizer.chat_template = FIXED_DATE + template if clock else template
        return tokenizer

    def choose_template(self, template):
        """The one for plain conversations, where a tokenizer has several by name. InputError: none."""
        named = template if isinstance(template, dict) else {"": template}
        (template,) = named.values() if len(named) == 1 else [named.get("default")]
        among = f" called default, but {', '.join(sorted(named))}" if len(named) > 1 else ""
        hint = "so it is no reward model; a text encoder needs --pooling mean"
        require(template and isinstance(template, str), f"{self.name} has no chat template{among}, {hint}")
        return template

    def load_text_encoder(self, **options):
        """The body of any model, of an encoder-decoder its encoder. InputError: weights are missing."""
        from transformers import AutoModel

        model, report = self.load(AutoModel, **WITH_REPORT, **options)
        named = self.config.architectures or []
        has_two = self.config.is_encoder_decoder or any(name.endswith("EncoderModel") for name in named)
        self.require_whole(model, report, may_lack=("pooler.", "decoder.") if has_two else ("pooler.",))
        return model.get_encoder() if has_two else model

    def load_reward_model(self, head, **options):
        """The model with its linear head of one output, `head` in the checkpoint, as model.score.

        InputError: weights are missing, or the head is something else.
        """
        from transformers import AutoModelForSequenceClassification

        if head != "score":
            options["key_mapping"] = {rf"^{re.escape(head)}\.": "score."}
        # num_labels: a checkpoint that states none has one output all the same, or is refused below
        model, report = self.load(AutoModelForSequenceClassification, num_labels=1, **WITH_REPORT, **options)
        self.require_whole(model, report, with_head=True)
        score = getattr(model, "score", None)
        usable = isinstance(score, torch.nn.Linear) and score.weight.isfinite().all() and score.weight.any()
        require(usable, f"{self.name}: the head {head} is not linear, or holds NaN, infinity or zeros alone")
        return model

    def require_whole(self, model, report, may_lack=(), with_head=False):
        """InputError unless the checkpoint fills the model, and the model uses all of it.

        Otherwise vectors would be of another model: of a head of several layers, of weights saved from
        inside a wrapper or quantised with nothing said of how. report: missing, mismatched and unexpected
        keys; may_lack: beginnings of those that may; with_head: the model has it, so that none is left.
        """
        prefix = model.base_model_prefix + "."
        of_body = {name for name, _ in model.base_model.named_children()}
        faults = []
        for key in model.state_dict():
            if key in report["missing_keys"] and not key.removeprefix(prefix).startswith(may_lack):
                faults.append(f"it lacks {key}")
        for key, stored, wanted in sorted(report["mismatched_keys"], key=lambda entry: entry[0]):
            if not key.startswith(may_lack):
                faults.append(f"its {key} has shape {tuple(stored)}, not {tuple(wanted)}")
        for key in sorted(report["unexpected_keys"]):
            expected = with_head or key.removeprefix(prefix).split(".")[0] in of_body
            if expected and not UNUSED.search(key):
                faults.append(f"nothing uses its {key}")
        faults += self.integers()
        told = "; ".join([*faults[:1], *faults[1:][-1:]])  # what is lacking, and what is there instead
        hint = " (--head names another reward head)" if with_head else ""
        require(not faults, f"{self.name} is not the model that its config.json describes: {told}{hint}")

    def integers(self):
        """Of the weights in a folder, those that are whole numbers."""
        faults = []
        for file in sorted(Path(self.name).glob("*.safetensors")):
            with safe_open(file, framework="np") as opened:
                names = opened.keys()
                for name in names:
                    kind = opened.get_slice(name).get_dtype()
                    if name.endswith(".weight") and not kind.startswith(("F", "BF")):
                        faults.append(f"its {name} is of type {kind}, and nothing says how it is scaled")
        return faults


def hash_samples(digest, file):
    """Add a file's name, size and some of its bytes to a digest; all of them where it is small."""
    size = file.stat().st_size
    digest.update(f"{file.name} {size}".encode())
    with open(file, "rb") as opened:
        for start in range(0, size, max(SAMPLE, size // SAMPLES)):
            opened.seek(start)
            digest.update(opened.read(SAMPLE))


# ------------------------------------------------------------------------------------------------
# Positions: how many there are, and where a pass depends on the longest one in it
# ------------------------------------------------------------------------------------------------


def count_positions(model, config):
    """Tokens that the model has positions for; infinity where nothing says so."""
    config = config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    if not most or most < 0:  # XLNet says -1: relative positions, as many as wanted
        most = math.inf
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)  # I-BERT's layer has no num_embeddings
        if name.rpartition(".")[2] in POSITION_TABLES and weight is not None:
            rows = len(weight)
            # RoBERTa and its kin count positions from behind the padding's
            padding = getattr(module, "padding_idx", None)
            most = min(most, rows if padding is None else rows - padding - 1)
    return most


def rotary_switch(config):
    """Length of a pass beyond which all its positions are turned otherwise; infinity where it is not.

    config: of the loaded model, as loading it may replace the length that config.json states.
    Conversations on the two sides of it must not share a pass. (The "dynamic" kind switches at
    max_position_embeddings, which no conversation passes.)
    """
    settings = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [settings, *settings.values()]  # one for all layers, or one a kind of layer
    switches = [math.inf]
    for kind in kinds:
        if isinstance(kind, dict) and kind.get("rope_type") == "longrope":
            switches.append(kind["original_max_position_embeddings"])
    return min(switches)
