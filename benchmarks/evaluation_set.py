"""An evaluation set of a million tokens, beside lm-evaluation-harness: every task of a base model, and probe texts.

    python -m benchmarks.evaluation_set --out FILE [--data FOLDER] [--seconds 120]      again until it says done
    python -m benchmarks.evaluation_set --out FILE [--data FOLDER] --write

What is measured is written to FILE after each unit (a task, or an eighth of the texts), so that a long measurement
can be done in short ones; within a unit all contestants take turns on the same requests and must agree.

The tasks are those that MobileLLM-R1 reports for base models and that a likelihood can score, each with its official
number of questions, choices and examples, all cut to the same share so that they sum to the tokens asked for. The sets
themselves are not ours to ship: with --data, a task whose TASK.jsonl is in FOLDER (and TASK.shots.jsonl, where it shows
examples) is asked with its real rows, through the shipped task file. The others are pieces of a real corpus with the
lengths below.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import CORPORA, machine, paired, publish, table
from benchmarks.probes import BATCH_TOKENS, DOCUMENT_CONTEXT, WORDS, Shape, contestants
from benchmarks.training_tokens import read_texts
from curation.atomic import read_json, write_json
from curation.documents import Document
from curation.progress import set_progress_mode
from probes.likelihood import tokenize_documents
from probes.task_scoring import Loaded
from probes.tasks import load_task, read_items
from training.huggingface import save_huggingface
from training.model import Decoder, ModelConfig
from training.model_config import MOBILELLM_R1_140M
from training.tokenizer import load_tokenizer, train_tokenizer

CONTEXT, TEXT_UNITS = 2048, 8
PAPER_WORDS, PAPER_TOKENS, PAPER_UNITS = MOBILELLM_R1_140M.vocab_size, 2_500, 2  # tokens of a unit
OURS, BARE, PLAIN, BATCHED = "probes", "bare forward pass", "lm-eval as it comes", "lm-eval, batched"
PAPER = "texts, MobileLLM-R1-140M"
NARROW, PLAIN_NARROW = "probes, products in bfloat16", "lm-eval, all in bfloat16"


@dataclass(frozen=True)
class Kind:
    """A task: `questions` officially, tokens of a question and of an answer (means, from memory of the sets).

    task    : the shipped task file that asks it
    choices : answers to each question, of one token where `letters`; 0 scores the reference answer
    shots   : solved questions before each, the same for `group` questions (a subject), or for all
    """

    name: str
    task: str
    questions: int
    question: int
    answer: int
    choices: int = 0
    shots: int = 0
    group: int = 0
    letters: bool = False

    @property
    def tokens(self) -> int:
        """Of all questions, each pair fed alone."""
        return self.questions * max(self.choices, 1) * (self.shots + 1) * (self.question + self.answer)


KINDS = (
    Kind("ARC-Easy", "arc_easy", 2376, 28, 5, choices=4),
    Kind("ARC-Challenge", "arc_challenge", 1172, 33, 7, choices=4),
    Kind("BoolQ", "boolq", 3270, 160, 1, choices=2, letters=True),
    Kind("PIQA", "piqa", 1838, 14, 24, choices=2),
    Kind("SIQA", "siqa", 1954, 28, 6, choices=3),
    Kind("HellaSwag", "hellaswag", 10042, 60, 28, choices=4),
    Kind("OpenBookQA", "openbookqa", 500, 14, 4, choices=4),
    Kind("WinoGrande", "winogrande", 2 * 1267, 12, 12),  # two contexts for one continuation
    Kind("MMLU, letters, 5 examples", "mmlu", 14042, 110, 1, choices=4, shots=5, group=246, letters=True),
    Kind("GSM8K, gold answers, 8 examples", "gsm8k_gold_bpb", 1319, 60, 130, shots=8),
    Kind("MATH-500, gold answers, 4 examples", "math500_gold_bpb", 500, 75, 200, shots=4),
    Kind("MBPP, gold answers, 3 examples", "mbpp_gold_bpb", 500, 100, 65, shots=3),
    Kind("HumanEval, gold answers", "humaneval_gold_bpb", 164, 140, 65),
)


Pair = tuple[str, str]


def real_questions(kind: Kind, data: Path) -> list[tuple[str, list[Pair]]]:
    """The pairs of every question of the task's real rows, each with its subject where the examples depend on it."""
    task, shots = load_task(kind.task), data / f"{kind.task}.shots.jsonl"
    few = replace(task.fewshot, data=str(shots)) if task.fewshot.count else task.fewshot
    task = replace(task, data=str(data / f"{kind.task}.jsonl"), duplicates="keep", fewshot=few)
    items = read_items(task, form=("letters" if kind.group else "cloze") if kind.choices else None)
    return [
        (
            item.meta["row"]["subject"] if kind.group else "",
            list(zip(item.contexts, item.choices, strict=True))
            if item.contexts
            else [(item.prompt, choice) for choice in item.choices or (item.gold,)],
        )
        for item in items
    ]


