"""Raters of one's own: a small educational classifier and a small Ask-LLM judge, trained from stated labels.

Both are ordinary Hugging Face folders and are loaded by exactly the code that loads the published ones: the
classifier is a BertForSequenceClassification with one output, as FineWeb-Edu's; a judge is a LlamaForCausalLM
that reads one Ask-LLM prompt and has learnt one thing, to answer 1 or 0. `rater.json` in the folder says how
far they agree with labels on texts (whole origins) that they have not seen.

They are as good as their labels, no better: stand-ins where the published models cannot be had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curation.agreement import classifier_agreement, judge_agreement
from curation.ask_llm import AskLLM, Judge
from curation.atomic import hash_folder, hash_value, read_json, replacing_folder, write_json
from curation.batches import head_tokens, one_thread, padded, quiet_loading
from curation.documents import Document
from curation.educational import EducationalClassifier
from curation.judge_prompt import Prompt
from curation.labels import LabelledExample
from curation.rater_training import RaterSettings, Sides, batch_plan, fit, split_examples

DEFAULTS = RaterSettings()


def train_classifier(
    examples: Sequence[LabelledExample],
    tokenizer_folder: Path | str,
    out: Path | str,
    settings: RaterSettings = DEFAULTS,
) -> dict[str, Any]:
    """Train the educational classifier (labels 0 to 5, squared error) and return what `rater.json` holds.

    A finished `out` of the same examples and settings is kept. Training is short: when it was
    killed it starts afresh, with the same bytes at the end. Raises DataError when there are too few examples.
    """
    out = Path(out)
    facts = _facts("educational classifier", {"educational": examples}, tokenizer_folder, settings)
    if (done := _finished(out, facts)) is not None:
        return done
    train, test = split_examples({"educational": examples}, settings)["educational"]
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

        fit(model, loss, batch_plan(rows, settings), settings, "training the classifier")
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
    settings: RaterSettings = DEFAULTS,
) -> dict[str, Any]:
    """Train one judge for each prompt, in `out/<name of the prompt>`, and return what `rater.json` holds.

    examples : labels 0 or 1 by task (`reasoning`, `code`, ...); for `combined`, if it has a prompt and no
               labels, see `combined_examples`
    prompts  : prompt by task

    `AskLLM(out, prompt)` finds the judge of its prompt. One model for all prompts is what a large judge is,
    but one
    of this size that trains for seconds confuses the tasks: its agreement on unseen texts was 0.57 for
    knowledge
    where a judge of its own reached 0.95 in the same time. Resume and errors as `train_classifier`.
    """
    out = Path(out)
    tasks = dict(examples)
    if "combined" in prompts and "combined" not in tasks:
        tasks["combined"] = combined_examples({t: e for t, e in tasks.items() if t != "reasoning"})
    facts = _facts("judge", tasks, tokenizer_folder, settings)
    facts["prompts"] = {task: prompts[task].sha256 for task in tasks}
    if (done := _finished(out, facts)) is not None:
        return done
    splits = split_examples(tasks, settings)
    agreement = {}
    with one_thread(), torch.random.fork_rng(devices=[]), replacing_folder(out) as folder:
        for task, (train, test) in splits.items():
            torch.manual_seed(settings.seed)
            judge = _new_judge(tokenizer_folder, prompts[task], settings)
            _train_answers(judge, train, prompts[task], settings)
            _save(judge.model, judge.tokenizer, folder / prompts[task].name)
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


def _new_judge(tokenizer_folder: Path | str, prompt: Prompt, settings: RaterSettings) -> Judge:
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
    judge.model.config.max_position_embeddings = len(judge.prompt_tokens(prompt, True)) + settings.max_tokens
    return judge


def answer_loss(
    logits: torch.Tensor, labels: torch.Tensor, ones: list[int], zeros: list[int]
) -> torch.Tensor:
    """[n, V] logits, labels 0..1 [n] to losses [n]: the choice between the answers, and a tenth for
    answering.

    The choice is the cross-entropy of sigmoid(margin); -log(P("1") + P("0")) teaches to say nothing else. The
    plain
    cross-entropy over the vocabulary spends most of a short training on the second.
    """
    one, zero = torch.logsumexp(logits[:, ones], dim=-1), torch.logsumexp(logits[:, zeros], dim=-1)
    choice = torch.nn.functional.binary_cross_entropy_with_logits(one - zero, labels, reduction="none")
    return choice + 0.1 * (torch.logsumexp(logits, dim=-1) - torch.logaddexp(one, zero))


def _train_answers(
    judge: Judge, examples: Sequence[LabelledExample], prompt: Prompt, settings: RaterSettings
) -> None:
    """Teach the judge its answers; the prompt before the document is computed once for all rows of a
    batch.
    """
    tokens = judge.prompt_tokens(prompt, True)
    heads, _ = tokens.documents([e.text for e in examples], settings.max_tokens)
    rows = [head + tokens.suffix for head in heads]
    labels = torch.from_numpy(_labels(examples))

    def loss(batch: list[int]) -> torch.Tensor:
        shared = judge.prefix(tokens.prefix)
        logits = judge.last_logits(tokens.prefix, [rows[i] for i in batch], shared)
        return answer_loss(logits, labels[batch], tokens.ones, tokens.zeros).mean()

    fit(judge.model, loss, batch_plan(rows, settings), settings, f"training the judge of {prompt.name}")


def _tokenizer(folder: Path | str, max_tokens: int | None) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if max_tokens is not None:
        tokenizer.model_max_length = max_tokens
    return tokenizer


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    with quiet_loading():
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
    splits: Mapping[str, Sides],
) -> dict[str, Any]:
    tasks = {task: {"trained_on": len(splits[task][0]), **agreement[task]} for task in agreement}
    record = {"made_from": facts, "tasks": tasks}
    write_json(folder / "rater.json", record)
    return record


def _documents(examples: Sequence[LabelledExample]) -> list[Document]:
    return [Document(e.id, e.text, e.source) for e in examples]


def _labels(examples: Sequence[LabelledExample]) -> np.ndarray:
    return np.array([example.label for example in examples], dtype=np.float32)
