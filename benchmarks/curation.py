"""Curation against its opponents: `python -m benchmarks.curation [--write] [section ...]`; all sections by default."""

from __future__ import annotations

import argparse
import importlib

SECTIONS = {
    "selection": "benchmarks.curation_scale:selection",
    "overhead": "benchmarks.curation_scale:overhead",
    "classifier": "benchmarks.curation_models:classifier",
    "embedding": "benchmarks.curation_models:embedding",
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
    parser.add_argument("sections", nargs="*", help=f"any of {', '.join(SECTIONS)}")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"there is no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    for section in arguments.sections or SECTIONS:
        module, function = SECTIONS[section].split(":")
        getattr(importlib.import_module(module), function)(write=arguments.write)


if __name__ == "__main__":
    main()
