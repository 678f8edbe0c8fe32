"""The quickstart, shrunk until a test can afford it: every stage, on real text, at toy size."""

from pathlib import Path
from typing import Any

import yaml

from recipes.load import built_in_recipes

SMALLER: dict[str, Any] = {
    "name": "miniature",
    "workers": 2,
    "tokenizer": {"vocabulary": 512, "sample_megabytes": 0.1},
    "probes": {
        "share": 0.5,
        "maximum_documents": 4,
        "test_share": 0.2,
        "maximum_test_documents": 4,
        "context": 64,
        "stride": 64,
        "resamples": 50,
    },
    "model": {"layers": 1, "dim": 32, "heads": 2, "kv_heads": 1, "ffn_dim": 64, "max_positions": 256},
    "doremi": {"eta": 0.5},
    "comparison": {"mixtures": ["uniform", "influence", "leave_one_out"], "seeds": [101, 102]},
}
SMALLER_INSIDE: dict[str, dict[str, Any]] = {
    "curation": {"representative_documents": 12},
    "proxy": {
        "tokens": 4096,
        "sequence_tokens": 64,
        "batch_sequences": 8,
        "evaluations": 2,
        "resume_every": 3,
    },
    "influence": {"checkpoints": 2, "documents_per_source": 4, "probe_documents": 4, "context": 64},
    "final": {"tokens": 8192, "sequence_tokens": 64, "batch_sequences": 8, "resume_every": 3},
}


def miniature_recipe(folder: Path) -> Path:
    """Write the miniature recipe into `folder` and return its path."""
    recipe = yaml.safe_load(built_in_recipes()["quickstart"].read_text(encoding="utf-8"))
    recipe |= SMALLER
    for block, changes in SMALLER_INSIDE.items():
        recipe[block] |= changes
    for source in recipe["sources"]:
        source["max_megabytes"] = 0.05
    curation = recipe["curation"]
    curation["piece_bytes"] = 800
    curation["deduplication"]["dimensions"] = 16
    curation["judge"]["context"] = 64
    curation["raters"] |= {"examples": 48, "context": 64, "dim": 32, "layers": 1, "epochs": 1, "batch": 8}
    recipe["post_training"] = {
        "sft": {
            "data": "generated",
            "examples": 32,
            "epochs": 1,
            "sequence_tokens": 128,
            "batch_sequences": 8,
        },
        "grpo": {
            "data": "generated",
            "steps": 2,
            "prompts_per_step": 2,
            "group": 4,
            "thinking_tokens": 8,
            "answer_tokens": 4,
            "held_out": 4,
        },
    }
    file = folder / "miniature.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return file
