"""The judge's prompt: a versioned text file, the tokens around the document, and the document made harmless.

The document is data. Prompt and document are tokenised apart and joined as ids, so whatever a document says,
the ids before it, the ids after it and the place of the answer are the same. Control tokens (`<|im_end|>`,
`</s>`, …) and the prompt's own delimiters are broken up in the document's text, and no id of a control token
is ever let through from a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import regex

from curation.atomic import hash_value
from curation.batches import head_tokens
from curation.errors import DataError, RecipeError

PROMPT_FOLDER = Path(__file__).parent / "prompts"
PLACEHOLDER = "{document}"
TASKS = ("reasoning", "code", "mathematics", "knowledge", "combined")
_SENTINEL = "MIXWRIGHT-DOCUMENT-6b1f0c57"
_MARKUP = regex.compile(r"[<\[{|].*[>\]}|]", regex.DOTALL)
# Turns that a template writes as plain text, such as `[/INST]`, `<<SYS>>`, `### Response:` and `ASSISTANT:`.
_TURN_MARK = regex.compile(r"[<\[{|]\S*[>\]}|]|^\s*#{2,}[^\n]+|^\s*[\w ]{1,24}:\s*$", regex.MULTILINE)


@dataclass(frozen=True)
class Prompt:
    """A prompt split at its document: `before` + document + `after`; the model answers next, with 1 or 0.

    delimiters: the lines right above and below the document; a document cannot contain them.
    """

    name: str
    before: str
    after: str

    @property
    def delimiters(self) -> tuple[str, ...]:
        lines = (self.before.rstrip("\n").rsplit("\n", 1)[-1], self.after.lstrip("\n").split("\n", 1)[0])
        return tuple(line.strip() for line in lines if line.strip())

    @property
    def sha256(self) -> str:
        return hash_value([self.before, self.after])


def load_prompt(name: str) -> Prompt:
    """Read a prompt: one of this package (`reasoning-v1`), or the path of the user's own text file.

    The file has the line `{document}` exactly once, with a delimiter line above and below it, and ends where
    the answer comes. A file of the user's own is named for its stem and the hash of its text. Raises
    RecipeError when it has another form, or there is no such prompt.
    """
    packaged = PROMPT_FOLDER / f"{name}.txt"
    own = not packaged.exists()
    path = Path(name) if own else packaged
    try:
        text = path.read_text(encoding="utf-8").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(file.stem for file in PROMPT_FOLDER.glob("*.txt")))
        raise RecipeError(
            "There is no such prompt",
            where=name,
            remedy=f"Give the path of a UTF-8 text file, or one of: {known}",
        ) from error
    prompt = parse_prompt(regex.sub(r"[^\w.-]", "_", path.stem), text)
    # Tables are named for the prompt: two files of one name, or two versions of one file, must not share them.
    return replace(prompt, name=f"{prompt.name}-{prompt.sha256[:8]}") if own else prompt


def parse_prompt(name: str, text: str) -> Prompt:
    """Split the text of a prompt at its line `{document}`; RecipeError when there is not exactly one."""
    before, *rest = text.split(f"\n{PLACEHOLDER}\n")
    if len(rest) != 1 or text.count(PLACEHOLDER) != 1:
        raise RecipeError(
            f"A prompt has one line that is just {PLACEHOLDER}, with lines above and below it", where=name
        )
    prompt = Prompt(name, before + "\n", "\n" + rest[0])
    if len(prompt.delimiters) != 2:
        raise RecipeError(
            f"The lines around {PLACEHOLDER} must not be empty: they delimit the document", where=name
        )
    return prompt


class PromptTokens:
    """A prompt as ids of one tokenizer.

    prefix, suffix : ids before and after the document, the same for every document
    ones, zeros    : ids of the answers: "1" and " 1" where each is one token, likewise for "0"
    """

    def __init__(self, tokenizer: Any, prompt: Prompt, *, chat: bool, ends: bool = False) -> None:
        """chat: write the prompt as a user's turn with the tokenizer's template; ends: close with eos
        (T5).
        """
        self.tokenizer, self.prompt = tokenizer, prompt
        before, after = _in_template(tokenizer, prompt) if chat else (prompt.before, prompt.after)
        turns = _turn_marks(before, after, prompt) if chat else frozenset()
        self.prefix = self._ids(before)
        self.suffix = self._ids(after)
        if not chat and _adds_bos(tokenizer):
            self.prefix.insert(0, tokenizer.bos_token_id)
        if ends and tokenizer.eos_token_id is not None:
            self.suffix.append(tokenizer.eos_token_id)
        self.ones, self.zeros = self._answers("1"), self._answers("0")
        if not self.ones or not self.zeros or set(self.ones) & set(self.zeros):
            raise DataError(
                'The judge\'s tokenizer has no single tokens for the answers "1" and "0"',
                where=str(getattr(tokenizer, "name_or_path", "")),
                remedy="Choose another judge",
            )
        self._control_ids, self._control = _control_tokens(tokenizer)
        broken = sorted({*self._control, *prompt.delimiters, *turns}, key=lambda text: (-len(text), text))
        self._breaks = regex.compile("|".join(map(regex.escape, broken)), regex.IGNORECASE)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._normalizer = getattr(backend, "normalizer", None)
        self._gap = [i for i in self._ids(" ") if i not in self._control_ids][:1]

    def __len__(self) -> int:
        return len(self.prefix) + len(self.suffix)

    def documents(self, texts: Sequence[str], max_tokens: int) -> tuple[list[list[int]], list[bool]]:
        """Ids of each document's head, at most `max_tokens`, and whether anything was cut off."""
        rows = head_tokens(
            self.tokenizer, [self.neutralise(text) for text in texts], max_tokens + 1, special=False
        )
        cut = [len(row) > max_tokens for row in rows]
        return [self._without_control(row[:max_tokens]) for row in rows], cut

    def neutralise(self, text: str) -> str:
        """Break up control tokens, delimiters and turn marks with a space after their first character.

        Tokenizers that normalise (T5's makes plain characters of full-width ones and drops invisible ones)
        could put one together again; such a text is broken up in its normal form.
        """
        text = self._broken_up(text)
        if self._normalizer is not None:
            normal = self._normalizer.normalize_str(text)
            if self._breaks.search(normal):
                return self._broken_up(normal)
        return text

    def _without_control(self, row: list[int]) -> list[int]:
        """A space in place of each control token that still came through: what stood around it must not join."""
        if self._control_ids.isdisjoint(row):
            return row
        return [kept for i in row for kept in (self._gap if i in self._control_ids else [i])]

    def _broken_up(self, text: str) -> str:
        while True:
            broken = self._breaks.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
            if broken == text:
                return text
            text = broken

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _answers(self, answer: str) -> list[int]:
        return sorted({ids[-1] for ids in map(self._ids, (answer, f" {answer}")) if self._is(ids, answer)})

    def _is(self, ids: list[int], answer: str) -> bool:
        """Whether the last id alone says `answer`; SentencePiece may put a lone space mark before it."""
        if not ids or ids[-1] == self.tokenizer.unk_token_id:
            return False
        before, last = self.tokenizer.decode(ids[:-1]), self.tokenizer.decode(ids[-1:])
        return not before.strip() and last.strip() == answer


