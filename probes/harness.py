"""Our checkpoints as a model of lm-evaluation-harness (0.4.9 or later): import this module, then name `mixwright`.

    import probes.harness
    lm_eval.simple_evaluate("mixwright", "pretrained=runs/quickstart/model", tasks=[...])

Values are those of the harness' own HFLM (without its cache of logits, see the tests) on the exported folder of the
same model: tokenisation, windows and truncation follow it, but logits are made only for the tokens that are scored.
The harness adds bos where the tokenizer does; `loglikelihood_rolling` then predicts that bos, too, from the one that
opens the window, and counts it. `add_bos_token=False` leaves it out and gives the value of `probes.likelihood` with a
stride of the context.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from curation.errors import DataError, MachineError, RecipeError
from training.budgets import Ending, RolloutSettings
from training.distributed import choose_device
from training.grpo_update import autocast
from training.huggingface import read_generation
from training.rollout import Prompt, roll_out
from training.start import load_start, start_tokenizer

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as missing:
    raise MachineError(
        "lm-evaluation-harness is not installed",
        where="probes.harness",
        remedy='Install it: pip install "lm-eval>=0.4.9"',
    ) from missing

ANSWER_TOKENS = 256  # what the harness takes when a task does not say
KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "seed"}

_Scored = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("mixwright")
class MixwrightLM(TemplateLM):
    """A checkpoint or Hugging Face folder of ours, scored and sampled by our decoder.

    pretrained    : the folder;  tokenizer : another folder, where a checkpoint has none
    max_length    : tokens fed at most; the model's `max_positions` if not given
    batch_tokens  : tokens in one forward pass, padding included; `batch_size` of the harness is not needed
    add_bos_token : None does what the tokenizer does
    precision     : float32, or bfloat16 for the matrix products
    """

    def __init__(
        self,
        pretrained: str | Path,
        tokenizer: str | Path | None = None,
        *,
        max_length: int | None = None,
        batch_tokens: int = 8192,
        add_bos_token: bool | None = None,
        device: str | None = "auto",
        precision: str = "float32",
        seed: int = 0,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        start = Path(pretrained)
        self.tokenizer = start_tokenizer(start, tokenizer)
        self.model = load_start(start).to(choose_device(device or "auto")).requires_grad_(False).eval()
        positions = self.model.config.max_positions
        self.max_length = int(max_length or positions)
        if not 1 <= self.max_length <= positions:
            raise RecipeError(
                f"A max_length of {self.max_length} is not possible: the model has {positions} positions",
                where="max_length",
                remedy=f"Choose 1 to {positions}",
            )
        self.batch_tokens, self.add_bos_token = int(batch_tokens), add_bos_token
        self.precision, self.seed, self.folder = precision, int(seed), str(pretrained)
        eos = read_generation(start).get("eos_token_id", [])
        self._end_ids = tuple(eos) if isinstance(eos, list) else (eos,)

    @property
    def eot_token_id(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise DataError("The tokenizer has no eos token", where=self.folder, remedy="Set its eos_token")
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What opens an empty context and a rolling window: bos, else eos."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return self.folder.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        special = self.add_bos_token if add_special_tokens is None else add_special_tokens
        opens = string.startswith(self.tokenizer.decode([self.prefix_token_id]))
        if add_special_tokens is None and opens:
            special = False
        given = {} if special is None else {"add_special_tokens": special}
        return list(self.tokenizer.encode(string, **given))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[_Scored], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether greedy decoding would write it.

        The context is cut on the left to what the model reads. DataError for a continuation that is empty or
        longer than that.
        """
        fed: list[tuple[list[int], int]] = []
        for told, context, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                raise DataError(
                    f"A continuation has {len(continuation)} tokens, and the model reads {self.max_length}",
                    where=repr(told)[:120],
                    remedy="Leave it out, or choose a larger max_length",
                )
            fed.append(((context + continuation)[-(self.max_length + 1) :], len(continuation)))
        found: dict[int, tuple[float, bool]] = {}
        for batch in self._batches([len(ids) - 1 for ids, _ in fed]):
            for at, value in zip(batch, self._score([fed[at] for at in batch]), strict=True):
                found[at] = value
                told = requests[at][0]
                if told is not None:
                    self.cache_hook.add_partial("loglikelihood", told, value)
        return [found[at] for at in range(len(fed))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, in disjoint windows of max_length, as the harness cuts them."""
        windows: list[_Scored] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for pair in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1):
                context, continuation = make_disjoint_window(pair)
                windows.append((None, context, continuation))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answer to each prompt, cut before the first stop string; prompts are cut on the left.

        RecipeError for a setting of the decoding that we do not have.
        """
        groups: dict[str, list[int]] = defaultdict(list)
        for at, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True)].append(at)
        answers: dict[int, str] = {}
        for members in groups.values():
            asked = requests[members[0]].args[1]
            texts = self._generate([requests[at].args[0] for at in members], members, asked)
            for at, text in zip(members, texts, strict=True):
                answers[at] = text
                self.cache_hook.add_partial("generate_until", requests[at].args, text)
        return [answers[at] for at in range(len(requests))]

    def _generate(self, contexts: Sequence[str], places: Sequence[int], asked: dict[str, Any]) -> list[str]:
        wanted = dict(normalize_gen_kwargs(asked, ANSWER_TOKENS))
        unknown = sorted(set(wanted) - KNOWN)
        if unknown:
            raise RecipeError(
                f"Our decoder does not have {', '.join(unknown)}",
                where="generation_kwargs",
                remedy=f"Use {', '.join(sorted(KNOWN))}",
            )
        longest = int(wanted["max_gen_toks"])
        room = self.max_length - longest
        if room < 1:
            raise RecipeError(
                f"Answers of {longest} tokens leave no room for a prompt in {self.max_length}",
                where="max_gen_toks",
                remedy="Shorten the answers",
            )
        stop = tuple(text for text in wanted["until"] if text)
        temperature = float(wanted.get("temperature", 0.0)) if wanted["do_sample"] else 0.0
        settings = RolloutSettings(
            max_tokens=longest, temperature=temperature, top_p=float(wanted.get("top_p", 1.0))
        )
        plain = Ending.of(self.tokenizer, settings, self._end_ids)
        ending = Ending(plain.end_ids, plain.closing, plain.closing_text, self._text, stop)
        prompts = []
        for place, context in zip(places, contexts, strict=True):
            ids = self.tok_encode(context)[-room:] or [self.prefix_token_id]
            prompts.append(Prompt(place, tuple(ids)))
        seed = int(wanted.get("seed", self.seed))
        with autocast(self.precision, self.model)():
            rollouts = roll_out(self.model, prompts, settings, ending, seed=seed)
        end = self.tokenizer.decode([self.eot_token_id])
        texts = [self._text(list(rollout.completion_ids)) for rollout in rollouts]
        return [_before_first(text, (*stop, end)) for text in texts]

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Places of requests of like length, the longest first."""
        batch: list[int] = []
        for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
            if batch and (len(batch) + 1) * lengths[batch[0]] > self.batch_tokens:
                yield batch
                batch = []
            batch.append(at)
        if batch:
            yield batch

    @torch.inference_mode()
    def _score(self, batch: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        device = self.model.output_weight.device
        width = len(batch[0][0]) - 1
        inputs = torch.zeros(len(batch), width, dtype=torch.int64)
        scored = torch.zeros(len(batch), width, dtype=torch.bool)
        for row, (ids, length) in enumerate(batch):
            inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
            scored[row, len(ids) - 1 - length : len(ids) - 1] = True
        labels = torch.tensor([token for ids, length in batch for token in ids[-length:]], device=device)
        with autocast(self.precision, self.model)():
            hidden = self.model(inputs.to(device))[scored.to(device)]
            losses, greedy = [], []
            for rows, targets in zip(hidden.split(1024), labels.split(1024), strict=True):
                logits = self.model.logits(rows).float()
                losses.append(F.cross_entropy(logits, targets, reduction="none"))
                greedy.append(logits.argmax(-1) == targets)
        lengths = [length for _, length in batch]
        nats = torch.cat(losses).to("cpu", torch.float64).split(lengths)
        same = torch.cat(greedy).cpu().split(lengths)
        return [(-float(n.sum()), bool(s.all())) for n, s in zip(nats, same, strict=True)]


def _before_first(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of the strings that stands in it.

    >>> _before_first("4\\n\\nQuestion", ["Question", "\\n\\n", ""])
    '4'
    """
    for stop in stops:
        if stop:
            text = text.split(stop)[0]
    return text