def drawn(
    kind: Kind, questions: list[tuple[str, list[Pair]]], tokens: float, tokenizer: Any, seed: int
) -> list[Pair]:
    """Pairs of questions drawn until they have so many tokens. Of MMLU whole subjects one after the other, so that as
    many questions follow the same examples as in the whole set."""
    rng, pairs, have = random.Random(seed), list[Pair](), 0
    subjects = sorted({subject for subject, _ in questions})
    rng.shuffle(subjects)
    chosen = rng.sample(questions, len(questions))
    if kind.group:
        chosen = [question for name in subjects for question in questions if question[0] == name]
    for _, asked in chosen:
        if have >= tokens:
            break
        pairs += asked
        have += sum(len(tokenizer(context + text)["input_ids"]) for context, text in asked)
    return pairs


def made_pairs(
    kind: Kind, count: int, piece: Callable[[int], str], answer: Callable[[Kind], str]
) -> list[Pair]:
    """Pairs of `kind`'s lengths from pieces of a corpus, for `count` questions."""
    pairs = []
    for first in range(0, count, kind.group or count):
        shown = "".join(
            f"Question: {piece(kind.question)}\nAnswer:{answer(kind)}\n\n" for _ in range(kind.shots)
        )
        for _ in range(min(kind.group or count, count - first)):
            context = f"{shown}Question: {piece(kind.question)}\nAnswer:"
            answers = [f" {letter}" for letter in "ABCD"[: kind.choices]] if kind.letters else []
            for text in answers or [answer(kind) for _ in range(max(kind.choices, 1))]:
                pairs.append((context, text))
    return pairs


def units(
    tokens: int, tokenizer: Any, ids: list[int], data: Path | None = None, seed: int = 0
) -> Iterator[Shape]:
    """The tasks at one share, the texts in parts, and smaller parts for a model of the paper's shape."""
    rng = random.Random(seed)
    real = {
        kind.name: real_questions(kind, data)
        for kind in KINDS
        if data is not None and (data / f"{kind.task}.jsonl").is_file()
    }

    def piece(mean: int) -> str:
        size = rng.randint(max(mean // 2, 1), mean + mean // 2)
        at = rng.randrange(len(ids) - size)
        return tokenizer.decode(ids[at : at + size]).strip() or "so"

    def answer(kind: Kind) -> str:
        return " A" if kind.letters else f" {piece(kind.answer)}"

    def tokens_of(kind: Kind) -> float:
        if kind.name not in real:
            return kind.tokens
        some = random.Random(seed).sample(real[kind.name], min(50, len(real[kind.name])))
        lengths = [
            len(tokenizer(context + text)["input_ids"]) for _, pairs in some for context, text in pairs
        ]
        return kind.questions * max(kind.choices, 1) * sum(lengths) / len(lengths)

    share = tokens / sum(map(tokens_of, KINDS))
    for kind in KINDS:
        if kind.name in real:
            pairs = drawn(kind, real[kind.name], share * tokens_of(kind), tokenizer, seed)
        else:
            pairs = made_pairs(kind, max(round(kind.questions * share), 1), piece, answer)
        longest = (kind.shots + 1) * (kind.question + kind.answer)
        yield Shape(
            kind.name, WORDS, pairs=tuple(pairs), rows=max(BATCH_TOKENS // longest, 1), context=CONTEXT
        )

    def documents(count: int) -> tuple[Document, ...]:
        return tuple(Document(str(n), piece(1000), "text") for n in range(max(count // 1000, 1)))

    for part in range(PAPER_UNITS):
        few = documents(min(PAPER_TOKENS, tokens))
        yield Shape(f"{PAPER}, part {part + 1}", PAPER_WORDS, few, rows=2)
    for part in range(TEXT_UNITS):
        yield Shape(f"texts, part {part + 1}", WORDS, documents(tokens // TEXT_UNITS), rows=8)


def measure(shape: Shape, folder: Path) -> dict[str, Any]:
    """CPU seconds of each contestant, in turn, after a small round that is not counted; tokens and nats."""
    narrow = shape.vocabulary == PAPER_WORDS
    small = Shape("", shape.vocabulary, shape.documents[:1], shape.pairs[:8], shape.rows, shape.context)
    for one in contestants(small, folder, narrow=narrow)[0].values():
        one()
    work, nats = contestants(shape, folder, narrow=narrow)
    times = paired(work, rounds=1, warmup=0)
    loaded = Loaded.of(folder, device="cpu")
    asked = (
        loaded.pairs(shape.pairs) if shape.pairs else tokenize_documents(shape.documents, loaded.tokenizer)
    )
    return {
        "tokens": sum(len(one.ids) - 1 for one in asked),
        "scored": sum(pair.tokens for pair in loaded.pairs(shape.pairs)) if shape.pairs else None,
        "seconds": {name: time.cpu[0] for name, time in times.items()},
        "nats": nats,
        "machine": machine("torch", "transformers", "lm_eval"),
    }


def model_folder(folder: Path, vocabulary: int, dim: int, tokenizer: Any) -> Path:
    """A decoder of 4 layers, or of the paper's shape for its vocabulary, with random weights, saved once."""
    found = folder / f"model-{vocabulary}"
    if not found.exists():
        config = ModelConfig(
            vocabulary, dim, 4, heads=4, kv_heads=2, head_dim=dim // 4, ffn_dim=3 * dim, max_positions=CONTEXT
        )
        if vocabulary == PAPER_WORDS:
            config = replace(MOBILELLM_R1_140M, max_positions=CONTEXT)
        save_huggingface(Decoder(config).init_weights(0), found, tokenizer)
    return found


def report(done: dict[str, Any], dim: int) -> str:
    """The section: a row a task, their sum, the texts, and both."""
    tasks = [unit for name, unit in done.items() if name != "settings" and not name.startswith("texts")]
    texts = [unit for name, unit in done.items() if name.startswith("texts, part")]
    paper = [unit for name, unit in done.items() if name.startswith(PAPER)]
    real = done["settings"]["real"]
    rows = [
        _row(kind.name + ("" if kind.task in real else " (lengths from memory)"), [done[kind.name]])
        for kind in KINDS
        if kind.name in done
    ]
    both = [_row(name, units) for name, units in (
        ("**all tasks**", tasks), ("**texts**", texts), ("**both**", tasks + texts if len(texts) == TEXT_UNITS else []),
    ) if units]  # fmt: skip
    headings = ("", "tokens", "tokens/s", "times as fast as lm-eval as it comes", "as lm-eval batched",
                "time over a bare forward pass", "largest difference of nats")  # fmt: skip
    return (
        "## A million tokens of evaluation beside lm-evaluation-harness\n\n"
        f"A decoder of 4 layers x {dim} with random weights and {WORDS:,} entries, one thread, CPU time with "
        "tokenisation; one round of each unit, contestants in turn, a warm-up before (`python -m "
        "benchmarks.evaluation_set`). Tasks: those that MobileLLM-R1 reports for base models, as far as a likelihood "
        "scores them, all cut to the same share (MMLU by subject); "
        + _where_from(len(real))
        + "Texts: pieces of about 1,000 tokens in windows of "
        f"{DOCUMENT_CONTEXT}. Tokens count each pair as if fed alone. The goal is 3 times the harness' speed and 1.15 "
        "of a bare forward pass. Of HumanEval the harness scores another token where prompt and answer share one "
        "(docs/evaluation.md).\n\n"
        + table(headings, [*rows, *both])
        + (
            ""
            if len(texts) == TEXT_UNITS
            else f"\n{len(texts)} of {TEXT_UNITS} parts of the texts were measured.\n"
        )
        + (f"\n{_with_the_paper_s_shape(paper)}\n" if paper else "")
        + f"\n{done['settings']['machine']}\n"
    )


def _where_from(real: int) -> str:
    if real == len(KINDS):
        return "all with real rows, through the shipped task files. "
    others = "lengths of questions and answers are approximate, and the text is of another corpus. "
    return (
        f"{real} with real rows, through the shipped task files; of the others {others}" if real else others
    )


def _with_the_paper_s_shape(units: list[dict[str, Any]]) -> str:
    plain, batched, bare = _ratios(units)
    spent = {name: sum(u["seconds"][name] for u in units) for name in units[0]["seconds"]}
    tokens = sum(u["tokens"] for u in units)

    def off(name: str) -> str:
        return f"{abs(sum(u['nats'][name] - u['nats'][OURS] for u in units)) / tokens:.1e}"

    return (
        f"Texts in the shape of MobileLLM-R1-140M ({PAPER_WORDS:,} entries, width 576, random weights; {tokens:,} "
        f"tokens). In float32 probes are {plain:.2f} times as fast as lm-eval as it comes, {batched:.2f} times as "
        f"batched, at {bare:.2f} of a bare pass. lm-eval as it comes follows the dtype of the folder. Our products in "
        f"bfloat16 (sums, norms and softmax in float32) are {spent[OURS] / spent[NARROW]:.2f} times as fast as ours in "
        f"float32, {spent[PLAIN] / spent[NARROW]:.2f} times lm-eval on a folder in float32, and "
        f"{spent[PLAIN_NARROW] / spent[NARROW]:.2f} times lm-eval on one in bfloat16 (as the released models are). "
        f"The mean of nats per token then differs from float32 by {off(NARROW)}, that of lm-eval in bfloat16 by "
        f"{off(PLAIN_NARROW)}. ({units[0]['machine'].partition(', Python')[0]})"
    )


def _ratios(units: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Sums of the units: harness over ours, batched harness over ours, ours over bare (0 where there is none)."""
    total = {name: sum(u["seconds"].get(name, 0.0) for u in units) for name in (OURS, BARE, PLAIN, BATCHED)}
    bare = total[OURS] / total[BARE] if all(BARE in u["seconds"] for u in units) else 0.0
    return total[PLAIN] / total[OURS], total[BATCHED] / total[OURS], bare


def _row(name: str, units: list[dict[str, Any]]) -> list[str]:
    plain, batched, bare = _ratios(units)
    tokens, seconds = sum(u["tokens"] for u in units), sum(u["seconds"][OURS] for u in units)
    off = max(abs(u["nats"][n] / u["nats"][OURS] - 1) for u in units for n in (PLAIN, BATCHED))
    return [name, f"{tokens:,}", f"{tokens / seconds:,.0f}", f"{plain:.2f}", f"{batched:.2f}",
            f"{bare:.2f}" if bare else "", f"{off:.0e}"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder with TASK.jsonl and TASK.shots.jsonl of real rows")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=120, help="begin no further unit after so long")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--write", action="store_true", help="put what was measured into docs/benchmarks.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    set_progress_mode("quiet")
    logging.disable(logging.WARNING)
    began = time.monotonic()
    real = [k.task for k in KINDS if arguments.data and (arguments.data / f"{k.task}.jsonl").is_file()]
    asked = {"tokens": arguments.tokens, "dim": arguments.dim, "real": real}
    done = read_json(arguments.out) if arguments.out.exists() else {"settings": asked}
    if {name: done["settings"].get(name) for name in asked} != asked:
        parser.error(
            f"{arguments.out} holds a measurement with other settings: {json.dumps(done['settings'])}"
        )
    corpus = sorted(CORPORA.glob("wiki.jsonl.gz"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = [text for _, text in read_texts(corpus, 2.0)]
        train_tokenizer(texts, WORDS, folder / "tokenizer")
        tokenizer = load_tokenizer(folder / "tokenizer")
        ids = tokenizer("\n".join(texts))["input_ids"]
        left = [
            shape
            for shape in units(arguments.tokens, tokenizer, ids, arguments.data)
            if shape.name not in done
        ]
        for shape in left:
            if time.monotonic() - began > arguments.seconds:
                print("Not done: run the same command again")
                return
            model = model_folder(folder, shape.vocabulary, arguments.dim, tokenizer)
            done[shape.name] = measure(shape, model)
            done["settings"]["machine"] = done[shape.name]["machine"]
            write_json(arguments.out, done)
            print(
                shape.name, {name: round(s, 2) for name, s in done[shape.name]["seconds"].items()}, flush=True
            )
    publish("evaluation set", report(done, arguments.dim), write=arguments.write)


if __name__ == "__main__":
    main()