def _in_template(tokenizer: Any, prompt: Prompt) -> tuple[str, str]:
    """The texts before and after the document, with the prompt as the user's turn of the chat template."""
    message = [{"role": "user", "content": f"{prompt.before}{_SENTINEL}{prompt.after}"}]
    # Templates that know no thinking ignore the switch; with it, thinking models answer at once.
    rendered = tokenizer.apply_chat_template(
        message, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    before, *rest = rendered.split(_SENTINEL)
    if len(rest) != 1:
        raise DataError(
            "The chat template does not show the user's turn exactly once",
            where=str(getattr(tokenizer, "name_or_path", "")),
            remedy="Set `chat: false` for this judge",
        )
    return before, rest[0]


def _turn_marks(before: str, after: str, prompt: Prompt) -> frozenset[str]:
    """What the template writes around the user's turn and looks like markup: it must not come from a document."""
    around = before.removesuffix(prompt.before) + "\n" + after.removeprefix(prompt.after)
    marks = {match[0].strip() for match in _TURN_MARK.finditer(around)}
    return frozenset(mark for mark in marks if len(mark) > 1)


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def _control_tokens(tokenizer: Any) -> tuple[frozenset[int], frozenset[str]]:
    """Ids and strings of the tokens that mean something to the model beyond text.

    Added tokens that are neither special nor written like markup stay: runs of spaces, words of a domain.
    An unknown-token of its own stays as well, since ordinary text makes it.
    """
    harmless = {tokenizer.unk_token_id} - {
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    }
    control = {
        index: str(token.content)
        for index, token in tokenizer.added_tokens_decoder.items()
        if (token.special or _MARKUP.fullmatch(token.content)) and index not in harmless
    }
    ids = frozenset(control) | (frozenset(tokenizer.all_special_ids) - harmless)
    # A single character cannot be broken up, and a space in a run of spaces would make more of the same.
    texts = (text for text in control.values() if len(text) > 1 and text.strip())
    return ids, frozenset(texts)


def domain_prompt(capabilities: Sequence[str]) -> str:
    """The domain prompt of a source: its capability's, or `combined` when it has several or none.

    >>> domain_prompt(["code"]), domain_prompt(["code", "mathematics"]), domain_prompt([])
    ('code', 'combined', 'combined')
    """
    return capabilities[0] if len(capabilities) == 1 else "combined"
