"""The same network at other sizes, and networks from a configuration file: what can be predicted without being built.

A factory says how it grows by parameters `width` and `depth` with whole numbers as defaults. A model of transformers
carries its configuration, in which the quantities of a width (or a depth) are multiplied together; heads keep their
length and grow in number.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from tightrope.errors import InputError
from tightrope.scaling import Build
from tightrope.subject import Subject
from tightrope.tape.initialisers import remember

SIZES = {
    "width": frozenset({
        "hidden_size", "n_embd", "d_model", "dim", "intermediate_size", "n_inner", "d_ff", "ffn_dim", "encoder_ffn_dim",
        "decoder_ffn_dim", "hidden_dim", "num_attention_heads", "n_head", "num_heads", "n_heads", "num_key_value_heads",
        "encoder_attention_heads", "decoder_attention_heads", "word_embed_proj_dim", "moe_intermediate_size",
    }),
    "depth": frozenset({
        "num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers",
        "num_decoder_layers",
    }),
}  # fmt: skip
"""Names that configurations of transformers give to the quantities of a width and of a depth."""
PER_LAYER = ("layer_types", "attention_types")
"""Lists in a configuration with an entry for each layer."""


def variants(factory: Callable[..., Any], subject: Subject, inputs: Any) -> dict[str, Build]:
    """How to build a subject's model wider or deeper; empty where neither factory nor model says.

    Args:
        factory: what made the subject.
        subject: as it was made.
        inputs: of the model.
    """
    found: dict[str, Build] = {}
    for of, names in SIZES.items():
        default = _default(factory, of)
        config = getattr(subject.model, "config", None)
        if default is not None:
            found[of] = _by_argument(factory, of, default)
        elif config is not None and hasattr(config, "to_dict") and any(name in names for name in config.to_dict()):
            found[of] = _by_config(subject.model, names, inputs)
    return found


def _default(factory: Callable[..., Any], name: str) -> int | None:
    try:
        parameter = inspect.signature(factory).parameters.get(name)
    except (TypeError, ValueError):
        return None
    default = None if parameter is None else parameter.default
    return default if isinstance(default, int) and not isinstance(default, bool) else None


def _by_argument(factory: Callable[..., Any], name: str, default: int) -> Build:
    def build(factor: int) -> tuple[nn.Module, Any]:
        made = factory(**{name: default * factor})
        parts = (made.model, made.data) if isinstance(made, Subject) else made
        return parts[0], parts[1]

    return build


def _by_config(model: Any, names: frozenset[str], inputs: Any) -> Build:
    def build(factor: int) -> tuple[nn.Module, Any]:
        config = type(model.config).from_dict(grown(model.config.to_dict(), names, factor))
        with torch.device("meta"):
            return type(model)(config).train(model.training), inputs

    return build


def grown(config: Mapping[str, Any], names: frozenset[str], factor: int) -> dict[str, Any]:
    """A configuration with the named quantities multiplied, also those in its parts.

    Args:
        config: plain data.
        names: what to multiply.
        factor: by how much.
    """
    made: dict[str, Any] = {}
    deeper = names is SIZES["depth"]
    for name, value in config.items():
        if isinstance(value, dict) and name.endswith("config"):
            made[name] = grown(value, names, factor)
        elif (name in names and isinstance(value, int)) or (deeper and name in PER_LAYER and isinstance(value, list)):
            made[name] = value * factor
        else:
            made[name] = value
    return made


def from_config(name: str, *, samples: int = 4, length: int = 256) -> Subject:
    """A language model of transformers on the meta device, with random tokens.

    Args:
        name: a JSON file, a folder with a config.json, or a name that transformers resolves.
        samples, length: shape of the batch of tokens.

    Raises:
        InputError: transformers is not installed, or there is no such configuration.
    """
    asked = f"load {name}"
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        raise InputError(asked, "transformers is not installed", "pip install transformers") from error
    try:
        if os.path.isfile(name):
            with open(name, encoding="utf-8") as file:
                plain = json.load(file)
            config = library.AutoConfig.for_model(**plain)
        else:
            config = library.AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(asked, first, "Name a config.json of transformers with its model_type") from error
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    with remember(), torch.device("meta"):
        try:
            model = library.AutoModelForCausalLM.from_config(config)
        except ValueError:
            model = library.AutoModel.from_config(config)
    tokens = torch.randint(text.vocab_size, (samples, length), generator=torch.Generator().manual_seed(0))
    batch: dict[str, Any] = {"input_ids": tokens}
    if "labels" in inspect.signature(model.forward).parameters:
        batch["labels"] = tokens
    if "use_cache" in inspect.signature(model.forward).parameters:
        batch["use_cache"] = False
    return Subject(model, batch)


__all__ = ["SIZES", "from_config", "grown", "variants"]
