"""Whether the weights that a run starts from were made for the tokens that it reads."""

from __future__ import annotations

from pathlib import Path

from curation.errors import RecipeError
from training.order import Order


def refuse_other_tokenizer(start: Path | str | None, order: Order) -> None:
    """Raise RecipeError when the model folder to start from has another tokenizer than the sources.

    Only what is known is compared: a checkpoint of training.loop has no tokenizer, and chats name none.
    """
    wanted = {str(getattr(source, "tokenizer", "")) for source in order.sources.values()} - {""}
    if start is None or not wanted or not (Path(start) / "tokenizer.json").is_file():
        return
    from training.text_encoding import hash_tokenizer
    from training.tokenizer import load_tokenizer  # here, because it imports transformers

    if hash_tokenizer(load_tokenizer(start)) not in wanted:
        raise RecipeError(
            "The model to start from has another tokenizer than the one that the sources were tokenized with",
            where=str(start),
            remedy="Tokenize the sources with the tokenizer in that folder, or start from another model",
        )
