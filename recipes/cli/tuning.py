"""Commands that fine-tune and reinforce model folders: shorten, sft, grpo."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from curation.errors import RecipeError
from recipes.cli import app
from recipes.cli.output import JsonOption, console, main_rank, print_json, say


@app.command()
def shorten(
    data: Annotated[
        Path, typer.Argument(help='JSON lines of {"messages": [...]}, or with a prompt and an answer.')
    ],
    tokenizer: Annotated[
        Path, typer.Option("--tokenizer", help="A folder with the tokenizer to count with.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The .jsonl to write.")],
    drop_longest: Annotated[
        float, typer.Option(help="Share of the chats to leave out, longest thoughts first.")
    ] = 0.0,
    condition: Annotated[
        bool, typer.Option("--condition", help='Add "thinking: low|medium|high" to the system prompt.')
    ] = False,
    thresholds: Annotated[
        str | None, typer.Option(help="Longest low and medium thoughts, as 500:2000; terciles when left out.")
    ] = None,
    truncate: Annotated[
        int | None, typer.Option(help="Tokens after which a thought is cut and closed.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Shorten the thoughts of chats by data alone: drop the longest, condition on length, truncate."""
    from training.shortening import Shortening, shorten_file
    from training.tokenizer import load_tokenizer

    how = Shortening(drop_longest, condition, _bounds(thresholds), truncate)
    report = shorten_file(data, out, load_tokenizer(tokenizer), how)
    _print_result(asdict(report), as_json, f"The chats are in {out}.")


