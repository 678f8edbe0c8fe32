"""A tokenizer of twenty words and a decoder of 32 dimensions, for the tests of SFT and GRPO."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from training.huggingface import save_huggingface
from training.model import Decoder, ModelConfig

SPECIAL = ("<bos>", "<eos>", "<pad>", "<user>", "<assistant>", "<think>", "</think>")
WORDS = (*SPECIAL, *["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "+", "=", "is"])
TEMPLATE = (
    "<bos>{% for m in messages %} <{{ m.role }}> "
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }} <eos>"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word between spaces."""
    model = Tokenizer(WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<pad>"))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_config() -> ModelConfig:
    return ModelConfig(len(WORDS), 32, 2, heads=2, kv_heads=1, head_dim=16, ffn_dim=48, max_positions=64)


def tiny_folder(folder: Path, seed: int = 0) -> Path:
    """A Hugging Face folder of an untrained model."""
    save_huggingface(Decoder(tiny_config()).init_weights(seed), folder, tiny_tokenizer())
    return folder


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def killed(work: Callable[[], object]) -> int | None:
    """Run `work`, which kills itself, in a forked process; its exit code, -9 for SIGKILL."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode
