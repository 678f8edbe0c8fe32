"""Raters of one's own: a small educational classifier and a small Ask-LLM judge, trained from stated labels.

Both are ordinary Hugging Face folders and are loaded by exactly the code that loads the published ones: the
classifier is a BertForSequenceClassification with one output, as FineWeb-Edu's; the judge a LlamaForCausalLM
that reads the Ask-LLM prompts and has learnt one thing, to answer 1 or 0. `rater.json` in the folder says how
far they agree with labels on texts (whole origins) that they have not seen.

They are as good as their labels, no better: stand-ins where the published models cannot be had.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curation.agreement import classifier_agreement, judge_agreement
from curation.ask_llm import AskLLM, Judge
from curation.atomic import hash_folder, hash_value, read_json, replacing_folder, write_json
from curation.batches import head_tokens, one_thread, padded
from curation.documents import Document
from curation.educational import EducationalClassifier
from curation.errors import DataError
from curation.judge_prompt import Prompt
from curation.labels import LabelledExample
from curation.progress import progress


@dataclass(frozen=True)
class RaterSettings:
    """Size and training of a rater; the defaults train in half a minute of one core.

    max_tokens    : of a document; the head that the rater will ever see
    learning_rate : highest of AdamW, reached after a tenth of the steps, then linear to zero
    held_out      : share of the origins kept for measuring agreement
    autocast      : matrix products in bfloat16 while training; the weights stay float32
    """

    dim: int = 128
    layers: int = 2
    heads: int = 4
    ffn_dim: int = 256
    max_tokens: int = 192
    epochs: int = 2
    batch_examples: int = 16
    learning_rate: float = 2e-3
    held_out: float = 0.15
    autocast: bool = True
    seed: int = 0


def train_classifier(
    examples: Sequence[LabelledExample],
    tokenizer_folder: Path | str,
    out: Path | str,
    settings: RaterSettings = RaterSettings(),
) -> dict[str, Any]:
    """Train the educational classifier (labels 0 to 5, squared error) and return what `rater.json` holds.

    A finished `out` of the same examples and settings is kept. Training is short and starts afresh when it
    was
    killed, with the same bytes at the end. Raises DataError when there are too few examples.
    """
    out = Path(out)
    facts = _facts("educational classifier", {"educational": examples}, tokenizer_folder, settings)
    if (done := _finished(out, facts)) is not None:
        return done
    train, test = _split(examples, settings)
    from transformers import BertConfig, BertForSequenceClassification

    with one_thread(), torch.random.fork_rng(devices=[]), replacing_folder(out) as folder:
        torch.manual_seed(settings.seed)
        tokenizer = _tokenizer(tokenizer_folder, settings.max_tokens)
        head: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=settings.dim,
                num_hidden_layers=settings.layers,
                num_attention_heads=settings.heads,
                intermediate_size=settings.ffn_dim,
                max_position_embeddings=settings.max_tokens,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                pad_token_id=tokenizer.pad_token_id,
                type_vocab_size=1,
                **head,
            )
        )
        labels = torch.tensor([example.label for example in train], dtype=torch.float32)
        model.classifier.bias.data.fill_(float(labels.mean()))
        rows = head_tokens(tokenizer, [e.text for e in train], settings.max_tokens, special=True)

        def loss(batch: list[int]) -> torch.Tensor:
            ids, mask = padded([rows[i] for i in batch], tokenizer.pad_token_id, "right")
            scores = model(input_ids=ids, attention_mask=mask).logits.squeeze(-1)
            return (scores.float() - labels[batch]).square().mean()

        _fit(
            model, loss, _plan([list(range(len(train)))], rows, settings), settings, "training the classifier"
        )
        _save(model, tokenizer, folder)
        scorer = EducationalClassifier(str(folder), max_tokens=settings.max_tokens)
        scores = scorer.score(_documents(test))["educational_score"]
        agreement = {"educational": classifier_agreement(scores, _labels(test))}
        return _finish(folder, facts, agreement, {"educational": (train, test)})


def train_judge(
    examples: Mapping[str, Sequence[LabelledExample]],
    prompts: Mapping[str, Prompt],
    tokenizer_folder: Path | str,
    out: Path | str,
    settings: RaterSettings = RaterSettings(),
) -> dict[str, Any]:
    """Train the judge on all tasks at once and return what `rater.json` holds.

    examples : labels 0 or 1 by task (`reasoning`, `code`, ...); for `combined`, if it has a prompt and no
               labels, see `combined_examples`
    prompts  : prompt by task; the loss is on the answer's token only

    Resume and errors as `train_classifier`.
    """
    out = Path(out)
    tasks = dict(examples)
    if "combined" in prompts and "combined" not in tasks:
        tasks["combined"] = combined_examples({t: e for t, e in tasks.items() if t != "reasoning"})
    facts = _facts("judge", tasks, tokenizer_folder, settings)
    facts["prompts"] = {task: prompts[task].sha256 for task in tasks}
    if (done := _finished(out, facts)) is not None:
        return done
    splits = {task: _split(members, settings) for task, members in tasks.items()}
    with one_thread(), torch.random.fork_rng(devices=[]), replacing_folder(out) as folder:
        torch.manual_seed(settings.seed)
        judge = _new_judge(tokenizer_folder, prompts, settings)
        _train_answers(judge, {task: train for task, (train, _) in splits.items()}, prompts, settings)
        _save(judge.model, judge.tokenizer, folder)
        agreement = {}
        for task, (_, test) in splits.items():
            scorer = AskLLM(str(folder), prompts[task], max_document_tokens=settings.max_tokens)
            agreement[task] = judge_agreement(scorer.score(_documents(test))["margin"], _labels(test))
        return _finish(folder, facts, agreement, splits)


def combined_examples(tasks: Mapping[str, Sequence[LabelledExample]]) -> list[LabelledExample]:
    """Labels for the combined prompt: 1 where any domain says 1, else 0 where any says 0."""
    best: dict[str, LabelledExample] = {}
    for task in sorted(tasks):
        for example in tasks[task]:
            key = hash_value([example.id, example.text])  # a damaged copy has its original's id
            if key not in best or example.label > best[key].label:
                best[key] = example
    return list(best.values())


def _new_judge(tokenizer_folder: Path | str, prompts: Mapping[str, Prompt], settings: RaterSettings) -> Judge:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer(tokenizer_folder, None)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.dim,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        intermediate_size=settings.ffn_dim,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    judge = Judge(LlamaForCausalLM(config), tokenizer)
    longest = max(len(judge.prompt_tokens(prompt, True)) for prompt in prompts.values())
    judge.model.config.max_position_embeddings = longest + settings.max_tokens
    return judge


def _train_answers(
    judge: Judge,
    examples: Mapping[str, Sequence[LabelledExample]],
    prompts: Mapping[str, Prompt],
    settings: RaterSettings,
) -> None:
    """Teach the judge its answers; each batch holds one task, whose prompt is computed once for all its
    rows.
    """
    rows: list[list[int]] = []
    labels: list[float] = []
    task_of: list[str] = []
    groups: list[list[int]] = []
    tokens = {task: judge.prompt_tokens(prompts[task], True) for task in examples}
    for task, members in examples.items():
        groups.append(list(range(len(rows), len(rows) + len(members))))
        heads, _ = tokens[task].documents([e.text for e in members], settings.max_tokens)
        rows += [head + tokens[task].suffix for head in heads]
        labels += [e.label for e in members]
        task_of += [task] * len(members)
    targets = torch.tensor(labels, dtype=torch.float32)

    def loss(batch: list[int]) -> torch.Tensor:
        prompt = tokens[task_of[batch[0]]]
        shared = judge.prefix(prompt.prefix)
        logits = judge.last_logits(prompt.prefix, [rows[i] for i in batch], shared)
        one, zero = (torch.logsumexp(logits[:, ids], dim=-1) for ids in (prompt.ones, prompt.zeros))
        wanted = targets[batch] * one + (1 - targets[batch]) * zero
        return (torch.logsumexp(logits, dim=-1) - wanted).mean()

    _fit(judge.model, loss, _plan(groups, rows, settings), settings, "training the judge")


def _fit(
    model: torch.nn.Module,
    loss_of: Callable[[list[int]], torch.Tensor],
    plan: list[list[int]],
    settings: RaterSettings,
    description: str,
) -> None:
    """AdamW over the batches of `plan`, in order."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    warmup = max(1, len(plan) // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (len(plan) - step) / (len(plan) - warmup + 1))
    )
    model.train()
    with progress(description, total=len(plan), unit="steps") as task:
        for batch in plan:
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.autocast):
                loss = loss_of(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            task.advance(1)
    model.eval()


def _plan(groups: list[list[int]], rows: Sequence[Sequence[int]], settings: RaterSettings) -> list[list[int]]:
    """Batches of all epochs: each of one group and of similar lengths, in random order; a function of the
    seed.
    """
    plan: list[list[int]] = []
    for epoch in range(settings.epochs):
        chance = random.Random(f"{settings.seed} {epoch}")
        batches: list[list[int]] = []
        for group in groups:
            mixed = chance.sample(group, len(group))
            span = settings.batch_examples * 16
            for start in range(0, len(mixed), span):
                near = sorted(mixed[start : start + span], key=lambda i: len(rows[i]))
                size = settings.batch_examples
                batches += [near[first : first + size] for first in range(0, len(near), size)]
        chance.shuffle(batches)
        plan += batches
    return plan


def _split(
    examples: Sequence[LabelledExample], settings: RaterSettings
) -> tuple[list[LabelledExample], list[LabelledExample]]:
    """Training and held-out examples; all of one origin are on the same side."""
    sides: tuple[list[LabelledExample], list[LabelledExample]] = ([], [])
    for example in sorted(examples, key=lambda e: (e.id, e.rule)):
        digest = hashlib.sha256(f"{settings.seed}\0{example.group}".encode()).digest()
        sides[int.from_bytes(digest[:8], "big") < settings.held_out * 2**64].append(example)
    if min(map(len, sides)) < 1:
        raise DataError(
            f"{len(examples)} labelled examples are too few to train a rater and to test it",
            remedy="Label more documents: widen the rules' `sources` or `pattern`, or read more of the sources",
        )
    return sides


def _tokenizer(folder: Path | str, max_tokens: int | None) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if max_tokens is not None:
        tokenizer.model_max_length = max_tokens
    return tokenizer


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _facts(
    kind: str, tasks: Mapping[str, Sequence[LabelledExample]], tokenizer: Path | str, settings: RaterSettings
) -> dict[str, Any]:
    hashes = {task: hash_value(sorted(_hash(e) for e in members)) for task, members in tasks.items()}
    return {
        "rater": kind,
        "settings": asdict(settings),
        "labels": hashes,
        "tokenizer": hash_folder(tokenizer),
    }


def _hash(example: LabelledExample) -> str:
    return hash_value(asdict(example))


def _finished(out: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    path = out / "rater.json"
    if not path.exists():
        return None
    record: dict[str, Any] = read_json(path)
    return record if record["made_from"] == facts else None


def _finish(
    folder: Path,
    facts: dict[str, Any],
    agreement: dict[str, dict[str, Any]],
    splits: Mapping[str, tuple[list[LabelledExample], list[LabelledExample]]],
) -> dict[str, Any]:
    tasks = {task: {"trained_on": len(splits[task][0]), **agreement[task]} for task in agreement}
    record = {"made_from": facts, "tasks": tasks}
    write_json(folder / "rater.json", record)
    return record


def _documents(examples: Sequence[LabelledExample]) -> list[Document]:
    return [Document(e.id, e.text, e.source) for e in examples]


def _labels(examples: Sequence[LabelledExample]) -> np.ndarray:
    return np.array([example.label for example in examples], dtype=np.float32)
