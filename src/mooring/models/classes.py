"""Which class of transformers loads a model folder, and the sizes in its configuration. No code of the folder is run.

A model for several modalities, such as Gemma 3 or Qwen 3.5, has the configuration of its language model nested in its
own. It is loaded whole, by the class of `AutoModelForImageTextToText` if that of `AutoModelForCausalLM` takes the
nested configuration only, and is then used with text alone.
"""

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mooring.errors import ModelError
from mooring.models.adapter_config import ADAPTER_CONFIG
from mooring.models.checkpoint import open_checkpoint, read_config, read_json
from mooring.models.peft_patterns import refuse_endless_patterns

NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
"""Fields of a configuration that hold the configuration of a model's language model."""

_MAPPINGS = ("MODEL_FOR_CAUSAL_LM_MAPPING", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", "MODEL_FOR_MULTIMODAL_LM_MAPPING")
"""Tables of transformers from a configuration's type to the classes that generate text, in order of preference."""
_CHAT_TEMPLATE = "chat_template.json"
"""Where processors of transformers 4 stored their chat template, which tokenizers do not read."""


@contextlib.contextmanager
def loading(path: Path, library: str, what: str = "it") -> Iterator[None]:
    """Turn any exception of a library that loads a model, or a part of it, into a ModelError of one line."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # broken folders cause exceptions of all kinds
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        message = f"{path}: {library} cannot load {what} ({reason})"
        raise ModelError(message, why_unloadable(path), code="model.unloadable") from error


def why_unloadable(folder: Path) -> str:
    """What to do about a model that a library cannot load, as far as its files show why.

    Raises:
        ModelError: The files themselves are at fault: some are missing, or corrupt.
    """
    import transformers

    if (folder / "config.json").is_file():
        open_checkpoint(folder, as_stored=True).close()
        made_with = str(read_config(folder).get("transformers_version") or "")
        ours = transformers.__version__
        if re.match(r"\d+\.\d+", made_with) and _version(made_with) > _version(ours):
            return f"it was saved with transformers {made_with}, and {ours} is installed: update it"
    return (
        "its weights are whole, so look at the reason in brackets: often config.json or a tokenizer file is another's"
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def load_config(folder: Path) -> Any:
    """The configuration of a model folder, as transformers reads it.

    Raises:
        ModelError: There is no configuration, transformers does not know its type, or it needs code of its own.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    folder = Path(folder)
    fields = read_config(folder)
    kind = fields.get("model_type")
    if not isinstance(kind, str):
        what = f"{folder}/config.json: has no `model_type`, so that its class is not known"
        raise ModelError(what, "fetch the model again", code="model.no_type")
    if kind not in CONFIG_MAPPING:
        raise _unknown_type(folder, kind, fields)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a field of the wrong type raises exceptions of all kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        what = f"{folder}/config.json: transformers cannot read it ({reason})"
        raise ModelError(what, "fetch the file again", code="model.bad_config") from None


def model_class(config: Any) -> tuple[type, Any]:
    """The class that generates text with a model, and the configuration that it takes: `config`, or a part of it.

    Of the classes that transformers has for a type of configuration, it is the one that `architectures` names, else the
    first that takes the whole configuration, else the first.

    Args:
        config: What `load_config` returns.

    Raises:
        ModelError: transformers has no class that generates text with such a model.
    """
    known = list(dict.fromkeys(_classes(config)))
    if not known:
        import transformers

        what = f"transformers {transformers.__version__} has no class that generates text with a {config.model_type!a}"
        raise ModelError(what, "name a language model, or upgrade transformers", code="model.no_class")
    named = [each for each in known if each.__name__ in (getattr(config, "architectures", None) or ())]
    whole = [each for each in known if getattr(each, "config_class", None) is type(config)]
    chosen: type = (named or whole or known)[0]
    nested = config.sub_configs.get("text_config")
    if nested is None or getattr(chosen, "config_class", None) is not nested:
        return chosen, config
    part = text_config(config)
    if (quantization := getattr(config, "quantization_config", None)) is not None:
        part.quantization_config = quantization
    return chosen, part


def saved_class(config: Any) -> tuple[Any, Any]:
    """The class whose parameters a checkpoint holds, and the configuration that it takes.

    It is the class that `architectures` names, whatever that is for, such as a classifier; else that of `model_class`.

    Args:
        config: What `load_config` returns.

    Raises:
        ModelError: Neither is known to transformers.
    """
    import transformers

    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, name, None) if name.isidentifier() else None
        known: Any = found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None
        if known is not None and isinstance(config, known.config_class or ()):
            return known, config
    return model_class(config)


def load_model(folder: Path, *, dtype: Any = "auto", **options: Any) -> Any:
    """Load the model in a folder with its weights.

    Args:
        folder: A full checkpoint.
        dtype: Type of the weights in memory, as torch names it; `auto` is the checkpoint's own.
        options: Further options of `from_pretrained`, such as `device_map`.

    Raises:
        ModelError: Its class is not known, weights of the model are missing in the folder, or it cannot be loaded.
    """
    config = load_config(folder)
    kind, part = model_class(config)
    with loading(folder, "transformers"):
        model, info = kind.from_pretrained(  # type: ignore[attr-defined]
            folder,
            config=part,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            **{**attention_options(part), **options},
        )
    if missing := sorted(info["missing_keys"]):
        raise missing_tensors(str(folder), config, kind, missing)
    return model


