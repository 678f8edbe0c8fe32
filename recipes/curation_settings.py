"""The recipe's blocks about text: sources, quality scores, Ask-LLM, deduplication, probes, tokenizer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from curation.errors import RecipeError
from recipes.settings import Count, Name, Positive, Settings, Share

Capability = Literal["code", "mathematics", "knowledge"]
Collection = Literal[
    "standard_library",
    "sympy_source",
    "docstrings",
    "language_reference",
    "readmes",
    "word_problems",
    "licences_and_tables",
]


class SourceSettings(Settings):
    """One corpus: where it is read from and what it is thought to be good for."""

    name: Name
    """Name of the source in every table, file and plot of the run."""
    kind: Literal["hub", "local", "python"]
    """`hub`: a Hugging Face dataset; `local`: a file, folder or glob; `python`: the running installation."""
    capabilities: list[Capability] = Field(default_factory=list)
    """Capabilities whose probes this source feeds. Leave it empty for a corpus suspected to be noise."""
    path: str | None = None
    """For `local`: .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt files, relative to the recipe."""
    dataset: str | None = None
    """For `hub`: the dataset's id, such as `HuggingFaceFW/fineweb-edu`."""
    subset: str | None = None
    """For `hub`: the configuration of the dataset."""
    split: str = "train"
    """For `hub`: the split to stream."""
    text_field: str = "text"
    """Field that holds the text, for `hub` and `local`."""
    collection: Collection | None = None
    """For `python`: which part of the installation to read."""
    max_megabytes: Positive = 4.0
    """Megabytes of text to keep at most; pieces are chosen by a seeded hash, not by their place in the files."""

    @model_validator(mode="after")
    def _kind_has_its_field(self) -> SourceSettings:
        needed = {"hub": "dataset", "local": "path", "python": "collection"}
        for kind, field in needed.items():
            given = getattr(self, field) is not None
            if kind == self.kind and not given:
                raise ValueError(f"a source of kind `{kind}` needs the field `{field}`")
            if kind != self.kind and given:
                raise ValueError(
                    f"`{field}` belongs to sources of kind `{kind}`, but this one is `{self.kind}`"
                )
        return self


class LabelSettings(Settings):
    """One rule of what counts as good or bad for a rater. The first rule that matches a document labels it."""

    name: Name
    label: float = Field(ge=0.0, le=5.0)
    """0 to 5 for the educational classifier, 0 (exclude) or 1 (include) for the judge."""
    sources: list[str] | None = None
    """Sources the rule looks at; all when absent."""
    pattern: str | None = None
    """Regular expression that must be found in the document, `minimum_matches` times."""
    minimum_matches: Count = 1
    corrupt: Literal["shuffle_words", "shuffle_lines", "repeat_lines", "strip_letters"] | None = None
    """Make damaged copies of matching documents and give those the label."""
    why: str
    """The reason, printed in the report."""


class Labels(Settings):
    """Label rules for each rater that the run trains."""

    educational: list[LabelSettings] = Field(default_factory=list)
    reasoning: list[LabelSettings] = Field(default_factory=list)
    code: list[LabelSettings] = Field(default_factory=list)
    mathematics: list[LabelSettings] = Field(default_factory=list)
    knowledge: list[LabelSettings] = Field(default_factory=list)
    combined: list[LabelSettings] = Field(default_factory=list)


class RaterTraining(Settings):
    """Size and training of the small classifier and judge, when the run trains them itself."""

    examples: Count = 1200
    """Labelled documents for each task, shared evenly among the labels, at most."""
    context: Count = 192
    """Tokens of a document that a rater reads."""
    dim: Count = 128
    layers: Count = 2
    epochs: Count = 2
    batch: Count = 16
    learning_rate: Positive = 2e-3


