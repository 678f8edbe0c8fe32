"""The adapter against the harness' own HFLM on the exported folder of the same model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from training.huggingface import save_huggingface
from training.model import Decoder, ModelConfig
from training.tokenizer import train_tokenizer

if importlib.util.find_spec("lm_eval") is None:
    pytest.skip("lm-evaluation-harness is not installed", allow_module_level=True)

from lm_eval.api.instance import Instance

from curation.errors import DataError, RecipeError
from probes.harness import MixwrightLM

PROSE = "The sum of two even numbers is even, because each is twice another. Question: what is 2 + 2? Answer: 4.\n"
CONTEXT = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    tokenizer = train_tokenizer([PROSE] * 20, 300, folder / "tokenizer")
    config = ModelConfig(
        len(tokenizer),
        32,
        2,
        heads=2,
        kv_heads=1,
        head_dim=16,
        ffn_dim=48,
        max_positions=CONTEXT,
        initializer_range=0.3,
    )
    save_huggingface(Decoder(config).init_weights(3), folder / "model", tokenizer)
    return folder / "model"


@pytest.fixture(scope="module")
def models(folder: Path) -> tuple[Any, Any]:
    from lm_eval.models.huggingface import HFLM

    # Its cache of logits is off: in 0.4.13 requests that share context + continuation[:-1] but split it at other
    # places share a row of logits, of which a shorter continuation is given the first entries instead of the last.
    theirs = HFLM(pretrained=str(folder), batch_size=1, device="cpu", dtype="float32", logits_cache=False)
    assert theirs.max_length == CONTEXT
    return MixwrightLM(folder, device="cpu", batch_tokens=100), theirs


def _instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, given, at) for at, given in enumerate(arguments)]


def test_loglikelihood(models: tuple[Any, Any]) -> None:
    ours, theirs = models
    pairs: list[tuple[Any, ...]] = [
        ("The sum of two", " even numbers"),
        ("The sum of two ", "even numbers"),  # the space moves to the continuation
        ("", "The sum"),
        (PROSE * 4, " is even, because each"),  # cut on the left
        (PROSE, "é 数 \U0001f600"),
        ("<|bos|>The sum", " of"),
        ("Question: what is 2 + 2? Answer:", " 4"),
        ("Question: what is 2 + 2? Answer:", " 5"),
    ]
    # Continuations that greedy decoding does write, so that the second value is true somewhere.
    contexts = [PROSE[:end] for end in range(8, 80, 6)]
    one = {"max_gen_toks": 1, "until": []}
    written = theirs.generate_until(
        _instances("generate_until", [(c, dict(one)) for c in contexts]), disable_tqdm=True
    )
    pairs += [(context, text) for context, text in zip(contexts, written, strict=True) if text.strip()]
    found = ours.loglikelihood(_instances("loglikelihood", pairs), disable_tqdm=True)
    wanted = theirs.loglikelihood(_instances("loglikelihood", pairs), disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], abs=2e-4)
    assert [same for _, same in found] == [same for _, same in wanted]
    assert {same for _, same in wanted} == {True, False}


@pytest.mark.parametrize("add_bos", [None, False])
def test_rolling(folder: Path, models: tuple[Any, Any], add_bos: bool | None) -> None:
    from lm_eval.models.huggingface import HFLM

    ours, theirs = models
    if add_bos is False:
        ours = MixwrightLM(folder, device="cpu", add_bos_token=False)
        theirs = HFLM(
            pretrained=str(folder), batch_size=1, device="cpu", dtype="float32", add_bos_token=False
        )
    texts = [(PROSE,), (PROSE * 7,), ("a",)] + ([("",)] if add_bos is None else [])
    found = ours.loglikelihood_rolling(_instances("loglikelihood_rolling", texts))
    wanted = theirs.loglikelihood_rolling(_instances("loglikelihood_rolling", texts), disable_tqdm=True)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_rolling_without_bos_is_our_likelihood(folder: Path) -> None:
    from curation.documents import Document
    from probes.likelihood import score_documents, tokenize_documents

    lm = MixwrightLM(folder, device="cpu", add_bos_token=False)
    texts = [PROSE, PROSE * 5]
    documents = [Document(str(at), text, "s") for at, text in enumerate(texts)]
    ours = score_documents(
        lm.model, tokenize_documents(documents, lm.tokenizer), context=CONTEXT, stride=CONTEXT
    )
    rolling = lm.loglikelihood_rolling(_instances("loglikelihood_rolling", [(text,) for text in texts]))
    assert rolling[0] == pytest.approx(-ours["nats"][0].as_py(), rel=1e-5)
    # Windows of the harness with one token of context are ours with a stride of the context.
    assert rolling[1] == pytest.approx(-ours["nats"][1].as_py(), rel=1e-5)


def test_generate_until(models: tuple[Any, Any]) -> None:
    ours, theirs = models
    plain = {"until": [], "max_gen_toks": 12, "do_sample": False}
    prompts = ["The sum of two", PROSE * 3, "Question: what is 2 + 2? Answer:"]
    whole = theirs.generate_until(
        _instances("generate_until", [(p, plain) for p in prompts]), disable_tqdm=True
    )
    stops = [text[len(text) // 2 : len(text) // 2 + 3] for text in whole if len(text) > 6]
    assert stops  # the tiny model does write something to stop at
    asked: list[tuple[Any, ...]] = [(prompt, plain) for prompt in prompts]
    asked += [(prompt, plain | {"until": [stop]}) for prompt in prompts for stop in stops]
    asked += [("The sum", {"until": "e", "max_gen_toks": 4})]
    found = ours.generate_until(_instances("generate_until", asked))
    assert found == theirs.generate_until(_instances("generate_until", asked), disable_tqdm=True)
    assert any(short != long for short, long in zip(found[3:], whole, strict=False))


def test_registered_and_bad_input(folder: Path, models: tuple[Any, Any]) -> None:
    from lm_eval.api.registry import get_model

    assert get_model("mixwright") is MixwrightLM
    lm = get_model("mixwright").create_from_arg_string(
        f"pretrained={folder},max_length=16", {"device": "cpu"}
    )
    assert lm.max_length == 16
    with pytest.raises(RecipeError, match="num_beams"):
        lm.generate_until(_instances("generate_until", [("a", {"num_beams": 4, "max_gen_toks": 4})]))
    with pytest.raises(DataError, match="continuation has"):
        lm.loglikelihood(_instances("loglikelihood", [("a", PROSE * 2)]))
    with pytest.raises(RecipeError, match="no room"):
        lm.generate_until(_instances("generate_until", [("a", {"max_gen_toks": 16})]))