def attention_options(config: Any) -> dict[str, Any]:
    """Options of `from_pretrained` by which attention is computed as a configuration says.

    PyTorch's own has no cap for the logits, as Gemma 2 needs; some versions of transformers use it all the same (5.19).
    """
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    return {"attn_implementation": "eager"} if capped else {}


def empty_model(folder: Path) -> Any:
    """The model that `load_model` loads, on torch's meta device: all modules and parameters, and no values.

    Raises:
        ModelError: Its class is not known, or its configuration cannot be built.
    """
    import torch

    kind, part = model_class(load_config(folder))
    with torch.device("meta"), loading(folder, "transformers"):
        return kind._from_config(part)  # type: ignore[attr-defined]


def missing_tensors(name: str, config: Any, kind: type, missing: list[str]) -> ModelError:
    """The error for a model that lacks weights, with the reason as far as the configuration shows it."""
    what = f"{name}: {len(missing)} tensors are missing, such as {missing[0]}"
    made_by = [str(each) for each in getattr(config, "architectures", None) or () if str(each) != kind.__name__]
    if made_by:
        what = f"{name}: is a {made_by[0]!a}, which lacks {len(missing)} tensors of a {kind.__name__} ({missing[0]}, …)"
        return ModelError(what, "name a model that generates text", code="model.other_class")
    hint = "its files do not hold them: fetch or save the model again, whole"
    return ModelError(what, hint, code="model.missing_tensor")


def attach_adapter(model: Any, folder: Path) -> Any:
    """Attach an adapter to its base by PEFT, which by itself ignores what does not fit.

    Args:
        model: The base, loaded.
        folder: The adapter.

    Raises:
        ModelError: Some of its tensors have no place in the model, or some of PEFT's have no value in it
            (`model.adapter_names`); or it is broken.
    """
    from peft import PeftModel

    refuse_endless_patterns(folder, read_json(folder / ADAPTER_CONFIG), [name for name, _ in model.named_modules()])
    with loading(folder, "PEFT"):
        wrapped = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
        loaded = wrapped.load_adapter(str(folder), wrapped.active_adapter, is_trainable=False)  # says what does not fit
    if unplaced := sorted({*loaded.unexpected_keys, *loaded.missing_keys}):
        what = f"{folder}: {len(unplaced)} tensors do not fit {type(model).__name__}, such as {unplaced[0]}"
        hint = "merge it (`mooring merge BASE ADAPTER --lam 1`) and name the result"
        raise ModelError(what, hint, code="model.adapter_names")
    return wrapped


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, with the processor's chat template if it has none of its own.

    Raises:
        ModelError: There is no tokenizer, it is broken or needs code of its own, or the processor's file is corrupt.
    """
    from transformers import AutoTokenizer

    with loading(folder, "transformers", "its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer("a")  # a field of the wrong type shows only now
    processor = Path(folder) / _CHAT_TEMPLATE
    if not tokenizer.chat_template and processor.is_file():
        template = read_json(processor).get("chat_template")
        tokenizer.chat_template = template if isinstance(template, str) else None
    return tokenizer


def text_config(config: Any) -> Any:
    """The configuration of the language model in a configuration of transformers: a part of it, or all of it."""
    return config.get_text_config()


def text_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The same in the fields of a `config.json`."""
    nested = next((config[name] for name in NESTED if isinstance(config.get(name), dict)), None)
    return config if nested is None else text_fields(nested)


def places_of(config: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The mappings in the fields of a `config.json` where a field of the language model has to be set.

    Some configurations repeat a field of their language model (Qwen2.5-VL's `vocab_size`), and both must agree.
    """
    text = text_fields(config)
    places = [place for place in (config, text) if key in place]
    return places or [text if key == "vocab_size" else config]


def vocab_size(config: Any) -> int:
    """The number of tokens that a model tells apart: the width of its logits."""
    return int(text_config(config).vocab_size)


def context_length(config: Any) -> int | None:
    """Maximum number of tokens of a prompt and its response together; None if the configuration states none."""
    length = getattr(text_config(config), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def _classes(config: Any) -> Iterator[type]:
    """The classes of transformers that generate text with a model, those of language models first."""
    for mapping in _mappings():
        if type(config) in mapping:
            found = mapping[type(config)]
            yield from found if isinstance(found, tuple | list) else (found,)


@functools.cache
def _mappings() -> list[Any]:
    from transformers.models.auto import modeling_auto

    return [getattr(modeling_auto, name) for name in _MAPPINGS if hasattr(modeling_auto, name)]


def _unknown_type(folder: Path, kind: str, fields: Mapping[str, Any]) -> ModelError:
    import transformers

    what = f"{folder}: transformers {transformers.__version__} does not know models of type {kind!a}"
    if fields.get("auto_map"):
        hint = "its class is code in the folder, which is never run: upgrade transformers, or use a server (openai)"
        return ModelError(what, hint, code="model.remote_code")
    return ModelError(what, "upgrade it: pip install -U transformers", code="model.unknown_type")
