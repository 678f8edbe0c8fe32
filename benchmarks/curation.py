"""Curation against its opponents: `python -m benchmarks.curation [--write] [section ...]`; all sections by default."""

from __future__ import annotations

import argparse
import importlib
import inspect
from pathlib import Path

SECTIONS = {
    "selection": "benchmarks.curation_scale:selection",
    "overhead": "benchmarks.curation_scale:overhead",
    "classifier": "benchmarks.curation_models:classifier",
    "recheck": "benchmarks.curation_recheck:recheck",
    "embedding": "benchmarks.curation_embedding:embedding",
    "deduplication": "benchmarks.curation_dedup:deduplication",
    "clusters": "benchmarks.curation_dedup:clusters",
    "templated": "benchmarks.curation_templates:templated",
    "classifiers": "benchmarks.curation_classifiers:classifiers",
    "quality": "benchmarks.curation_classifiers:held_out",
    "judges": "benchmarks.curation_classifiers:bfloat16_judges",
    "decontamination": "benchmarks.decontamination:decontamination",
    "tokens": "benchmarks.training_tokens:tokenisation",
    "funnel": "benchmarks.curation_funnel:funnel",
}
"""Section -> `module:function`, imported when it is asked for; the function takes `write: bool`."""


def main() -> None:
    """Run the sections named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--model", type=Path, help="folder of the embedder of the section `embedding`")
    parser.add_argument("--model-name", help="what the page calls that embedder")
    parser.add_argument(
        "--scratch", type=Path, help="where long sections keep what they have computed, to go on from"
    )
    parser.add_argument("--documents", type=int, help="how many documents such a section takes")
    parser.add_argument("sections", nargs="*", help=f"any of {', '.join(SECTIONS)}")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"there is no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    for section in arguments.sections or SECTIONS:
        module, function = SECTIONS[section].split(":")
        work = getattr(importlib.import_module(module), function)
        given = {
            "model": arguments.model,
            "model_name": arguments.model_name,
            "scratch": arguments.scratch / section if arguments.scratch else None,
            "documents": arguments.documents,
        }
        taken = inspect.signature(work).parameters
        work(write=arguments.write, **{k: v for k, v in given.items() if v is not None and k in taken})


if __name__ == "__main__":
    main()
