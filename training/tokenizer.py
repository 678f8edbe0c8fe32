"""A byte-level BPE tokenizer, trained and saved as a Hugging Face folder with a chat template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from curation.atomic import read_json, replacing_folder, write_json
from curation.errors import DataError, RecipeError

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
ROLES = ("user", "assistant", "system")
CONTROL = (BOS, EOS, PAD, *(f"<|{role}|>" for role in ROLES))
# Thoughts are content: one token each, but kept when control tokens are left out of decoded text.
THINK, THINK_END = "<think>", "</think>"

# Words with the space or sign before them, single digits (so that a number is spelled the same wherever it
# stands), runs of punctuation with the line ends after them, and white space; after the pattern of GPT-4's.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# A turn runs from its role token to the next. Only the assistant's ends with <|eos|>: it must learn to stop.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{- '<|assistant|>' -}}
{%- generation -%}{{- message.content + eos_token -}}{%- endgeneration -%}
{%- elif message.role in ('user', 'system') -%}
{{- '<|' + message.role + '|>' + message.content -}}
{%- else -%}
{{- raise_exception('A message has the role ' + message.role + ', not system, user or assistant') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path | str) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE of at most `vocab_size` tokens (special ones included), save it and return it.

    Any text survives encoding and decoding unchanged. A small corpus may give fewer tokens than asked. The
    same texts give the same bytes on disk. Encoding adds <|bos|> unless told `add_special_tokens=False`.
    Raises RecipeError when `vocab_size` does not hold the 256 bytes and the special tokens.
    """
    specials = [*CONTROL, THINK, THINK_END]
    least = 256 + len(specials)
    if vocab_size < least:
        raise RecipeError(
            f"A vocabulary of {vocab_size} does not hold the 256 bytes and {least - 256} special tokens",
            where="tokenizer.vocab_size",
            remedy=f"Ask for at least {least}",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in specials],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer = _as_content(tokenizer, (THINK, THINK_END))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    save_tokenizer(fast, folder)
    return load_tokenizer(folder)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path | str) -> None:
    """Write `tokenizer` atomically as a folder that AutoTokenizer loads."""
    with replacing_folder(folder) as temporary:
        write_tokenizer(tokenizer, temporary)


def write_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the files of `tokenizer` into an existing folder, for example that of its model."""
    tokenizer.save_pretrained(folder)
    described = read_json(folder / "tokenizer_config.json")
    for how_it_was_loaded in ("is_local", "local_files_only"):
        described.pop(how_it_was_loaded, None)
    if described.get("tokenizer_class") == "TokenizersBackend":
        # The name that transformers 5 gives the class; versions 4 and 5 both know the older one.
        described["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(folder / "tokenizer_config.json", described)


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder, of ours or of any model's. Raises DataError when there is none."""
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        raise DataError(
            "There is no tokenizer in this folder",
            where=str(folder),
            remedy="Give the folder that holds tokenizer.json and tokenizer_config.json",
        )
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)  # type: ignore[return-value]


def _as_content(tokenizer: Tokenizer, tokens: Sequence[str]) -> Tokenizer:
    """The same tokenizer in which `tokens` are whole but not special. (The trainer makes all special.)"""
    described = json.loads(tokenizer.to_str())
    for added in described["added_tokens"]:
        added["special"] = added["content"] not in tokens
    return Tokenizer.from_str(json.dumps(described))
