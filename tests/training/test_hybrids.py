"""Distillation after pre-training: of texts, of distributions on given chats, and on the student's own answers."""

import doctest
import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import log_softmax

import training.on_policy_distillation
import training.on_policy_settings
from curation.errors import DataError, RecipeError
from tests.training.post_training_models import killed, tiny_folder, tiny_tokenizer, write_rows
from training.chat import render_chat
from training.chat_packing import chat_batch, pack_chats
from training.distillation_settings import Distillation
from training.huggingface import load_huggingface
from training.lessons import Lesson, OneLesson
from training.on_policy_distillation import on_policy_distillation, packed_batch
from training.on_policy_settings import OnPolicySettings
from training.rollout import RolloutSettings
from training.rollout_records import read_rollouts
from training.run_log import read_rows
from training.sequence_distillation import TeachingSettings, write_teacher_chats
from training.sft import SftSettings, sft
from training.teacher import Teacher
from training.update import accumulate_gradients

QUESTIONS = [(f"{a} + {b} =", str(a + b)) for a in range(5) for b in range(5)]
CHATS = [
    [{"role": "user", "content": q}, {"role": "assistant", "content": f"<think> {q[:-2]} </think> {a}"}]
    for q, a in QUESTIONS
]
SFT = SftSettings(
    sequence_tokens=32,
    batch_sequences=6,
    micro_batch_sequences=3,
    epochs=3,
    learning_rate=1e-2,
    checkpoint_every=2,
)
BUDGET = RolloutSettings(thinking_tokens=3, answer_tokens=3, end_while_thinking="close")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An untrained student, a teacher that has seen all sums, their chats and prompts."""
    folder = tmp_path_factory.mktemp("hybrids")
    tiny_folder(folder / "student", seed=0)
    tiny_folder(folder / "untrained", seed=5)
    write_rows(folder / "chats.jsonl", [{"messages": chat} for chat in CHATS])
    write_rows(folder / "prompts.jsonl", [{"prompt": q, "answer": a} for q, a in QUESTIONS])
    sft(folder / "untrained", folder / "chats.jsonl", folder / "taught", replace(SFT, epochs=30))
    (folder / "taught" / "model").rename(folder / "teacher")
    return folder


def distilled(world, **changes):
    return Distillation(str(world / "teacher"), precision="float32", **changes)


def on_policy(world, **changes):
    settings = OnPolicySettings(
        distilled(world, direction="reverse"),
        steps=4,
        prompts_per_step=6,
        replicas=2,
        rollout=BUDGET,
        learning_rate=1e-2,
        micro_batch_sequences=2,
        checkpoint_every=2,
    )
    return replace(settings, **changes)


def digest(out):
    return (out / "model" / "model.safetensors").read_bytes()


def plain_distance(student, teacher, direction, share):
    """The definitions, from log-probabilities [..., V]."""
    if direction == "forward":
        return (teacher.exp() * (teacher - student)).sum(-1)
    if direction == "reverse":
        return (student.exp() * (student - teacher)).sum(-1)
    middle = (share * teacher.exp() + (1 - share) * student.exp()).log()
    return share * (teacher.exp() * (teacher - middle)).sum(-1) + (1 - share) * (
        student.exp() * (student - middle)
    ).sum(-1)


def wide_pair(world):
    """Student and teacher in float64, so that equality to rounding can be asked for."""
    student = load_huggingface(world / "student").double()
    model = load_huggingface(world / "teacher").double().requires_grad_(False)
    return student, Teacher(model, model.output_weight, 0, True, False, "teacher")


def packed(world, chats):
    rendered = [render_chat(tiny_tokenizer(), chat) for chat in chats]
    rows = pack_chats([len(chat.ids) - 1 for chat in rendered], 32, 0, 0)
    return rendered, chat_batch(rendered, rows, 32)


@pytest.mark.parametrize("direction", ["forward", "reverse", "jensen_shannon"])
def test_loss_and_gradient_on_packed_chats_are_those_of_whole_logits_on_each_chat_alone(world, direction):
    student, teacher = wide_pair(world)
    settings = distilled(
        world, direction=direction, teacher_share=0.3, temperature=2.0, alpha=0.25, beta=0.75
    )
    rendered, batch = packed(world, CHATS[3:10])
    lessons = OneLesson(Lesson(settings, teacher=teacher))
    loss = accumulate_gradients(student, batch, lessons=lessons, micro_batch_sequences=2)
    found = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for chat in rendered:
        ids = torch.tensor(chat.ids)[None]
        said = torch.tensor(chat.assistant)[1:]
        ours, theirs = (m.logits(m(ids[:, :-1]))[0][said] for m in (student, teacher.model))
        hard = -log_softmax(ours, -1).gather(-1, ids[0, 1:][said, None]).sum()
        soft = plain_distance(log_softmax(ours / 2, -1), log_softmax(theirs / 2, -1), direction, 0.3).sum()
        total = total + 0.25 * hard + 0.75 * 4 * soft
        tokens += int(said.sum())
    (total / tokens).backward()
    torch.testing.assert_close(loss, total.detach() / tokens, rtol=1e-12, atol=0)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("beta, direction", [(0, "forward"), (0.4, "jensen_shannon"), (1, "reverse")])
def test_divergence_and_gradient_are_trls(world, beta, direction):
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer", reason="TRL is not installed")
    student, teacher = wide_pair(world)
    rendered = [render_chat(tiny_tokenizer(), chat) for chat in CHATS[:5]]
    batch = chat_batch(rendered, [[at] for at in range(5)], 32)
    settings = distilled(world, direction=direction, teacher_share=beta or 0.5)
    loss = accumulate_gradients(student, batch, lessons=OneLesson(Lesson(settings, teacher=teacher)))
    found = student.output_weight.grad.clone()
    student.zero_grad()
    ours, theirs = (
        m.logits(m(batch.input_ids, positions=batch.positions, document_ids=batch.document_ids))
        for m in (student, teacher.model)
    )
    count = int((batch.labels != -100).sum())
    wanted = gkd.GKDTrainer.generalized_jsd_loss(
        ours, theirs, batch.labels, beta=beta, num_items_in_batch=count
    )
    wanted.backward()
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found, student.output_weight.grad, rtol=1e-8, atol=1e-13)


def test_sft_with_a_teacher_comes_closer_to_it_and_ends_with_the_same_bytes_after_a_kill(world, tmp_path):
    settings = replace(SFT, distillation=distilled(world, alpha=0.5, beta=0.5))
    whole = sft(world / "student", world / "chats.jsonl", tmp_path / "whole", settings)
    rows = read_rows(tmp_path / "whole" / "metrics.jsonl")
    assert rows[-1]["divergence"] < 0.85 * rows[0]["divergence"]
    assert rows[0]["loss"] == pytest.approx(0.5 * rows[0]["cross_entropy"] + 0.5 * rows[0]["divergence"])

    def work():
        import training.loop as loop

        update = loop.update

        def dying(run, batch, settings):
            if run.step == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return update(run, batch, settings)

        loop.update = dying
        sft(world / "student", world / "chats.jsonl", tmp_path / "killed", settings)

    assert killed(work) == -signal.SIGKILL
    sft(world / "student", world / "chats.jsonl", tmp_path / "killed", settings)
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
    assert whole.final == tmp_path / "whole" / "model"
    with pytest.raises(RecipeError, match="other settings"):
        sft(
            world / "student", world / "chats.jsonl", tmp_path / "whole", replace(settings, distillation=None)
        )


def test_bad_teachers_are_refused(world, tmp_path):
    cached = replace(SFT, distillation=distilled(world, cache="sampled"))
    with pytest.raises(RecipeError, match="Only token files have caches"):
        sft(world / "student", world / "chats.jsonl", tmp_path / "a", cached)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["new"])
    with pytest.raises(DataError, match="teacher's tokenizer is not the student's"):
        sft(world / "student", world / "chats.jsonl", tmp_path / "b", replace(SFT, distillation=distilled(world)),
            tokenizer=tokenizer)  # fmt: skip
    with pytest.raises(RecipeError, match="no labels"):
        OnPolicySettings(distilled(world, alpha=1.0))
    with pytest.raises(RecipeError, match="need chats"):
        on_policy_distillation(
            world / "student",
            world / "prompts.jsonl",
            "exact",
            tmp_path / "c",
            on_policy(world, student_share=0.5),
        )
    with pytest.raises(RecipeError, match="Without a reward"):
        write_teacher_chats(world / "teacher", world / "prompts.jsonl", tmp_path / "d", reward=None)


def test_examples_in_docstrings():
    result = doctest.testmod(training.on_policy_settings)
    assert result.attempted and not result.failed


def test_on_policy_loss_is_that_of_whole_logits_on_the_recorded_answers_without_forced_tokens(
    world, tmp_path
):
    settings = on_policy(world, steps=1)
    on_policy_distillation(world / "student", world / "prompts.jsonl", "exact", tmp_path / "run", settings)
    rollouts, _ = read_rollouts(tmp_path / "run" / "rollouts" / "step-1.parquet")
    assert any(any(rollout.forced) for rollout in rollouts)
    student, teacher = (load_huggingface(world / name).double() for name in ("student", "teacher"))
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for rollout in rollouts:
        ids = torch.tensor(rollout.prompt_ids + rollout.completion_ids)[None]
        ours, theirs = (log_softmax(m.logits(m(ids[:, :-1])), -1)[0] for m in (student, teacher))
        for place, forced in enumerate(rollout.forced, len(rollout.prompt_ids) - 1):
            if not forced:
                total = total + plain_distance(ours[place], theirs[place], "reverse", 0.5)
                tokens += 1
    row = read_rows(tmp_path / "run" / "metrics.jsonl")[0]
    assert row["tokens"] == tokens
    assert row["loss"] == pytest.approx(float(total.detach()) / tokens, rel=1e-5)
    (total / tokens).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in student.parameters()])
    assert row["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_positions_of_forced_tokens_have_no_gradient(world):
    student, teacher = wide_pair(world)
    rendered = render_chat(tiny_tokenizer(), CHATS[0])
    forced = replace(rendered, assistant=(*rendered.assistant[:-2], False, False))
    batch = packed_batch([forced], 0, 0)
    hidden = student(batch.input_ids).detach().requires_grad_()
    lesson = Lesson(distilled(world, direction="reverse"), teacher=teacher)
    lesson.loss(hidden, student.output_weight, batch, 0.0).total.backward()
    learnt = torch.tensor(forced.assistant[1:])
    assert (hidden.grad[0].abs().sum(-1) > 0).equal(learnt)


def test_on_policy_comes_closer_and_ends_with_the_same_bytes_after_a_kill(world, tmp_path):
    settings = on_policy(world, steps=6, student_share=0.7, seed=3)
    given = {"chats": world / "chats.jsonl"}
    start, prompts = world / "student", world / "prompts.jsonl"
    result = on_policy_distillation(start, prompts, "exact", tmp_path / "whole", settings, **given)
    rows = read_rows(tmp_path / "whole" / "metrics.jsonl")
    assert [row["students"] for row in rows] == [settings.is_students(step) for step in range(6)]
    assert {True, False} == {row["students"] for row in rows}
    assert rows[-1]["divergence"] < rows[0]["divergence"] and result.updates == 6

    def work():
        def dying(run, batch, settings):
            if run.step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return update(run, batch, settings)

        update = training.on_policy_distillation.update
        training.on_policy_distillation.update = dying
        on_policy_distillation(start, prompts, "exact", tmp_path / "killed", settings, **given)

    assert killed(work) == -signal.SIGKILL
    on_policy_distillation(start, prompts, "exact", tmp_path / "killed", settings, **given)
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
    for step in (1, 4):
        name = f"rollouts/step-{step}.parquet"
        whole = tmp_path / "whole" / name
        assert whole.exists() == settings.is_students(step - 1)
        assert not whole.exists() or whole.read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_a_teacher_of_the_student_itself_teaches_nothing(world, tmp_path):
    itself = Distillation(str(world / "student"), precision="float32", direction="jensen_shannon")
    settings = on_policy(world, distillation=itself, steps=1)
    on_policy_distillation(world / "student", world / "prompts.jsonl", "exact", tmp_path / "run", settings)
    assert abs(read_rows(tmp_path / "run" / "metrics.jsonl")[0]["loss"]) < 1e-6


def test_teachers_right_answers_become_chats_and_survive_a_kill(world, tmp_path, monkeypatch):
    settings = TeachingSettings(answers=4, rollout=RolloutSettings(max_tokens=12), chunk_prompts=10, most=2)
    arguments = (world / "teacher", world / "prompts.jsonl")
    result = write_teacher_chats(*arguments, tmp_path / "whole.jsonl", settings, reward="exact")
    rows = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert result.kept == len(rows) and result.answers == 4 * len(QUESTIONS)
    assert 0 < result.right <= result.answers
    for row in rows:
        assert row["messages"][-1]["content"].split()[-1] == row["answer"] and row["reward"] == 1.0
    texts = [(row["prompt"], row["messages"][-1]["content"]) for row in rows]
    assert len(set(texts)) == len(texts) and max([q for q, _ in texts].count(q) for q, _ in texts) <= 2

    def work():
        import training.sequence_distillation as sequence

        sample = sequence._sample

        def dying(model, questions, reward, tokenizer, settings, first):
            if first == 20:
                os.kill(os.getpid(), signal.SIGKILL)
            return sample(model, questions, reward, tokenizer, settings, first)

        sequence._sample = dying
        write_teacher_chats(*arguments, tmp_path / "killed.jsonl", settings, reward="exact")

    assert killed(work) == -signal.SIGKILL
    write_teacher_chats(*arguments, tmp_path / "killed.jsonl", settings, reward="exact")
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    shortest = replace(settings, keep="finished", most=1, prefer="shortest")
    other = write_teacher_chats(*arguments, tmp_path / "all.jsonl", shortest, reward=None)
    assert other.right is None and other.answered >= result.answered
    assert sft(world / "student", tmp_path / "whole.jsonl", tmp_path / "student", SFT).chats == len(rows)


def test_a_thought_that_the_template_opens_belongs_to_the_chat(world, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        " <assistant>{% endif %}", " <assistant> <think>{% endif %}"
    )
    settings = TeachingSettings(answers=1, keep="all", rollout=RolloutSettings(max_tokens=4))
    out = tmp_path / "chats.jsonl"
    write_teacher_chats(
        world / "teacher", world / "prompts.jsonl", out, settings, reward=None, tokenizer=tokenizer
    )
    row = json.loads(out.read_text().splitlines()[0])
    assert row["messages"][-1]["content"].startswith("<think>")


def test_nothing_kept_is_said(world, tmp_path):
    settings = TeachingSettings(answers=1, rollout=RolloutSettings(max_tokens=1))
    with pytest.raises(DataError, match="None of the teacher's 25 answers is kept"):
        write_teacher_chats(
            world / "student", world / "prompts.jsonl", tmp_path / "x.jsonl", settings, reward="exact"
        )
