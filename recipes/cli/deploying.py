"""The command about models elsewhere: gguf."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recipes.cli import app
from recipes.cli.output import JsonOption, print_json, say


@app.command("gguf")
def gguf(
    model: Annotated[Path, typer.Argument(help="A Hugging Face model folder with its tokenizer.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    output_type: Annotated[
        str, typer.Option("--type", help="Of the weights: f32, f16, bf16, q8_0 or auto.")
    ] = "auto",
    converter: Annotated[
        Path | None,
        typer.Option(help="llama.cpp's convert_hf_to_gguf.py; $LLAMA_CPP_CONVERTER or the path else."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a model folder to GGUF with llama.cpp's own converter."""
    from training.gguf_conversion import convert_to_gguf

    written = convert_to_gguf(model, out, converter=converter, output_type=output_type)
    if as_json:
        print_json({"file": str(written), "bytes": written.stat().st_size})
        return
    say(f"  Written: {written}, {written.stat().st_size / 1e6:,.1f} MB")
