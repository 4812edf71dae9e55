"""What the files of reward models and of policies show before one is loaded: whether they can rate. No torch."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from raydpo.errors import UserError
from raydpo.model.directory import model_config, model_directory
from raydpo.model.model_files import check_model_files
from raydpo.model.reward_card import CARD, read_card

HEAD = "score.weight"


def check_reward_model(name: str, path: str, tokenizer: str) -> None:
    """Raise UserError for a directory that is no sequence classifier with one label and a head `score`.

    name: of the reward, for messages. tokenizer: the model whose tokens it would rate; it must have the same.
    """
    config = model_config(path)
    labels = len(config.get("id2label") or range(2))  # transformers writes none for its default of two
    tensors = _tensors(path)
    if HEAD not in tensors:
        raise UserError(
            f"reward {name!r}: {path} has no {HEAD}, so it is no sequence classifier with a head `score`; give the "
            "export of `raydpo reward`, or a model of transformers' AutoModelForSequenceClassification."
        )
    if labels != 1:
        raise UserError(
            f"reward {name!r}: {path} has num_labels={labels}, and a reward is one number; give a model that was "
            "trained with num_labels=1."
        )
    check_same_vocabulary(name, path, tokenizer)


def check_same_vocabulary(name: str, path: str, tokenizer: str) -> None:
    """Raise UserError where a model's token ids mean other tokens than those of the model named `tokenizer`."""
    from raydpo.model.tokenizer import load_tokenizer, vocabulary_digest

    carded = (Path(path) / CARD).exists()
    own = read_card(path).tokenizer if carded else vocabulary_digest(load_tokenizer(path))
    if own != vocabulary_digest(load_tokenizer(tokenizer)):
        raise UserError(
            f"reward {name!r}: {path} has another tokenizer than {tokenizer}, whose token ids it would have to read; "
            "give a model of the same tokenizer, or train one on this run's rows with `raydpo reward`."
        )


def check_policies(name: str, paths: list[str], tokenizer: str) -> None:
    """Raise UserError for a policy or reference that cannot be loaded, or reads other tokens than `tokenizer`."""
    for path in paths:
        check_model_files(path)
        check_same_vocabulary(name, path, tokenizer)


def _tensors(path: str) -> set[str]:
    """Names of the weights of a model, by the headers of its safetensors files."""
    names: set[str] = set()
    for file in sorted(model_directory(path).glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as tensors:
                names |= set(tensors.keys())
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} cannot be read ({error}); copy or export the model again, whole.") from error
    return names
