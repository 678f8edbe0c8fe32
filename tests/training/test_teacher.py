"""Teachers: their logits are transformers' on every document apart, and other vocabularies are refused."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace, WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from curation.errors import DataError, MachineError
from tests.training.post_training_models import tiny_config, tiny_tokenizer
from training.huggingface import save_huggingface
from training.model import Decoder
from training.same_tokenizer import check_same_tokenizer, check_teachers_tokenizer
from training.teacher import forward_flops, hash_teacher, load_teacher, resolve_teacher
from training.tokens import hash_tokenizer

V = 24
CPU = torch.device("cpu")
SMALL = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def folder_of(kind, tmp_path):
    """A tiny random model of transformers' own making."""
    torch.manual_seed(3)
    if kind == "ours":
        save_huggingface(Decoder(tiny_config()).init_weights(3), tmp_path, tiny_tokenizer())
        return tmp_path
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    elif kind == "bloom":  # ALiBi: positions cannot be handed in
        config = transformers.BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=2)
    elif kind == "phi":  # a bias on the output layer
        config = transformers.PhiConfig(**SMALL, intermediate_size=48, tie_word_embeddings=False)
    elif kind == "llama_bias":  # not one of our decoder's families: biases in attention
        config = transformers.LlamaConfig(**SMALL, intermediate_size=48, attention_bias=True)
    else:
        config = transformers.LlamaConfig(
            **SMALL, num_key_value_heads=1, intermediate_size=48, tie_word_embeddings=False
        )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(tmp_path)
    return tmp_path


def packed_batch():
    """Two rows of 20 tokens: documents of 7, 1 and 12 tokens, and one of 20."""
    documents = torch.tensor([[0] * 7 + [1] + [2] * 12, [0] * 20])
    positions = torch.tensor([[*range(7), 0, *range(12)], list(range(20))])
    tokens = torch.randint(0, 20, (2, 20), generator=torch.Generator().manual_seed(1))
    return tokens, positions, documents


@pytest.mark.parametrize("kind", ["ours", "llama", "llama_bias", "gpt2", "bloom", "phi"])
def test_packed_documents_get_the_logits_they_get_alone_in_transformers(kind, tmp_path):
    folder = folder_of(kind, tmp_path)
    vocabulary = 20
    teacher = load_teacher(folder, vocabulary=vocabulary, device=CPU, precision="float32")
    assert isinstance(teacher.model, Decoder) == (kind in ("ours", "llama"))
    assert teacher.packs == (kind != "bloom")
    assert teacher.cut == (0 if kind == "ours" else V - vocabulary)
    tokens, positions, documents = packed_batch()
    logits = teacher.hidden(tokens, positions, documents) @ teacher.weight.T
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for row in range(2):
        for document in documents[row].unique():
            at = documents[row] == document
            with torch.no_grad():
                alone = theirs(tokens[row, at][None]).logits[0, :, :vocabulary]
            torch.testing.assert_close(logits[row, at], alone, rtol=1e-4, atol=1e-4)
    if kind == "llama":  # they must really be apart: unpacked context would change the third document
        with torch.no_grad():
            seen = theirs(tokens[:1]).logits[0, -12:, :vocabulary]
        assert (seen - logits[0, -12:]).abs().max() > 0.1


def test_bfloat16_teachers_are_near_float32_ones(tmp_path):
    folder = folder_of("ours", tmp_path)
    wide, narrow = (
        load_teacher(folder, vocabulary=20, device=CPU, precision=p) for p in ("float32", "bfloat16")
    )
    assert narrow.weight.dtype == torch.bfloat16
    batch = packed_batch()
    exact = wide.hidden(*batch) @ wide.weight.T
    with torch.autocast("cpu", torch.bfloat16):  # the student's autocast does not touch a float32 teacher
        assert wide.hidden(*batch).dtype == torch.float32
    near = (narrow.hidden(*batch) @ narrow.weight.T).float()
    assert (near - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_model_that_does_more_than_a_product_is_refused(tmp_path):
    config = transformers.CohereConfig(**SMALL, intermediate_size=48, logit_scale=0.5)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="does not make its logits as hidden states times"):
        load_teacher(tmp_path, vocabulary=20, device=CPU, precision="float32")


