"""What a task is: how to ask and how to score, and one question of it, rendered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Scoring = Literal["likelihood", "gold_bpb", "choice", "generation"]
Form = Literal["cloze", "letters", "both"]
GoldKind = Literal["index", "one_based", "label", "text", "boolean"]
Normalization = Literal["none", "per_char", "per_byte", "per_token", "pmi"]


@dataclass(frozen=True)
class Item:
    """One question of a task, rendered.

    id            : from the row, or a hash of it; unique within the task
    prompt        : context, few-shot examples included
    gold          : gold continuation or reference answer, leading space included ("" for likelihood)
    choices       : continuations to choose from, leading space included; empty unless the task is a choice
    gold_choice   : position of the right one
    unconditional : context of the PMI denominator
    text          : the text of a likelihood task
    contexts      : where the choices differ in what comes before (WinoGrande), the context of each; then all
                    continuations are equal and `prompt` is what they share: the few-shot examples
    choice_texts  : the choices as the row has them, whose characters normalise the scores
    searched      : what is looked for in training text: the question, and the question with its choices or the
                    reference answer, without the words of the templates and without the few-shot examples
    head          : what is put before a sampled answer when it is judged
    """

    id: str
    prompt: str
    gold: str
    choices: tuple[str, ...] = ()
    gold_choice: int | None = None
    unconditional: str = "Answer:"
    text: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    contexts: tuple[str, ...] = ()
    choice_texts: tuple[str, ...] = ()
    searched: tuple[str, ...] = ()
    head: str = ""


@dataclass(frozen=True)
class FewShot:
    """Solved examples before each question.

    count    : how many
    data, subset, split, revision : where they are from; `data` and `subset` of the task where not given. A
               task read from a local file takes them from its own rows, which then are not asked.
    pick     : the first rows, or rows drawn by the seed of the evaluation
    skip     : rows passed over before the first (MBPP's examples are the second to the fourth)
    same     : a field that must agree with the question's (MMLU: subject)
    separator: between examples
    solution : template of the worked answer that an example shows; the gold answer where not given
    examples : rows written in the task file itself, instead of `data`
    """

    count: int = 0
    data: str | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    pick: Literal["first", "random"] = "first"
    skip: int = 0
    same: str | None = None
    separator: str = "\n\n"
    solution: str = ""
    examples: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Generation:
    """How answers are drawn and checked.

    reward  : name of a reward of training.rewards, given the answer and the row's gold answer; of `code` the gold
              is the text of the tests
    check   : of `code`: template of the name of the function that the tests' `check` is given (HumanEval); without it
              the tests are asserts (MBPP)
    tests   : of `code`: "asserts", or "livecodebench" for that dataset's cases of input and output, or of calls
    head    : template of what is put before the answer when it is judged, such as the head of a function
    samples : answers to each question; temperature 0 is greedy
    budgets : response budgets in tokens at which scores are reported, none larger than `max_tokens`
    chat    : put the prompt into the model's chat template
    """

    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    reward: str = "math"
    check: str = ""
    tests: Literal["asserts", "livecodebench"] = "asserts"
    head: str = ""
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    thinking_tokens: int | None = None
    answer_tokens: int | None = None
    budgets: tuple[int, ...] = ()
    chat: bool = False
    system: str | None = None


@dataclass(frozen=True)
class Task:
    """A task file.

    data, subset, split, revision : a local file (.jsonl, .jsonl.gz, .jsonl.zst, .parquet) or a hub dataset
    id            : field of the row's id; a hash of the row where not given
    description   : template of what stands before the examples and the question, with the question's fields
    prompt        : template of the question
    text          : template of the text of a likelihood task
    gold          : template of the gold answer; for a choice, of what `gold_kind` reads
    gold_kind     : the gold is a position from 0 ("index") or 1 ("one_based"), one of `labels` ("label"), the
                    choice itself ("text"), or true and false for position 1 and 0 ("boolean")
    choices       : a field that holds the list, or a list of templates
    labels        : the field with the labels of the choices, where `gold_kind` is "label"; A, B, C otherwise
    contexts      : templates of a context for each choice; then `choices` is one template for all
    delimiter     : between prompt and continuation; it belongs to the continuation
    letters_prompt: template of the lettered form, in which {lettered_choices} are the lines " A. choice"
    letters_description : description of the lettered form
    unconditional : context of the PMI denominator
    clean         : a filter of `probes.templates` applied to prompt and choices
    normalization : which score decides the headline accuracy of the cloze form; all are reported
    duplicates    : a row that is there twice is an error, or kept and asked twice (some official sets have some)
    """

    name: str
    scoring: Scoring
    data: str
    version: int = 1
    subset: str | None = None
    split: str = "test"
    revision: str | None = None
    source: str = ""
    id: str | None = None
    description: str = ""
    prompt: str = ""
    text: str = ""
    gold: str = ""
    gold_kind: GoldKind = "index"
    choices: str | tuple[str, ...] = ()
    labels: str | None = None
    contexts: tuple[str, ...] = ()
    delimiter: str = " "
    form: Form = "cloze"
    letters_prompt: str = ""
    letters_description: str = ""
    unconditional: str = "Answer:"
    clean: str | None = None
    normalization: Normalization = "none"
    duplicates: Literal["error", "keep"] = "error"
    fewshot: FewShot = field(default_factory=FewShot)
    generation: Generation = field(default_factory=Generation)
