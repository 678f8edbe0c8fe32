"""Commands that combine ways of post-training: teach, gkd, matrix."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from recipes.cli import app
from recipes.cli.output import JsonOption, SetOption, print_json, print_table, say

ModelArgument = Annotated[Path, typer.Argument(help="A Hugging Face model folder to start from.")]
DataOption = Annotated[Path, typer.Option("--data", help='JSON lines of {"prompt", "answer"}.')]
RewardOption = Annotated[str, typer.Option("--reward", help="Name of a reward in training.rewards.")]
ThinkingOption = Annotated[int | None, typer.Option(help="Budget for thinking; none when left out.")]
AnswerOption = Annotated[int | None, typer.Option(help="Budget for the answer after it.")]


@app.command()
def teach(
    teacher: Annotated[Path, typer.Argument(help="The teacher's model folder.")],
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="The .jsonl of chats to write, for `mixwright sft`.")],
    reward: RewardOption = "math",
    answers: Annotated[int, typer.Option(min=1, help="Sampled for each prompt.")] = 4,
    keep: Annotated[str, typer.Option(help="right, finished or all.")] = "right",
    most: Annotated[int, typer.Option(min=1, help="Chats kept for each prompt.")] = 1,
    prefer: Annotated[str, typer.Option(help="first or shortest.")] = "first",
    thinking_tokens: ThinkingOption = None,
    answer_tokens: AnswerOption = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer without budgets.")] = 1024,
    temperature: float = 1.0,
    seed: int = 0,
    as_json: JsonOption = False,
) -> None:
    """Write a teacher's right answers to prompts as chats: sequence-level distillation."""
    from recipes.matrix_plan import changed
    from recipes.stages.training_setup import one_thread
    from training.budgets import RolloutSettings
    from training.sequence_distillation import TeachingSettings, write_teacher_chats

    rollout = RolloutSettings(
        max_tokens=max_tokens,
        thinking_tokens=thinking_tokens,
        answer_tokens=answer_tokens,
        temperature=temperature,
    )
    said = {"answers": answers, "keep": keep, "most": most, "prefer": prefer, "seed": seed}
    settings = changed(TeachingSettings(rollout=rollout), said, "teach")
    with one_thread():
        result = write_teacher_chats(teacher, data, out, settings, reward=reward)
    if as_json:
        print_json(asdict(result))
        return
    say(
        f"{result.right:,} of {result.answers:,} answers are right; {result.kept:,} chats on {result.answered:,} of "
        f"{result.prompts:,} prompts are in {result.out}"
    )


@app.command()
def gkd(
    model: ModelArgument,
    data: DataOption,
    teacher: Annotated[str, typer.Option("--teacher", help="Folder or hub name, of the model's tokenizer.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; the model is in its `model`.")],
    reward: RewardOption = "math",
    chats: Annotated[
        Path | None, typer.Option(help="Chats to read in the steps that are not its own.")
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option("--held-out", help="Prompts to measure accuracy on.")
    ] = None,
    direction: Annotated[str, typer.Option(help="forward, reverse or jensen_shannon.")] = "reverse",
    student_share: Annotated[float, typer.Option(help="Share of steps on its own answers.")] = 1.0,
    steps: Annotated[int, typer.Option(min=1)] = 100,
    prompts_per_step: Annotated[int, typer.Option(min=1)] = 8,
    answers: Annotated[int, typer.Option(min=1, help="Answers to each prompt.")] = 4,
    thinking_tokens: ThinkingOption = None,
    answer_tokens: AnswerOption = None,
    max_tokens: Annotated[int, typer.Option(help="Longest completion without budgets.")] = 512,
    learning_rate: float = 5e-6,
    seed: int = 0,
    as_json: JsonOption = False,
) -> None:
    """Distil a teacher into a model on the model's own answers: on-policy distillation."""
    from recipes.cli.tuning import _print_result
    from recipes.matrix_plan import changed
    from recipes.stages.training_setup import one_thread
    from training.budgets import RolloutSettings
    from training.distillation_settings import Distillation
    from training.on_policy_distillation import on_policy_distillation
    from training.on_policy_settings import OnPolicySettings

    rollout = RolloutSettings(
        max_tokens=max_tokens, thinking_tokens=thinking_tokens, answer_tokens=answer_tokens
    )
    settings = OnPolicySettings(
        changed(Distillation(teacher), {"direction": direction}, "--direction"),
        student_share=student_share,
        steps=steps,
        prompts_per_step=prompts_per_step,
        replicas=answers,
        rollout=rollout,
        learning_rate=learning_rate,
        seed=seed,
    )
    with one_thread():
        result = on_policy_distillation(model, data, reward, out, settings, chats=chats, held_out=held_out)
    _print_result(asdict(result), as_json)


@app.command()
def matrix(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder of all runs and of matrix.json and matrix.csv.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", help='JSON lines of {"messages", "prompt", "answer"}; a share is held out.'),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="A YAML file with any of these and more.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option("--reward", help="Name of a reward; math when unsaid.")
    ] = None,
    pipelines: Annotated[
        str | None, typer.Option("--pipelines", help="For example sft,kd,rl,sft+rl,sft+rl.lead.")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="3 when unsaid.")] = None,
    teacher: Annotated[str | None, typer.Option("--teacher", help="For kd, sftkd, seqkd and gkd.")] = None,
    held_out: Annotated[
        Path | None, typer.Option("--held-out", help="Problems to measure on; else some of --data.")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="The pipeline to compare the others with.")
    ] = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train pipelines of SFT, distillation and RL from one model, and compare accuracy and length."""
    from recipes.matrix_file import read_matrix, run
    from recipes.stages.training_setup import one_thread
    from training.matrix_table import matrix_rows, write_matrix

    said: dict[str, Any] = {
        "data": data and str(data),
        "reward": reward,
        "pipelines": pipelines and pipelines.split(","),
        "seeds": seeds,
        "teacher": teacher,
        "held_out": held_out and str(held_out),
        "against": against,
    }
    wanted = read_matrix(plan, {key: value for key, value in said.items() if value is not None}, set_ or ())
    with one_thread():
        outcomes = run(wanted, model, out)
    result = write_matrix(out, outcomes, wanted.against)
    if as_json:
        print_json(result)
        return
    rows = matrix_rows(outcomes, wanted.against)
    headings = {"pipeline": "Pipeline", "measure": "Measure", "accuracy": "Accuracy", "length": "Tokens"}
    print_table(f"{len(wanted.seeds)} seeds, 95 % over seeds and problems", rows, headings)
    if wanted.against is not None:
        compared = [row for row in rows if row["accuracy_difference"]]
        headings = {"pipeline": "Pipeline", "measure": "Measure", "accuracy_difference": "Accuracy"}
        print_table(f"Minus {wanted.against}, paired", compared, headings | {"length_difference": "Tokens"})
    costs = {row["pipeline"]: row for row in rows}.values()
    headings = {
        "pipeline": "Pipeline",
        "trained_tokens": "Trained",
        "sampled_tokens": "Sampled",
        "flops": "FLOPs",
    }
    print_table("What a seed of each took, in tokens", list(costs), headings)
    for name, failures in result["failures"].items():
        for seed, why in failures.items():
            say(f"{name}, seed {seed}, failed: {why}")
    say(f"All of it is in {out / 'matrix.json'} and matrix.csv")
    if result["failures"]:
        raise typer.Exit(3)
