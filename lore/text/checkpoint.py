"""A model on the Hub or in a local folder: its version, its tokenizer, its weights loaded whole or refused."""

import hashlib
import math
import pickle
import re
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from lore.common import InputError
from lore.processes import rank
from lore.text.conversations import first_line

TEMPLATE_DATE = "26 Jul 2024"  # where a template writes today's: vectors must not depend on the day
FIXED_DATE = f"{{% macro strftime_now(format) %}}{TEMPLATE_DATE}{{% endmacro %}}"
# kinds of files in a model's folder that its vectors depend on
MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")
SAMPLE = 2**16  # bytes of a file that are hashed at a time
SAMPLES = 64  # how many times at most: a hash of 16 GB takes a second
INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL")
REFUSALS = (  # what from_pretrained raises on a folder that it cannot read
    OSError, ValueError, ImportError, RuntimeError, TypeError, LookupError, AttributeError, EOFError,
    SafetensorError, pickle.UnpicklingError,
)  # fmt: skip
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
        try:
            config = cached_file(self.name, "config.json", revision=self.wanted)
            return extract_commit_hash(config, None)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.name} cannot be loaded: {first_line(error)}") from error

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
        try:
            return auto_class.from_pretrained(self.name, revision=revision, **options)
        except REFUSALS as error:
            hint = "; try --attention eager" if "attention" in str(error) else ""
            raise InputError(f"{self.name} cannot be loaded: {first_line(error)}{hint}") from error

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
        if not isinstance(template, str | dict | None):
            raise InputError(f"{self.name}: its chat template is a {type(template).__name__}")
        if isinstance(template, dict) and len(template) == 1:
            (template,) = template.values()
        if isinstance(template, dict) and template:
            names = ", ".join(sorted(template))
            template = template.get("default")
            if template is None:
                raise InputError(f"{self.name} has chat templates {names}; none of them is default")
        if not template:
            raise InputError(
                f"{self.name} has no chat template, so it is no reward model;"
                " a text encoder needs --pooling mean"
            )
        return template

    def load_text_encoder(self, **options):
        """The body of any model, of an encoder-decoder its encoder. InputError: weights are missing."""
        from transformers import AutoModel

        model, report = self.load(
            AutoModel, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        named = self.config.architectures or []
        if self.config.is_encoder_decoder or any(name.endswith("EncoderModel") for name in named):
            self.require_weights(model, report, may_lack=("pooler.", "decoder."))
            return model.get_encoder()
        self.require_weights(model, report, may_lack=("pooler.",))
        return model

    def load_reward_model(self, head, **options):
        """The model with its linear head of one output, `head` in the checkpoint, as model.score.

        InputError: weights are missing, or the head is something else.
        """
        from transformers import AutoModelForSequenceClassification

        if head != "score":
            options["key_mapping"] = {rf"^{re.escape(head)}\.": "score."}
        # num_labels: a checkpoint that states none has one output all the same, or is refused below
        model, report = self.load(
            AutoModelForSequenceClassification,
            num_labels=1,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
        self.require_weights(model, report, may_lack=("score.",))
        self.require_head(model, report, head)
        return model

    def require_weights(self, model, report, may_lack):
        """InputError unless the checkpoint fills the model, and the model uses all of its body.

        report: missing, unexpected and mismatched keys; may_lack: beginnings of those that may.
        """
        self.require_floats()
        prefix = model.base_model_prefix + "."
        unexpected = sorted(report["unexpected_keys"])
        for key in model.state_dict():
            short = key.removeprefix(prefix)
            if key in report["missing_keys"] and not short.startswith(may_lack):
                instead = [name for name in unexpected if name.endswith(f".{short}")]
                instead = f", but has {instead[0]}: saved from inside a wrapper" if instead else ""
                raise InputError(f"{self.name} lacks {key}{instead}: the checkpoint is not complete")
        for key, stored, wanted in sorted(report["mismatched_keys"], key=lambda entry: entry[0]):
            if not key.startswith(may_lack):
                shapes = f"{tuple(stored)}, its configuration says {tuple(wanted)}"
                raise InputError(f"{self.name}: {key} has shape {shapes}")
        of_body = {name for name, _ in model.base_model.named_children()}
        for key in unexpected:
            if key.removeprefix(prefix).split(".")[0] in of_body and not UNUSED.search(key):
                raise InputError(
                    f"{self.name} holds {key}, which the model that its config.json describes does"
                    " not use: vectors would be of another model"
                )

    def require_floats(self):
        """InputError: weights of a folder that are whole numbers, quantised with nothing said of how."""
        for file in sorted(Path(self.name).glob("*.safetensors")):
            with safe_open(file, framework="np") as opened:
                names = list(opened.keys())
                kinds = [opened.get_slice(name).get_dtype() for name in names]
            for name, kind in zip(names, kinds):
                if name.endswith(".weight") and kind in INTEGERS:
                    raise InputError(
                        f"{self.name}: {name} is of type {kind}: quantised weights whose scales are"
                        " not known; save them as bfloat16 or float32"
                    )

    def require_head(self, model, report, head):
        """InputError unless model.score is the checkpoint's whole head: linear, one output."""
        mismatched = [key for key, *_ in report["mismatched_keys"]]
        stored = "score.weight" not in report["missing_keys"]
        layers = {head} if stored else set()  # beside the body
        for key in report["unexpected_keys"]:
            if not UNUSED.search(key):
                layer = key.rpartition(".")[0]
                # `head` was loaded under the name of score
                layers.add(layer if head.startswith("score") else re.sub(r"^score\b", head, layer))
        if len(layers) > 1:
            named = ", ".join(sorted(layers)[:5]) + (" .." if len(layers) > 5 else "")
            raise InputError(
                f"{self.name} has a head of several layers ({named}):"
                " its reward is no product of the embedding with one vector, so it cannot be used"
            )
        score = getattr(model, "score", None)
        given = stored and "score.weight" not in mismatched
        if not (given and isinstance(score, torch.nn.Linear) and len(score.weight) == 1):
            hint = f", perhaps {min(layers - {head})}" if layers - {head} else ""
            raise InputError(
                f"{self.name} has no head {head} with one output, so it is no reward model"
                f"; --head names another{hint}"
            )
        if not (score.weight.isfinite().all() and score.weight.any()):
            raise InputError(f"{self.name}: the head {head} holds NaN or infinity, or zeros alone")


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