class EducationalSettings(Settings):
    """The educational-quality cut: MobileLLM-R1 keeps FineWeb-Edu scores above 4."""

    model: str = "HuggingFaceFW/fineweb-edu-classifier"
    """A hub id; a folder, also one that `mixwright classifier train` made; or `trained` for the small classifier
    that the run trains from `labels.educational`."""
    rule: str = "raw > 4"
    """`raw > 4` (the paper's words), `int_score >= 4` (the rounded score), `top 0.1` (of each source) or `all`."""
    per_source: dict[str, str] = Field(default_factory=dict)
    """Other rules for single sources: an English rubric rarely passes code and proofs."""
    carried_score: str | None = None
    """Field of the corpora that already holds the model's raw score, such as FineWeb-Edu's `score`: what carries one
    is not scored again. Pieces of a long document have the score of the whole."""
    precision: Literal["float32", "bfloat16", "int8", "auto"] = "float32"
    """`bfloat16` scores in half the time or less, and again in float32 whatever lies near the cut, so that verdicts
    are float32's; `auto` does so where the processor multiplies bfloat16 itself. `int8` is faster again for models of
    the size of BERT-base on processors with VNNI, and `auto` elsewhere. For transformers classifiers."""

    @field_validator("rule", "per_source")
    @classmethod
    def _rules_are_rules(cls, value: str | dict[str, str]) -> str | dict[str, str]:
        from curation.educational import (
            parse_rule,  # here, since it brings torch, which not every command needs
        )

        for rule in [value] if isinstance(value, str) else value.values():
            try:
                parse_rule(rule)
            except RecipeError as error:
                raise ValueError(str(error)) from None
        return value


class JudgeServerSettings(Settings):
    """A judge behind an OpenAI-compatible API that returns log-probabilities. The text of the documents goes there."""

    url: str
    """Base of the API, such as `http://127.0.0.1:8000/v1`."""
    model: str
    """Name under which the server offers the judge."""
    api: Literal["completions", "chat"] = "completions"
    """`completions` for base models, `chat` for instruction models."""
    key_variable: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the API key, if the server wants one; the key itself is written nowhere."""
    concurrency: Count = 8
    """Requests at the same time, over all workers."""
    top_logprobs: Count = 20
    """Tokens whose log-probabilities are asked for; some servers allow 5 at most."""
    timeout_seconds: Positive = 120.0
    retries: int = Field(default=5, ge=0, le=20)
    system_fingerprint: str | None = None
    """When given, answers of a server whose fingerprint is another are refused."""

    @field_validator("url")
    @classmethod
    def _url_is_http(cls, value: str) -> str:
        from curation.judge_client import check_url

        try:
            check_url(value)
        except RecipeError as error:
            raise ValueError(str(error)) from None
        return value


class JudgeSettings(Settings):
    """Ask-LLM: P("1") of a judge that reads the document inside a prompt. Needs `model` or `server`, not both."""

    model: str | None = None
    """A folder or hub id of a causal or encoder-decoder language model, or `trained` for the judge the run trains
    from `labels`. The paper does not name its judge, so there is no default."""
    server: JudgeServerSettings | None = None
    """A served judge instead."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of a loaded judge's weights. With `bfloat16`, documents near each cut are scored again in float32."""
    prompts: dict[Literal["reasoning", "code", "mathematics", "knowledge", "combined"], str] = Field(
        default_factory=dict
    )
    """Other prompts: the path of a text file, relative to the recipe, or the name of a packaged one."""
    reasoning_share: Share = 0.1
    """Share of each source kept by the reasoning prompt (paper: top 10 %)."""
    domain_share: Share = 0.1
    """Share of each source kept by the domain prompt after that (paper: top 10 %)."""
    context: Count = 1024
    """Tokens of a document shown to the judge; longer ones are cut at the end. A server gets 4 characters each."""

    @model_validator(mode="after")
    def _one_judge(self) -> JudgeSettings:
        if (self.model is None) == (self.server is None):
            raise ValueError("the judge needs either `model` or `server`, and not both")
        return self


class LanguageSettings(Settings):
    """A cut by language before anything is scored; left out, there is none."""

    model: str
    """A fastText model whose labels are languages, such as lid.176.bin, relative to the recipe."""
    languages: list[str] = Field(default_factory=list)
    """Languages to keep, by the model's names, such as `[en]`; empty for no cut but that of `per_source`."""
    minimum_probability: Share = 0.65
    """Probability of the language from which on a document is kept (FineWeb's)."""
    per_source: dict[str, list[str]] = Field(default_factory=dict)
    """Other languages for single sources; an empty list for no cut, as code needs."""


