"""A small byte-level BPE tokenizer for the raters, as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from curation.atomic import replacing_folder

SPECIALS = ("<|bos|>", "<|eos|>", "<|pad|>")


def train_rater_tokenizer(texts: Iterable[str], folder: Path | str, *, vocabulary: int = 4096) -> Path:
    """Train on `texts` and save to `folder`; equal texts give equal files.

    Digits stand alone, so that "1" and "0" are tokens, and every byte is a token, so that nothing is unknown.
    Sequences begin with `<|bos|>`, whose state a classifier's head reads.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id("<|bos|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", bos)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|pad|>",
        model_input_names=["input_ids", "attention_mask"],
    )
    with replacing_folder(folder) as temporary:
        fast.save_pretrained(temporary)
    return Path(folder)
