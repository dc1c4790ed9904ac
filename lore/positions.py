"""How many positions a model has, and where its pass depends on the longest one in it."""

import math

POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")  # names of learned positions


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
