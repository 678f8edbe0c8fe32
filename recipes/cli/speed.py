"""The command about how fast a model decodes: speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from curation.errors import RecipeError
from recipes.cli import app
from recipes.cli.output import JsonOption, print_json, print_table, say


@app.command("speed")
def speed(
    model: Annotated[Path, typer.Argument(help="A Hugging Face model folder.")],
    contexts: Annotated[
        str, typer.Option(help="Context lengths in tokens, with commas.")
    ] = "1024,2048,4096,8192,16384,32768",
    precision: Annotated[
        str, typer.Option(help="Of float32, bf16, int8, 8da8w, 8da4w, 8da4w-32, 8da4w-128, with commas.")
    ] = "float32,bf16,int8,8da4w",
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Documents to score in each precision: bits per byte.")
    ] = None,
    documents: Annotated[int, typer.Option(min=1, help="How many of them.")] = 32,
    decode_tokens: Annotated[int, typer.Option(min=1, help="Tokens decoded in each repeat.")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Counted repeats of each cell.")] = 3,
    prefill_seconds: Annotated[float, typer.Option(help="Most seconds for reading a prompt.")] = 20.0,
    memory_gb: Annotated[
        float | None, typer.Option(help="Skip what would not fit so much: the memory of a smaller machine.")
    ] = None,
    beyond_positions: Annotated[
        bool,
        typer.Option("--beyond-positions", help="Measure contexts that the model was not made for, too."),
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the CPU; torch's by default.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for speed.json; that of an evaluation shows it on its page."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tokens a second and memory of decoding, by context length and precision."""
    import torch

    from curation.atomic import write_json
    from curation.readers import read_files
    from probes.decoding_speed import SpeedSettings, measure_speed
    from probes.side_by_side import SPEED
    from probes.task_scoring import named_device
    from training.tokenizer import load_tokenizer

    settings = SpeedSettings(
        contexts=_lengths(contexts),
        precisions=tuple(name.strip() for name in precision.split(",") if name.strip()),
        decode_tokens=decode_tokens,
        repeats=repeats,
        prefill_seconds=prefill_seconds,
        memory_bytes=None if memory_gb is None else int(memory_gb * 1e9),
        beyond_positions=beyond_positions,
    )
    place = named_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    texts = read_files([text])[0][:documents] if text else []

    def keep(found: dict[str, Any]) -> None:
        if out is not None:
            write_json(out / SPEED, {"model": model.resolve().name} | found)

    found = measure_speed(
        model,
        settings,
        texts=texts,
        tokenizer=load_tokenizer(model) if texts else None,
        device=place,
        report=keep,
    )
    keep(found)
    if as_json:
        print_json({"model": model.resolve().name} | found)
        return
    _show(found)
    if out is not None:
        say(f"  Written: {out / SPEED}")


def _show(found: dict[str, Any]) -> None:
    for row in found["precisions"]:
        if "skipped" in row:
            say(f"  {row['name']} is left out: {row['skipped']}")
            continue
        cells = [_line(cell) for cell in row["cells"]]
        columns = {
            "context": "Context",
            "decode": "Tokens/s [low, high]",
            "prefill": "Prefill",
            "cache": "KV cache",
        }
        weights = f"{row['weight_bytes'] / 1e6:,.1f} MB of weights, {row['packed_bytes'] / 1e6:,.1f} packed"
        print_table(f"{row['name']}: {weights}", cells, columns | {"peak": "Peak"})
        for cell in row["cells"]:
            if "skipped" in cell:
                say(f"  {cell['context']:,}: {cell['skipped']}")
        moved = row.get("bits_per_byte")
        if moved:
            say(
                f"  {moved['value']:.4f} bits per byte, {moved['difference']:+.4f} [{moved['low']:+.4f}, "
                f"{moved['high']:+.4f}] to {found['precisions'][0]['name']}"
            )


def _line(cell: dict[str, Any]) -> dict[str, Any]:
    cache = f"{cell['kv_cache_bytes'] / 1e6:,.1f} MB"
    if "skipped" in cell:
        return {
            "context": cell["context"],
            "decode": "skipped",
            "prefill": None,
            "cache": cache,
            "peak": None,
        }
    decode, prefill = cell["decode"], cell["prefill"]
    read = "" if prefill["tokens"] > cell["context"] / 2 else f" ({prefill['tokens']:,} read)"
    peak = cell["peak_bytes"]
    return {
        "context": cell["context"],
        "decode": f"{decode['median']:,.1f} [{decode['low']:,.1f}, {decode['high']:,.1f}]",
        "prefill": f"{prefill['tokens_per_second']:,.0f}{read}",
        "cache": cache,
        "peak": None if peak is None else f"{peak / 1e6:,.0f} MB",
    }


def _lengths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.replace("_", "").split(",") if part.strip())
    except ValueError as error:
        raise RecipeError(
            f"`--contexts {text}` is no list of numbers", remedy="For example --contexts 1024,4096"
        ) from error
