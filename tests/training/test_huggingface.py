"""Hugging Face folders: transformers' own classes are the oracle, in both directions."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from curation.atomic import hash_folder
from curation.errors import DataError
from training.huggingface import load_huggingface, read_generation, save_huggingface
from training.huggingface_config import config_from_huggingface, config_to_huggingface
from training.model import PRESETS, Decoder, ModelConfig
from training.tokenizer import train_tokenizer

SIZES = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LLAMA4 = {
    "intermediate_size_mlp": 48,
    "head_dim": 8,
    "no_rope_layers": [1, 1, 1],
    "moe_layers": [],
    "interleave_moe_layer_step": 0,
    "attention_chunk_size": 64,
    "attn_temperature_tuning": False,
    "tie_word_embeddings": True,
}
# name: class of transformers, entries of its config
THEIRS = {
    "mobilellm_r1": ("Llama4", LLAMA4),
    "mobilellm_r1_untied": ("Llama4", LLAMA4 | {"tie_word_embeddings": False}),
    "llama4_without_qk_norm": ("Llama4", LLAMA4 | {"use_qk_norm": False}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3_ROPE, "head_dim": 16}),
    "llama_linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "smollm2": ("Llama", {"tie_word_embeddings": True, "rope_theta": 100000.0}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2_untied": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
}


def theirs(name):
    """A small random model of transformers, gains and biases made uneven so that none can be forgotten."""
    kind, entries = THEIRS[name]
    config_class = getattr(transformers, f"{kind}TextConfig" if kind == "Llama4" else f"{kind}Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config_class(**(SIZES | entries))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def ids(rows=2, tokens=40):
    return torch.randint(0, SIZES["vocab_size"], (rows, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", THEIRS)
@torch.no_grad()
def test_round_trip(name, tmp_path):
    original = theirs(name)
    original.save_pretrained(tmp_path / "theirs")
    model = load_huggingface(tmp_path / "theirs")
    expected = original(ids()).logits
    assert expected.std() > 0.05
    for model.attention in ("eager", "sdpa", "auto"):
        torch.testing.assert_close(model.logits(model(ids())), expected, rtol=1e-5, atol=2e-6)

    save_huggingface(model, tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(again) is type(original)
    assert again.dtype == torch.float32
    before, after = original.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(again(ids()).logits, expected)
    stored, written = (load_file(tmp_path / f / "model.safetensors") for f in ("theirs", "ours"))
    assert stored.keys() == written.keys()

    reloaded = load_huggingface(tmp_path / "ours")
    assert reloaded.config == model.config
    save_huggingface(reloaded, tmp_path / "third")
    assert hash_folder(tmp_path / "third") == hash_folder(tmp_path / "ours")


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_model_of_ours_is_the_same_in_transformers(tied, tmp_path):
    config = ModelConfig(67, 32, 2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, max_positions=64, tied=tied)
    model = Decoder(config).init_weights(1)
    save_huggingface(model, tmp_path / "model")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(exported(ids()).logits, model.logits(model(ids())), rtol=1e-5, atol=2e-6)
    assert exported.num_parameters() == config.parameters()
    # decoding goes the same way, token for token
    sampled = exported.generate(
        ids(1, 5), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    row = ids(1, 5)
    cache, following = model.new_cache(1, 13), row
    for _ in range(8):
        following = model.logits(model(following, cache=cache)[:, -1]).argmax(-1, keepdim=True)
        row = torch.cat((row, following), 1)
    assert sampled.tolist() == row.tolist()


def test_presets_are_the_released_configs():
    """The entries that METHODS lists for the released MobileLLM-R1, read back into the same preset."""
    for config in PRESETS.values():
        described = config_to_huggingface(config)
        assert config_from_huggingface(described) == config
        assert described["no_rope_layers"] == [1] * config.layers
        assert (described["moe_layers"], described["interleave_moe_layer_step"]) == ([], 0)
        assert described["attention_chunk_size"] == config.max_positions
        assert transformers.Llama4TextConfig(**described).no_rope_layers == [1] * config.layers


@pytest.mark.parametrize(
    ("described", "parameters"),
    [
        (
            {  # HuggingFaceTB/SmolLM2-135M
                "model_type": "llama",
                "architectures": ["LlamaForCausalLM"],
                "vocab_size": 49152,
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "tie_word_embeddings": True,
                "rope_interleaved": False,
                "rope_scaling": None,
                "rope_theta": 100000,
            },
            134_515_008,
        ),
        (
            {  # Qwen/Qwen2.5-0.5B
                "model_type": "qwen2",
                "vocab_size": 151936,
                "hidden_size": 896,
                "intermediate_size": 4864,
                "num_hidden_layers": 24,
                "num_attention_heads": 14,
                "num_key_value_heads": 2,
                "tie_word_embeddings": True,
                "use_sliding_window": False,
                "sliding_window": 32768,
                "rope_theta": 1000000.0,
            },
            494_032_768,
        ),
        (
            {  # Qwen/Qwen3-0.6B
                "model_type": "qwen3",
                "vocab_size": 151936,
                "hidden_size": 1024,
                "intermediate_size": 3072,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "tie_word_embeddings": True,
                "attention_bias": False,
            },
            596_049_920,
        ),
        (
            {  # meta-llama/Llama-3.2-1B
                "model_type": "llama",
                "vocab_size": 128256,
                "hidden_size": 2048,
                "intermediate_size": 8192,
                "num_hidden_layers": 16,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 64,
                "tie_word_embeddings": True,
                "rope_theta": 500000.0,
                "rope_scaling": LLAMA3_ROPE | {"factor": 32.0, "original_max_position_embeddings": 8192},
            },
            1_235_814_400,
        ),
    ],
)
def test_known_checkpoints_have_their_known_sizes(described, parameters):
    assert config_from_huggingface(described).parameters() == parameters


RELEASED_360M = {
    # The config of facebook/MobileLLM-R1-360M as others have transcribed it, with entries that its class ignores.
    "architectures": ["Llama4ForCausalLM"],
    "model_type": "llama4_text",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "head_dim": 64,
    "hidden_size": 1024,
    "num_hidden_layers": 15,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 4096,
    "intermediate_size_mlp": 4096,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "use_qk_norm": True,
    "rope_theta": 8000000.0,
    "rope_scaling": None,
    "max_position_embeddings": 32768,
    "no_rope_layers": [1] * 15,
    "attention_chunk_size": 32768,
    "attn_temperature_tuning": False,
    "attn_scale": 0.1,
    "floor_scale": 8192,
    "moe_layers": [],
    "interleave_moe_layer_step": 0,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "sliding_window": 512,
    "layer_types": ["chunked_attention"] * 15,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
}


def test_the_released_config_is_the_preset_with_its_longer_context():
    config = config_from_huggingface(RELEASED_360M)
    assert config == replace(PRESETS["mobilellm-r1-360m"], rope_theta=8e6, max_positions=32768)
    assert config.parameters() == 359_431_168
    for trap in ("no_rope_layers", "interleave_moe_layer_step", "moe_layers"):
        # Left out, transformers' own defaults put position-free layers or experts in its place.
        silent = {key: value for key, value in RELEASED_360M.items() if key != trap}
        if trap == "moe_layers":
            silent["interleave_moe_layer_step"] = 1
        if trap == "interleave_moe_layer_step":
            silent["moe_layers"] = None
        with pytest.raises(DataError, match="which this decoder does not have"):
            config_from_huggingface(silent)


@torch.no_grad()
def test_the_traps_of_mobilellm_r1_change_its_logits(tmp_path):
    """Each wrong reading loads the same weights without a word, and answers otherwise."""
    original = theirs("mobilellm_r1")
    original.save_pretrained(tmp_path)
    expected, model = original(ids()).logits, load_huggingface(tmp_path)
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if "q_norm" in name or "k_norm" in name], "its QK-norm has no weights"
    right = model.config
    for wrong in (
        replace(right, family="llama", rope_style="half", qk_norm="none"),
        replace(right, qk_norm="none"),
        replace(right, rope_theta=1e4),
    ):
        other = Decoder(wrong)
        other.load_state_dict(model.state_dict())
        assert (other.logits(other(ids())) - expected).abs().max() > 1e-2
    for layer in range(3):  # a layer without positions, as no_rope_layers = None would make it
        stored = json.loads((tmp_path / "config.json").read_text())
        stored["no_rope_layers"] = [int(i != layer) for i in range(3)]
        changed = transformers.Llama4ForCausalLM.from_pretrained(
            tmp_path, config=transformers.Llama4TextConfig(**stored)
        ).eval()
        assert (changed(ids()).logits - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["mobilellm_r1", "qwen2_untied"])
@torch.no_grad()
def test_shards_are_written_with_an_index_that_transformers_reads(name, tmp_path):
    original = theirs(name)
    original.save_pretrained(tmp_path / "theirs")
    model = load_huggingface(tmp_path / "theirs")
    save_huggingface(model, tmp_path / "ours", shard_bytes=20_000)
    files = sorted(path.name for path in (tmp_path / "ours").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert max((tmp_path / "ours" / file).stat().st_size for file in files) < 22_000
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    before, after = original.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    reread = load_huggingface(tmp_path / "ours")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reread.parameters(), strict=True))


def test_generation_settings_and_added_tokens_survive_the_round_trip(tmp_path):
    tokenizer = train_tokenizer(["a few words to learn from"] * 3, 280, tmp_path / "tokenizer")
    tokenizer.add_tokens(["<|tool|>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eom|>", "<|eot|>"]})
    ends = tokenizer.convert_tokens_to_ids(["<|eos|>", "<|eom|>", "<|eot|>"])
    config = ModelConfig(288, 16, 1, heads=2, kv_heads=1, head_dim=8, ffn_dim=16)
    model = Decoder(config).init_weights(0)
    asked = {"eos_token_id": ends, "temperature": 0.6, "top_p": 0.95, "do_sample": True}
    save_huggingface(model, tmp_path / "one", tokenizer, asked)
    found = read_generation(tmp_path / "one")
    assert found == asked | {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "one")
    save_huggingface(load_huggingface(tmp_path / "one"), tmp_path / "two", reloaded, found)
    assert hash_folder(tmp_path / "one") == hash_folder(tmp_path / "two")
    generation = GenerationConfig.from_pretrained(tmp_path / "two")
    assert generation.eos_token_id == ends and generation.top_p == 0.95
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "two").config.eos_token_id == ends
    assert reloaded.chat_template == tokenizer.chat_template and reloaded.encode("<|tool|><|eot|>")[1:] == [
        *tokenizer.convert_tokens_to_ids(["<|tool|>", "<|eot|>"])
    ]
    reloaded.eos_token = "<|tool|>"  # a new end joins the old ones
    save_huggingface(model, tmp_path / "three", reloaded, found)
    new = reloaded.convert_tokens_to_ids("<|tool|>")
    assert read_generation(tmp_path / "three")["eos_token_id"] == [new, *ends]
    (tmp_path / "two" / "generation_config.json").unlink()
    assert read_generation(tmp_path / "two")["eos_token_id"] == ends, "config.json has them too"


def test_half_precision_and_shards(tmp_path):
    original = theirs("smollm2").to(torch.bfloat16)
    original.save_pretrained(tmp_path / "theirs", max_shard_size="10KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    model = load_huggingface(tmp_path / "theirs")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in model.parameters())
    save_huggingface(model, tmp_path / "ours", dtype=torch.bfloat16)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert again.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(original.parameters(), again.parameters(), strict=True))


def test_tokenizer_and_generation_settings_go_along(tmp_path):
    tokenizer = train_tokenizer(["a few words to learn from"] * 3, 280, tmp_path / "tokenizer")
    model = Decoder(ModelConfig(280, 16, 1, heads=2, kv_heads=1, head_dim=8, ffn_dim=16)).init_weights(0)
    save_huggingface(model, tmp_path / "model", tokenizer, {"temperature": 0.6, "do_sample": True})
    assert AutoTokenizer.from_pretrained(tmp_path / "model").get_vocab() == tokenizer.get_vocab()
    generation = GenerationConfig.from_pretrained(tmp_path / "model")
    assert (generation.eos_token_id, generation.temperature) == (tokenizer.eos_token_id, 0.6)
    assert (
        AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.pad_token_id == tokenizer.pad_token_id
    )
    small = Decoder(replace(model.config, vocab_size=100))
    with pytest.raises(DataError, match="the model only 100"):
        save_huggingface(small, tmp_path / "small", tokenizer)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        (
            "smollm2",
            {"model_type": "gpt2"},
            "of type 'gpt2'.*Supported are dense Llama4ForCausalLM, LlamaFor",
        ),
        ("smollm2", {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ("smollm2", {"hidden_act": "gelu"}, "'gelu'"),
        ("smollm2", {"attention_bias": True}, "biases"),
        ("smollm2", {"quantization_config": {"bits": 4}}, "quantised"),
        ("smollm2", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ("smollm2", {"hidden_size": None}, "lacks hidden_size"),
        ("smollm2", {"vocab_size": 70}, r"embed_tokens.*\[67, 32\], but config.json implies \[70, 32\]"),
        ("smollm2", {"num_hidden_layers": 4}, "lack layers.3.input_layernorm.weight, .* and 6 more"),
        ("smollm2", {"num_hidden_layers": 2}, "more than the decoder has: layers.2"),
        ("smollm2", {"tie_word_embeddings": False}, "lack lm_head.weight"),
        ("qwen2", {"use_sliding_window": True}, "sliding-window"),
        ("mobilellm_r1", {"no_rope_layers": None}, "without rotary positions"),
        ("mobilellm_r1", {"moe_layers": [1]}, "mixture of experts"),
        ("mobilellm_r1", {"moe_layers": None, "interleave_moe_layer_step": 1}, "mixture of experts"),
        ("mobilellm_r1", {"attention_chunk_size": 32}, "chunked attention"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_a_sentence(name, changes, sentence, tmp_path):
    theirs(name).save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(DataError, match=sentence):
        load_huggingface(tmp_path)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(DataError, match=r"no config\.json"):
        load_huggingface(tmp_path)
    theirs("smollm2").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        load_huggingface(tmp_path)
    weights.unlink()
    with pytest.raises(DataError, match=r"model\.safetensors is missing"):
        load_huggingface(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    save_file({"x": torch.zeros(1)}, tmp_path.parent / "elsewhere.safetensors")
    index.write_text(json.dumps({"weight_map": {"x": "../elsewhere.safetensors"}}))
    with pytest.raises(DataError, match=r"elsewhere\.safetensors is missing"):
        load_huggingface(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        load_huggingface(tmp_path)
