"""A generated task for studies of post-training: chains of sums modulo seven, with traces of varying length.

A problem such as `6 + 5 - 3 = ?` is worked from the left, modulo 7. A trace says each step, tersely or with words
around it, and may say the whole chain once more as a check. All randomness is keyed, every answer is exact and is
checked by the reward `exact`, and a tokenizer of one token per word makes lengths easy to read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from curation.atomic import replacing
from training.model import ModelConfig

MODULUS = 7
SPECIAL = ("<bos>", "<eos>", "<pad>", "<user>", "<assistant>", "<think>", "</think>")
WORDS = (
    *SPECIAL,
    *"0123456789",
    *"+-=?;:.",
    "so",
    "is",
    "that",
    "check",
    "yes",
    "again",
    "now",
    "we",
    "have",
)
TEMPLATE = (
    "<bos>{% for m in messages %} <{{ m.role }}> "
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }} <eos>"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)


def problem(random: Random, steps: int) -> tuple[str, list[tuple[int, str, int, int]]]:
    """A question of `steps` operations and its steps (a, sign, b, a sign b modulo 7).

    >>> question, worked = problem(Random(0), 2)
    >>> question, worked
    ('6 - 6 - 0 = ?', [(6, '-', 6, 0), (0, '-', 0, 0)])
    """
    value = random.randrange(MODULUS)
    question, worked = [str(value)], []
    for _ in range(steps):
        sign, other = random.choice("+-"), random.randrange(MODULUS)
        result = (value + other if sign == "+" else value - other) % MODULUS
        worked.append((value, sign, other, result))
        question += [sign, str(other)]
        value = result
    return " ".join([*question, "=", "?"]), worked


def trace(random: Random, worked: list[tuple[int, str, int, int]], wordy: float) -> str:
    """The steps in words; `wordy` is the chance of each step to be said at length, and of a check of all."""
    said = []
    for a, sign, b, result in worked:
        step = f"{a} {sign} {b} = {result} ;"
        said.append(f"so we have {a} {sign} {b} . that is {step}" if random.random() < wordy else step)
    if random.random() < wordy:
        said.append("check : " + " ".join(f"{a} {sign} {b} = {result} ;" for a, sign, b, result in worked))
    return " ".join(said)


def chat(random: Random, steps: int, wordy: float | None) -> dict[str, Any]:
    """A row with messages, prompt and answer; wordy None is the answer without any trace."""
    question, worked = problem(random, steps)
    answer = str(worked[-1][-1])
    thought = "" if wordy is None else trace(random, worked, wordy) + " "
    reply = f"<think> {thought}</think> {answer}"
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return {"messages": messages, "prompt": question, "answer": answer}


def truncated(row: dict[str, Any], tokens: int) -> dict[str, Any]:
    """The row with its trace cut to `tokens` tokens before the closing string; the answer stays."""
    said = row["messages"][1]["content"]
    thought, _, rest = said.partition(" </think>")
    cut = " ".join(thought.split()[:tokens])
    return row | {"messages": [row["messages"][0], {"role": "assistant", "content": f"{cut} </think>{rest}"}]}


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Rows as JSON lines."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def chats(
    seed: str, count: int, steps: tuple[int, int], wordy: float | None, without: Iterable[str] = ()
) -> Iterator[dict[str, Any]]:
    """`count` rows with different questions, none of them in `without`."""
    seen, index = set(without), 0
    while count:
        random = Random(f"{seed}:{index}")
        index += 1
        row = chat(random, random.randint(*steps), wordy)
        if row["prompt"] not in seen:
            seen.add(row["prompt"])
            count -= 1
            yield row


def tokenizer() -> Any:
    """One token for each word between spaces."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

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


def small_model(dim: int = 64, layers: int = 3) -> ModelConfig:
    """A decoder of about 0.15 M parameters for this vocabulary."""
    return ModelConfig(
        len(WORDS),
        dim,
        layers,
        heads=4,
        kv_heads=2,
        head_dim=dim // 4,
        ffn_dim=3 * dim,
        rope_theta=10_000.0,
        max_positions=256,
    )