class NearDuplicatesSettings(Settings):
    """Equal and nearly equal texts, across the sources, left out before anything is scored."""

    exact: bool = True
    """Texts that are equal in Unicode NFC with white space as single spaces."""
    fold_case: bool = True
    """Whether equal texts may differ in case."""
    minhash: bool = True
    """Nearly equal texts: runs of words in common, found by datatrove's MinHash and then compared exactly."""
    similarity: float = Field(default=0.55, gt=0.0, le=1.0)
    """Jaccard similarity of the runs of words from which on the later document is dropped."""
    words: Count = 5
    """Words of a run; shorter documents are only compared as wholes."""
    buckets: Count = 40
    hashes: Count = 4
    """Hashes of each bucket: a pair of similarity s is compared with the chance 1 - (1 - s^hashes)^buckets."""


class DeduplicationSettings(Settings):
    """Semantic deduplication across the sources; embedder and threshold are unpublished."""

    embedder: str = "trained"
    """A sentence-transformers folder or id, or `trained` for latent semantic analysis of this run's corpora."""
    threshold: Share = 0.9
    """Cosine from which on the later document is dropped."""
    rule: Literal["greedy", "semdedup"] = "greedy"
    dimensions: Count = 128
    precision: Literal["float32", "bfloat16", "int8", "auto"] = "float32"
    """Of the embedder's transformer, with the promise of `educational.precision`; nothing for `trained`; `int8`
    rounds some products and leaves the others in bfloat16."""
    probes: Count = 3
    """Beyond 200,000 documents: how many of its nearest clusters each document is compared in."""


class CurationSettings(Settings):
    """Sources to representative sets: MobileLLM-R1 section 5.1.1."""

    piece_bytes: Count = 4000
    """Long documents are cut into pieces of about this many bytes, at natural boundaries."""
    broken_tolerance: Share = 0.01
    """Share of unreadable records of a source above which the run stops."""
    near_duplicates: NearDuplicatesSettings = NearDuplicatesSettings()
    educational: EducationalSettings = EducationalSettings()
    judge: JudgeSettings
    language: LanguageSettings | None = None
    deduplication: DeduplicationSettings = DeduplicationSettings()
    representative_documents: Count = 10_000
    """Documents of each representative set (paper: about 10,000)."""
    raters: RaterTraining = RaterTraining()
    labels: Labels = Labels()

    @model_validator(mode="after")
    def _trained_raters_have_labels(self) -> CurationSettings:
        if self.educational.model == "trained" and not self.labels.educational:
            raise ValueError("`educational.model: trained` needs label rules in `labels.educational`")
        if self.judge.model == "trained" and not self.labels.reasoning:
            raise ValueError("`judge.model: trained` needs label rules in `labels.reasoning`")
        return self


class ProbeSettings(Settings):
    """The held-out texts on which capabilities are measured."""

    share: Share = 0.5
    """Share of each representative set that becomes probe; the rest may be trained on and is scored by influence."""
    maximum_documents: Count = 400
    """Documents of one source in one probe, at most."""
    test_share: Share = 0.08
    """Share of each source, by file of origin, set aside before anything else for the final comparison."""
    maximum_test_documents: Count = 400
    """Documents of one source in one test set, at most."""
    context: Count = 256
    """Tokens of context when a probe document is scored."""
    stride: Count = 128
    """Fresh tokens for each window of context."""
    resamples: Count = 1000
    """Bootstrap resamples of documents behind each interval."""


class TokenizerSettings(Settings):
    """The tokenizer: trained on an equal sample of every source, or a published one."""

    vocabulary: Count = 4096
    """Entries, special tokens included, when the run trains a tokenizer."""
    model: str | None = None
    """Folder or hub id of a published tokenizer to use instead."""
    sample_megabytes: Positive = 4.0
    """Text to train on, the same number of bytes from each source, so that the tokenizer favours none."""
