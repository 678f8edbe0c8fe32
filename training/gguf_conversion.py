"""A model folder as GGUF, by llama.cpp's own `convert_hf_to_gguf.py`, which is run and never part of this package.

The converter knows the rule by which a tokenizer cuts text into words from a hash of what it makes of a sample, so
that it knows no tokenizer trained on one's own corpora. The rule of ours is Qwen2's, for which llama.cpp has a name;
here the converter is told that name where the folder's tokenizer.json has exactly that rule. Any other tokenizer is
left to the converter.

This file is also the program that runs the converter: `python -m training.gguf_conversion CONVERTER RULE
ARGUMENTS...`, where an empty RULE leaves the tokenizer to it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from curation.errors import DataError, MachineError, RecipeError

CONVERTER, CONVERTER_VARIABLE = "convert_hf_to_gguf.py", "LLAMA_CPP_CONVERTER"
OUTPUT_TYPES = ("f32", "f16", "bf16", "q8_0", "auto")
RULE = "qwen2"
"""llama.cpp's name of the expression of training.tokenizer.SPLIT (LLAMA_VOCAB_PRE_TYPE_QWEN2, llama-vocab.cpp)."""


def find_converter(given: Path | str | None = None) -> Path:
    """The converter: as given, of $LLAMA_CPP_CONVERTER, or on the path. MachineError when there is none."""
    named = given or os.environ.get(CONVERTER_VARIABLE) or shutil.which(CONVERTER)
    if named is None or not Path(named).is_file():
        raise MachineError(
            f"llama.cpp's {CONVERTER} is not {'there' if named else 'on the path'}",
            where=str(named or CONVERTER_VARIABLE),
            remedy=f"Clone llama.cpp and name the file in ${CONVERTER_VARIABLE} or with --converter",
        )
    return Path(named)


def convert_to_gguf(
    folder: Path | str, out: Path | str, *, converter: Path | str | None = None, output_type: str = "auto"
) -> Path:
    """Write the model folder `folder` to the file `out` and return its path.

    output_type : f32, f16, bf16, q8_0, or auto, the converter's choice of a 16-bit type
    Raises RecipeError for another type, DataError for no model folder and with what the converter said, MachineError
    without a converter.
    """
    if output_type not in OUTPUT_TYPES:
        raise RecipeError(
            f"There is no output type {output_type!r}",
            where="output type",
            remedy=f"Choose of {', '.join(OUTPUT_TYPES)}",
        )
    program = find_converter(converter)
    if not (Path(folder) / "config.json").is_file():
        raise DataError(
            "This is not a model folder: it has no config.json",
            where=str(folder),
            remedy="Give a folder written by mixwright train, sft or grpo, or of the hub",
        )
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The converter writes in place; nothing half written stays under the name that was asked for.
    temporary = path.with_name(f".{path.name}.part")
    command = [sys.executable, "-m", "training.gguf_conversion", str(program.resolve())]
    command += [RULE if has_our_rule(folder) else "", str(Path(folder).resolve())]
    command += ["--outfile", str(temporary.resolve()), "--outtype", output_type]
    root = str(Path(__file__).parents[1])
    searched = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": searched}
        )
        if done.returncode or not temporary.is_file():
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise DataError(
                f"The converter failed: {said[-1] if said else 'without a word'}",
                where=str(folder),
                remedy="A missing module is one of llama.cpp's requirements.txt; else look into what it prints when "
                f"run by hand: {shlex.join(command)}",
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def has_our_rule(folder: Path | str) -> bool:
    """Whether the folder's tokenizer cuts text as those of training.tokenizer do."""
    from training.tokenizer import SPLIT  # here, because it imports transformers

    try:
        described = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    steps = (described.get("pre_tokenizer") or {}).get("pretokenizers") or []
    if described.get("normalizer") is not None or [step.get("type") for step in steps] != [
        "Split",
        "ByteLevel",
    ]:
        return False
    split, letters = steps
    whole = split.get("pattern") == {"Regex": SPLIT} and split.get("behavior") == "Isolated"
    return whole and not (split.get("invert") or letters.get("add_prefix_space") or letters.get("use_regex"))


def _run_converter(program: Path, rule: str, arguments: list[str]) -> None:
    """The converter's main function, told the rule of the tokenizer where there is one."""
    sys.argv = [str(program), *arguments]
    # Beside it are its own modules; ours must not be found before theirs.
    sys.path[:0] = [str(program.parent)]
    described = importlib.util.spec_from_file_location("convert_hf_to_gguf", program)
    if described is None or described.loader is None:
        raise MachineError("The converter is not a Python file", where=str(program))
    module = importlib.util.module_from_spec(described)
    sys.modules["convert_hf_to_gguf"] = module
    described.loader.exec_module(module)
    # One file until 2025, a package of modules since.
    holder: Any = sys.modules.get("conversion.base", module)
    if rule:
        holder.TextModel.get_vocab_base_pre = lambda self, tokenizer: rule
    module.main()


if __name__ == "__main__":
    _run_converter(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
