"""The command `mixwright influence`: any causal model, files of documents, no recipe."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from curation.errors import RecipeError
from recipes.cli import app
from recipes.cli.output import JsonOption, print_json, print_table, say

Preconditioner = StrEnum("Preconditioner", ["identity", "adam", "datainf", "ekfac"])
Rule = StrEnum("Rule", ["step", "learning_rate", "uniform", "last", "best"])
Normalise = StrEnum("Normalise", ["none", "rms", "cosine"])
Layers = StrEnum("Layers", ["all", "embedding_and_output"])
Reduction = StrEnum("Reduction", ["mean", "sum"])
Windows = StrEnum("Windows", ["first", "all"])
Dtype = StrEnum("Dtype", ["float32", "bfloat16", "float64"])
Protocol = StrEnum("Protocol", {"mobilellm_r1": "mobilellm-r1", "automixer": "automixer"})


@app.command()
def influence(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="Table to write, .parquet.")],
    samples: Annotated[list[Path], typer.Option("--samples", help="Documents to be scored; repeatable.")],
    probe: Annotated[
        list[str], typer.Option("--probe", metavar="NAME=FILE", help="A probe set; repeatable.")
    ],
    model: Annotated[str | None, typer.Option("--model", help="A Hugging Face folder or id.")] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="[STEP=]DIR", help="A checkpoint of the model, instead of --model; repeatable."),
    ] = None,
    checkpoint_weights: Annotated[
        Rule, typer.Option(help="What each checkpoint counts.", show_default=True)
    ] = Rule.step,
    tokenizer: Annotated[Path | None, typer.Option(help="Its folder, where the model has none.")] = None,
    preconditioner: Annotated[
        Preconditioner, typer.Option(help="P of v = P^-1 grad L(probe).")
    ] = Preconditioner.identity,
    layers: Annotated[Layers, typer.Option(help="Parameters that count.")] = Layers.all,
    protocol: Annotated[
        Protocol | None,
        typer.Option(
            help="A published protocol: sets preconditioner, layers, normalise, checkpoint weights."
        ),
    ] = None,
    normalise: Annotated[
        Normalise, typer.Option(help="cosine divides by each gradient's length, at 3 forward passes.")
    ] = Normalise.none,
    reduction: Annotated[
        Reduction, typer.Option(help="Loss of a document over its tokens.")
    ] = Reduction.mean,
    tokens: Annotated[
        int, typer.Option("--context", help="Tokens of each document that are read.", min=1)
    ] = 1024,
    windows: Annotated[
        Windows, typer.Option(help="Longer documents: their first window, or all.")
    ] = Windows.first,
    engine: Annotated[str, typer.Option(help="auto, or an engine by name (docs/influence.md).")] = "auto",
    half_width: Annotated[
        float,
        typer.Option(help="Sample until every weight is known to plus or minus this (0.02); 0 scores all."),
    ] = 0.0,
    most: Annotated[
        int, typer.Option("--max-documents", help="Of each source, when sampling; 0: no limit.", min=0)
    ] = 0,
    groups: Annotated[
        int, typer.Option(help="Score averaged gradients of groups of so many documents.", min=0)
    ] = 0,
    floor: Annotated[float, typer.Option(help="Least weight, in mean positive densities.", min=0)] = 0.0,
    level: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of sampling and intervals.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ... or auto.")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Precision of the model.")] = Dtype.float32,
    processes: Annotated[int, typer.Option(help="Worker processes; 0 works in this one.", min=0)] = 0,
    ray: Annotated[bool, typer.Option("--ray", help="Work on a Ray cluster.")] = False,
    share: Annotated[
        str | None,
        typer.Option(metavar="R/N", help="Score share R of N only; by default as torchrun says."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """How much each document would lower a model's loss on each probe, and the mixture that follows.

    A run that was killed continues when the same command is started again.
    """
    from mixing.influence import AssemblySettings, InfluenceSettings, Stopping, influence_of_files

    given = {
        "preconditioner": preconditioner.value,
        "parameters": layers.value,
        "normalise": normalise.value,
        "checkpoint_weights": checkpoint_weights.value,
    }
    chosen = _with_protocol(context, protocol, given)
    settings = InfluenceSettings(
        preconditioner=chosen["preconditioner"],
        parameters=chosen["parameters"],
        engine=_engine(engine),  # type: ignore[arg-type]
        reduction=reduction.value,  # type: ignore[arg-type]
        context=tokens,
        windows=windows.value,  # type: ignore[arg-type]
        group_documents=groups,
        cosine=chosen["normalise"] == "cosine",
        device=device,
        dtype=dtype.value,
        seed=seed,
    )
    assembly = AssemblySettings(
        checkpoint_weights=chosen["checkpoint_weights"],
        normalise=chosen["normalise"],
        floor=floor,
        level=level,
        seed=seed,
    )
    if out.suffix != ".parquet":
        raise RecipeError(
            f"{out} is not the name of a parquet file", where="--out", remedy="End it in .parquet"
        )
    stopping = Stopping(half_width=half_width, level=level, most=most, seed=seed) if half_width else None
    found = influence_of_files(
        _checkpoints(model, checkpoint or []),
        samples,
        dict(_pair(text) for text in probe),
        out,
        settings,
        assembly,
        stopping=stopping,
        tokenizer_dir=tokenizer,
        workers=processes,
        backend="ray" if ray else "processes",
        share=_share(share),
    )
    if found is None:
        say("  This share is scored. The one that is done last writes the table.")
        return
    if as_json:
        print_json(_as_json(found, out))
    else:
        _show(found, out)


def _show(found: Any, out: Path) -> None:
    by_source: dict[str, dict[str, float]] = {}
    for row in found.by_capability:
        by_source.setdefault(row["source"], {})[row["capability"]] = row["benefit"]
    capabilities = list(dict.fromkeys(row["capability"] for row in found.by_capability))
    rows = [
        {
            "source": w.source,
            "weight": f"{100 * w.weight:.1f}",
            "interval": f"{100 * w.low:.1f} to {100 * w.high:.1f}",
            **{c: f"{by_source[w.source][c]:+.3g}" for c in capabilities},
        }
        for w in sorted(found.weights, key=lambda w: (-w.weight, w.source))
    ]
    print_table(
        f"Weights in % of tokens, {100 * found.level:g} % intervals, and mean benefit by probe "
        "(positive lowers its loss)",
        rows,
        {"source": "Source", "weight": "Weight", "interval": "Interval"} | {c: c for c in capabilities},
        cut="source",
    )
    clipped = [w.source for w in found.weights if w.clipped]
    if clipped:
        say(f"  Set to 0, since they raise the loss on average: {', '.join(clipped)}")
    if len(rows) == 1:
        say("  All documents name one source, so there is nothing to weigh against; see the table.")
    if found.sampled:
        scored, of = sum(found.sampled.units.values()), sum(found.sampled.population.values())
        looks = len(found.sampled.looks)
        say(f"  Scored {scored:,} of {of:,} in {looks} look{'s' * (looks > 1)}. {found.sampled.why}.")
    say(f"  {_pilot_words(found.record)}")
    say(f"  {_cost_words(found)}")
    for note in found.notes:
        say(f"  Note: {note}")
    say(f"  Every document: {out} (how it was made: {out.with_suffix('.json').name})")


def _pilot_words(record: dict[str, Any]) -> str:
    pilot = record["pilot"]
    if pilot is None:
        return f"Engine: {record['engine']}, exact in {record['dtype']}."
    checkpoints = len(record["checkpoints"])
    worst = ", the worst checkpoint" if checkpoints > 1 else ""
    return (
        f"Engine: {record['engine']} in {record['dtype']}. Against the exact derivative on {pilot['documents']} "
        f"documents{worst}: correlation {pilot['pearson']:.6f}, within sources {pilot['within_source']:.6f}, "
        f"signs {100 * pilot['signs']:.4g} % equal."
    )


def _cost_words(found: Any) -> str:
    words = (
        f"Cost: {found.passes:.3g} forward passes for each token of the samples ({found.record['sample_tokens']:,}), "
        "directions and pilot included"
    )
    if found.sampled:
        return f"{words}; {100 * found.forward_tokens / found.full_tokens:.3g} % of scoring everything."
    return f"{words}."


def _as_json(found: Any, out: Path) -> dict[str, Any]:
    return {
        "out": str(out),
        "weights": [w.record() for w in found.weights],
        "level": found.level,
        "benefit_per_token": found.by_capability,
        "documents": len(
            set(zip(*(found.table[c].to_pylist() for c in ("source", "document")), strict=True))
        ),
        "pilot": found.record["pilot"],
        "engine": found.record["engine"],
        "reduction": found.record["reduction"],
        "checkpoints": [{"checkpoint": r["checkpoint"], "step": r["step"]} for r in found.records],
        "sampled": found.sampled.record() if found.sampled else None,
        "forward_tokens": found.forward_tokens,
        "full_forward_tokens": found.full_tokens,
        "forward_passes_per_token": found.passes,
        "notes": found.notes,
    }


def _with_protocol(
    context: typer.Context, protocol: Protocol | None, given: dict[str, str]
) -> dict[str, Any]:
    """`given`, but what a protocol speaks of and the command line does not comes from the protocol."""
    if protocol is None:
        return given
    from mixing.influence import PROTOCOLS

    options = {"parameters": "layers"}
    unset = {
        name
        for name in given
        if (source := context.get_parameter_source(options.get(name, name))) is None
        or source.name == "DEFAULT"
    }
    return given | {name: PROTOCOLS[protocol.value][name] for name in unset}


def _checkpoints(model: str | None, checkpoints: list[str]) -> dict[int | None, Path | str]:
    """Steps and folders; RecipeError where steps are missing or repeated."""
    from mixing.influence.loading import step_of

    if (model is None) == (not checkpoints):
        raise RecipeError(
            "Neither a model nor a checkpoint is given" if model is None else "Both are given",
            where="--model, --checkpoint",
            remedy="Give --model DIR, or --checkpoint STEP=DIR for each checkpoint",
        )
    if model is not None:
        return {None: model}
    found: dict[int | None, Path | str] = {}
    for text in checkpoints:
        before, equals, folder = text.partition("=")
        step = int(before) if equals and before.isdecimal() else step_of(text)
        if step is None:
            raise RecipeError(
                f"The step of the checkpoint {text} is not known",
                where="--checkpoint",
                remedy="Write STEP=DIR",
            )
        if step in found:
            raise RecipeError(
                f"Two checkpoints are of step {step}", where="--checkpoint", remedy="Give each its own step"
            )
        found[step] = folder if equals and before.isdecimal() else text
    return found


def _engine(name: str) -> str:
    from mixing.influence.score import ENGINES

    if name not in ENGINES:
        raise RecipeError(
            f"There is no engine {name!r}", where="--engine", remedy=f"Choose one of {', '.join(ENGINES)}"
        )
    return name


def _share(text: str | None) -> tuple[int, int]:
    from mixing.influence.workers import rank_of_environment

    if text is None:
        return rank_of_environment()
    rank, slash, size = text.partition("/")
    if not slash or not rank.isdecimal() or not size.isdecimal():
        raise RecipeError(
            f"`--share {text}` is not of the form R/N", where="--share", remedy="For example 0/4 ... 3/4"
        )
    return int(rank), int(size)


def _pair(text: str) -> tuple[str, Path]:
    name, equals, file = text.partition("=")
    if not equals or not name or not file:
        raise RecipeError(
            f"`--probe {text}` is not of the form NAME=FILE", remedy="For example --probe code=code.jsonl"
        )
    return name, Path(file)