@app.command()
def sft(
    model: Annotated[Path, typer.Argument(help="A Hugging Face model folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; the model is in its `model`.")],
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help='JSON lines of {"messages": [...]}; several files are one data set.'),
    ] = None,
    stages: Annotated[
        Path | None,
        typer.Option(
            "--stages", help="A YAML list of {name, data, preset?, and settings}, in place of --data."
        ),
    ] = None,
    schedule: Annotated[str, typer.Option(help="Of --stages: in_turn or joint.")] = "in_turn",
    epochs: Annotated[int, typer.Option(min=1)] = 2,
    learning_rate: float = 8e-5,
    warmup_share: float = 0.1,
    sequence_tokens: Annotated[int, typer.Option(min=8)] = 2048,
    batch_sequences: Annotated[int, typer.Option(min=1)] = 16,
    micro_batch_sequences: Annotated[int, typer.Option(min=1, help="Rows of one pass; for memory.")] = 4,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Recompute activations, for rows of up to 32k tokens.")
    ] = False,
    too_long: Annotated[str, typer.Option(help="Chats longer than a row: drop or truncate.")] = "drop",
    turns: Annotated[
        str, typer.Option(help="Assistant turns to learn from: all, or the last of each chat.")
    ] = "all",
    teacher: Annotated[
        str | None, typer.Option(help="Folder or hub name of a teacher with the model's tokenizer.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="With a teacher: weight of the labels.")] = 0.5,
    beta: Annotated[float, typer.Option(help="With a teacher: weight of the distance to it.")] = 0.5,
    direction: Annotated[str, typer.Option(help="forward, reverse or jensen_shannon.")] = "forward",
    seed: int = 0,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a model folder of any architecture on chats; loss on the assistant's tokens only."""
    from recipes.matrix_plan import changed
    from recipes.stages.training_setup import one_thread
    from training.distillation_settings import Distillation
    from training.sft import SftSettings
    from training.sft import sft as fine_tune
    from training.sft_stages import sft_stages

    if (data is None) == (stages is None):
        raise RecipeError("There is no data, or twice", where="--data, --stages", remedy="Give one of them")
    if stages is not None:
        with one_thread():
            results = sft_stages(model, read_stages(stages), out, schedule)  # type: ignore[arg-type]
        _print_result(asdict(results[-1]), as_json)
        return

    lesson = {"alpha": alpha, "beta": beta, "direction": direction}
    settings = SftSettings(
        epochs=epochs,
        learning_rate=learning_rate,
        warmup_share=warmup_share,
        sequence_tokens=sequence_tokens,
        batch_sequences=batch_sequences,
        micro_batch_sequences=micro_batch_sequences,
        recompute_every=1 if recompute else None,
        too_long=too_long,  # type: ignore[arg-type]
        turns=turns,  # type: ignore[arg-type]
        distillation=changed(Distillation(teacher), lesson, "sft") if teacher is not None else None,
        seed=seed,
    )
    with one_thread():
        result = fine_tune(model, data or [], out, settings)
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
    normalisation: Annotated[
        str, typer.Option(help="Of the loss: grpo, bnpo, dapo, dr_grpo or luspo.")
    ] = "dr_grpo",
    surrogate: Annotated[str, typer.Option(help="Of a token's loss: clip, cispo, sapo or vespo.")] = "clip",
    ratio: Annotated[str, typer.Option(help="Of the policies: of each token, or sequence (GSPO).")] = "token",
    updates: Annotated[int, typer.Option(min=1, help="Updates on the rollouts of a step.")] = 1,
    engine: Annotated[str, typer.Option(help="What decodes: own, or vllm where it is installed.")] = "own",
    lead: Annotated[bool, typer.Option(help="GRPO-LEAD's length reward and difficulty weights.")] = False,
    seed: int = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a model folder on prompts with checkable answers, by its own answers."""
    from recipes.stages.training_setup import one_thread
    from training.advantages import LeadSettings
    from training.grpo import GrpoSettings
    from training.grpo import grpo as reinforce
    from training.grpo_loss import Normalisation
    from training.grpo_settings import ObjectiveSettings
    from training.rollout import RolloutSettings

    rollout = RolloutSettings(
        max_tokens=max_tokens,
        thinking_tokens=thinking_tokens,
        answer_tokens=answer_tokens,
        engine=engine,  # type: ignore[arg-type]
    )
    if normalisation not in get_args(Normalisation):
        raise RecipeError(
            f"`{normalisation}` is unknown", where="--normalisation", remedy="See mixwright grpo --help"
        )
    settings = GrpoSettings(
        steps=steps,
        prompts_per_step=prompts_per_step,
        replicas=group,
        rollout=rollout,
        objective=ObjectiveSettings(
            lead=LeadSettings() if lead else None,
            normalisation=normalisation,  # type: ignore[arg-type]
            surrogate=surrogate,  # type: ignore[arg-type]
            ratio=ratio,  # type: ignore[arg-type]
        ),
        updates=updates,
        learning_rate=learning_rate,
        seed=seed,
    )
    with one_thread():
        result = reinforce(model, data, reward, out, settings, held_out=held_out)
    _print_result(asdict(result), as_json)
    if result.updates == 0 and main_rank():
        say(
            "No update was made: within each group all answers had the same reward, so the model is as it was. Take "
            "prompts that it solves sometimes (mixwright solve-rate), or a model whose answers the reward can read."
        )


def read_stages(path: Path) -> list[Any]:
    """The stages of a YAML file: a list of {name, data, preset?} with any of the settings of training.sft."""
    import yaml

    from training.sft import SftSettings
    from training.sft_stages import PRESETS, SftStage

    try:
        listed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError(
            f"The stages cannot be read: {error}", where=str(path), remedy="Write YAML"
        ) from error
    found = []
    for at, entry in enumerate(listed if isinstance(listed, list) else [None]):
        where = f"{path}, stage {at + 1}"
        if not isinstance(entry, dict) or not {"name", "data"} <= entry.keys():
            raise RecipeError("A stage has no name and data", where=where, remedy="List {name, data, ...}")
        values = dict(entry)
        name, data, preset = values.pop("name"), values.pop("data"), values.pop("preset", None)
        unknown = values.keys() - {field.name for field in fields(SftSettings)}
        if unknown or preset not in (None, *PRESETS):
            raise RecipeError(
                f"`{min(unknown, default=preset)}` is unknown",
                where=where,
                remedy=f"Presets are {', '.join(PRESETS)}; settings are those of training.sft",
            )
        plain = SftSettings()
        for key, value in values.items():  # YAML reads 5e-6 as a text
            values[key] = type(getattr(plain, key))(value) if getattr(plain, key) is not None else value
        settings = replace(PRESETS[preset] if preset else plain, **values)
        files = [path.parent / file for file in (data if isinstance(data, list) else [data])]
        found.append(SftStage(str(name), files, settings))
    return found


def _bounds(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        low, high = (int(part) for part in text.split(":"))
    except ValueError:
        raise RecipeError(f"`{text}` is no pair", where="--thresholds", remedy="Write 500:2000") from None
    return low, high


def _print_result(
    result: dict[str, Any], as_json: bool, last: str = "The model is a Hugging Face folder."
) -> None:
    if not main_rank():
        return
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in result.items()}
    if as_json:
        print_json(plain)
        return
    for key, value in plain.items():
        if value is None or isinstance(value, dict):
            continue  # nothing was measured; told as a sentence in the log, and whole by --json
        console.print(f"{key}: {value}", markup=False, soft_wrap=True)
    say(last)