def test_bad_teachers_are_sentences(tmp_path):
    with pytest.raises(DataError, match="has 24 tokens, the student's 25"):
        load_teacher(folder_of("llama", tmp_path / "a"), vocabulary=25, device=CPU, precision="float32")
    folder = folder_of("ours", tmp_path / "b")
    before = hash_teacher(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert hash_teacher(folder) != before
    teacher = load_teacher(folder, vocabulary=20, device=CPU, precision="float32")
    with pytest.raises(DataError, match="not finite"):
        teacher.hidden(*packed_batch())
    with pytest.raises(DataError, match="holds no Hugging Face model"):
        hash_teacher(tmp_path)
    with pytest.raises(MachineError, match="neither a folder nor a model"):
        resolve_teacher("no folder, and no name that a hub could have")


def test_flops_of_a_forward_pass(tmp_path):
    ours = tiny_config()
    assert forward_flops(folder_of("ours", tmp_path / "a"), 64) == ours.flops_per_token(64) / 3
    gpt2 = folder_of("gpt2", tmp_path / "b")
    numbers = sum(t.numel() for t in load_file(gpt2 / "model.safetensors").values())
    assert forward_flops(gpt2, 64) == 2 * numbers


def words(names, splitter=WhitespaceSplit, **special):
    model = Tokenizer(WordLevel({word: at for at, word in enumerate(names)}, unk_token="u"))
    model.pre_tokenizer = splitter()
    return PreTrainedTokenizerFast(tokenizer_object=model, bos_token="b", eos_token="e", **special)


def test_tokenizers_are_compared_by_what_they_do(tmp_path):
    base = words(["u", "b", "e", "fox", "dogs", "!"])
    check_same_tokenizer(base, words(["u", "b", "e", "fox", "dogs", "!"]), "teacher")
    with pytest.raises(DataError, match=r"'dogs' is number 4 in the student's, number 3 in the teacher's"):
        check_same_tokenizer(base, words(["u", "b", "e", "dogs", "fox", "!"]), "teacher")
    with pytest.raises(DataError, match="'cat' is missing in the student's, number 6"):
        check_same_tokenizer(base, words(["u", "b", "e", "fox", "dogs", "!", "cat"]), "teacher")
    with pytest.raises(DataError, match="differently"):
        check_same_tokenizer(base, words(["u", "b", "e", "fox", "dogs", "!"], Whitespace), "teacher")
    added = words(["u", "b", "e", "fox", "dogs", "!"])
    added.add_tokens(["fox"])
    with pytest.raises(DataError, match="'fox' is an added one"):
        check_same_tokenizer(base, added, "teacher")


def test_the_datas_tokenizer_decides(tmp_path):
    base = words(["u", "b", "e", "fox", "dogs", "!"])
    base.save_pretrained(tmp_path / "student")
    base.save_pretrained(tmp_path / "same")
    other = words(["u", "b", "e", "fox", "dogs", "!"])
    other.eos_token = "b"  # an instruct model ends its documents otherwise; its tokens are the same
    other.save_pretrained(tmp_path / "instruct")
    words(["u", "b", "e", "dogs", "fox", "!"]).save_pretrained(tmp_path / "swapped")
    wanted = hash_tokenizer(base)
    check_teachers_tokenizer(tmp_path / "same", wanted, None)
    check_teachers_tokenizer(tmp_path / "instruct", wanted, tmp_path / "student")
    with pytest.raises(DataError, match="not, to the byte"):
        check_teachers_tokenizer(tmp_path / "instruct", wanted, None)
    with pytest.raises(DataError, match="not the student's"):
        check_teachers_tokenizer(tmp_path / "swapped", wanted, tmp_path / "student")
    with pytest.raises(DataError, match="not the tokenizer that the data"):
        check_teachers_tokenizer(tmp_path / "instruct", wanted, tmp_path / "swapped")
