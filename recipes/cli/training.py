"""Commands about training: train, data show, sft, grpo."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from curation.errors import RecipeError
from recipes.cli import app
from recipes.cli.output import JsonOption, SetOption, console, print_json, print_table, say
from recipes.cli.running import OutOption, RecipeArgument, RunArgument, execute, from_folder

SNIPPET_WIDTH = 28
data_app = typer.Typer(no_args_is_help=True, help="What training reads.", rich_markup_mode=None)
app.add_typer(data_app, name="data")


@app.command()
def train(
    recipe: RecipeArgument,
    stage: Annotated[str, typer.Option("--stage", help="pretrain, sft, grpo or model.")] = "pretrain",
    out: OutOption = None,
    set_: SetOption = None,
) -> None:
    """Run a recipe up to one of its training stages."""
    if stage not in ("pretrain", "sft", "grpo", "model"):
        raise RecipeError(f"`{stage}` is no training stage", remedy="Choose pretrain, sft, grpo or model")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(
            "A recipe's stages cannot be run by several ranks at once",
            where="torchrun",
            remedy="Run `mixwright train` alone, or `torchrun ... -m training` with a file of its own",
        )
    execute(recipe, out, set_, goal=stage)


@data_app.command("show")
def show_data(
    run: RunArgument,
    step: Annotated[int, typer.Option("--step", min=0, help="Step of the final pre-training, from 0.")],
    ranks: Annotated[int, typer.Option("--ranks", min=1, help="Processes that train side by side.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """List what a step of the final pre-training reads, without training."""
    from recipes.stages.final import data_order
    from training.step_listing import list_step
    from training.tokenizer import load_tokenizer

    bound = from_folder(run)
    order = data_order(bound)
    tokenizer = load_tokenizer(bound.path("tokenizer", "model"))
    rows = list_step(
        order,
        step,
        bound.recipe.final.batch_sequences,
        ranks=ranks,
        decode=lambda ids: str(tokenizer.decode(list(ids))),
    )
    if as_json:
        print_json(rows, ascii_only=True)
        return
    headings = {"index": "Seq.", "rank": "Rank"} if ranks > 1 else {"index": "Seq."}
    headings |= {
        "source": "Source",
        "epoch": "Ep.",
        "document": "Document",
        "tokens": "Tokens",
        "text": "Text",
    }
    phases = " and ".join(dict.fromkeys(row["phase"] for row in rows))
    print_table(f"Step {step}, phase {phases}", _by_document(rows, ranks), headings, cut="text")


def _by_document(rows: list[dict[str, Any]], ranks: int) -> list[dict[str, Any]]:
    """A row for each document of a listing; what concerns the whole sequence stands in its first row only."""
    from mixing.report.elements import visible

    shown = []
    for row in rows:
        for number, document in enumerate(row["documents"]):
            whole = row if number == 0 else {}
            shown.append(
                {
                    "index": str(whole.get("index", "")),
                    "rank": str(whole.get("rank", "")),
                    "source": whole.get("source", ""),
                    "epoch": str(whole.get("epoch", "")),
                    "document": document["id"][:8],
                    "tokens": f"{document['start']}:{document['stop']}",
                    "text": visible(" ".join(document["text"].split())[:SNIPPET_WIDTH]),
                }
            )
    return shown


@app.command()
def sft(
    model: Annotated[Path, typer.Argument(help="A Hugging Face model folder.")],
    data: Annotated[Path, typer.Option("--data", help='JSON lines of {"messages": [...]}.')],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; the model is in its `model`.")],
    epochs: Annotated[int, typer.Option(min=1)] = 2,
    learning_rate: float = 8e-5,
    sequence_tokens: Annotated[int, typer.Option(min=8)] = 2048,
    batch_sequences: Annotated[int, typer.Option(min=1)] = 16,
    teacher: Annotated[
        str | None, typer.Option(help="Folder or hub name of a teacher with the model's tokenizer.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="With a teacher: weight of the labels.")] = 0.5,
    beta: Annotated[float, typer.Option(help="With a teacher: weight of the distance to it.")] = 0.5,
    direction: Annotated[str, typer.Option(help="forward, reverse or jensen_shannon.")] = "forward",
    seed: int = 0,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a model folder on chats; loss on the assistant's tokens only."""
    from recipes.matrix_plan import changed
    from recipes.stages.training_setup import one_thread
    from training.distillation_settings import Distillation
    from training.sft import SftSettings
    from training.sft import sft as fine_tune

    lesson = {"alpha": alpha, "beta": beta, "direction": direction}
    settings = SftSettings(
        epochs=epochs,
        learning_rate=learning_rate,
        sequence_tokens=sequence_tokens,
        batch_sequences=batch_sequences,
        distillation=changed(Distillation(teacher), lesson, "sft") if teacher is not None else None,
        seed=seed,
    )
    with one_thread():
        result = fine_tune(model, data, out, settings)
    _print_result(asdict(result), as_json)


@app.command()
def grpo(
    model: Annotated[Path, typer.Argument(help="A Hugging Face model folder.")],
    data: Annotated[Path, typer.Option("--data", help='JSON lines of {"prompt", "answer"}.')],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; the model is in its `model`.")],
    reward: Annotated[str, typer.Option("--reward", help="Name of a reward in training.rewards.")] = "math",
    held_out: Annotated[
        Path | None, typer.Option("--held-out", help="Prompts to measure accuracy on.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1)] = 100,
    prompts_per_step: Annotated[int, typer.Option(min=1)] = 8,
    group: Annotated[int, typer.Option(min=2, help="Answers to each prompt.")] = 8,
    thinking_tokens: Annotated[
        int | None, typer.Option(help="Budget for thinking; none when left out.")
    ] = None,
    answer_tokens: Annotated[int | None, typer.Option(help="Budget for the answer after it.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest completion without budgets.")] = 512,
    learning_rate: float = 5e-6,
    lead: Annotated[bool, typer.Option(help="GRPO-LEAD's length reward and difficulty weights.")] = False,
    seed: int = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a model folder on prompts with checkable answers, by its own answers."""
    from recipes.stages.training_setup import one_thread
    from training.advantages import LeadSettings
    from training.grpo import GrpoSettings
    from training.grpo import grpo as reinforce
    from training.grpo_step import ObjectiveSettings
    from training.rollout import RolloutSettings

    rollout = RolloutSettings(
        max_tokens=max_tokens, thinking_tokens=thinking_tokens, answer_tokens=answer_tokens
    )
    settings = GrpoSettings(
        steps=steps,
        prompts_per_step=prompts_per_step,
        replicas=group,
        rollout=rollout,
        objective=ObjectiveSettings(lead=LeadSettings() if lead else None),
        learning_rate=learning_rate,
        seed=seed,
    )
    with one_thread():
        result = reinforce(model, data, reward, out, settings, held_out=held_out)
    _print_result(asdict(result), as_json)


def _print_result(result: dict[str, Any], as_json: bool) -> None:
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in result.items()}
    if as_json:
        print_json(plain)
        return
    for key, value in plain.items():
        console.print(f"{key}: {value}", markup=False, soft_wrap=True)
    say("The model is a Hugging Face folder.")
