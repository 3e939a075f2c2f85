"""Distillation and selective token masking against plain reference implementations on full logits."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dartune.config.schema import ExecutionConfig, SFTConfig
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.engines.hf import HFEngine
from dartune.engines.top_tokens import chosen_token_logprobs, top_logprobs
from dartune.errors import InputError
from dartune.stages.mapper_prompt import mapper_prompt
from dartune.train.distillation import TOP_TOKENS, DistillationObjective, distil
from dartune.train.losses import STM_PERPLEXITY, bucket_kl
from dartune.train.sft import SFTObjective
from fixtures_models import byte_tokenizer, tiny_model

RENDERER = Renderer(byte_tokenizer())
ROWS = [Demonstration(str(i), "why? " * (i + 1), "because " * (5 - i)) for i in range(5)]
PROMPT = "{question} For example: {solution} Now you:"


def model(seed=0, sharpness=30.0):
    """A tiny model; as initialised its distributions are nearly uniform, so its logits are scaled."""
    made = tiny_model("llama", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id, seed=seed)
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(sharpness)
    return made


def taught(rows, steps=30):
    """A model that has learned part of the rows: some of their tokens are likely to it and some are not."""
    trained = model(1, sharpness=1.0)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2)
    for step in range(steps):
        of = SFTObjective(rows, RENDERER, len(rows), 0, 512, 100_000)
        optimizer.zero_grad()
        of.loss(trained, of.begin(step)[0]).backward()
        optimizer.step()
    return trained.eval()


def response_logits(trained, prompt, response):
    """(T, V) logits of the response tokens, by one plain forward."""
    ids = torch.tensor([[*prompt, *response]])
    return trained(input_ids=ids).logits[0, len(prompt) - 1 : -1]


def teacher_text(row):
    return mapper_prompt(PROMPT, row)


def objective(trained, teacher, tmp_path, limit=100_000, **changes):
    words = {"batch_size": 4, "max_new_tokens": 10, "seed": 3} | changes
    return DistillationObjective(
        ROWS, HFEngine(trained), teacher, RENDERER, teacher_text, samples_path=tmp_path / "s.jsonl",
        microbatch_tokens=limit, **words
    )  # fmt: skip


def gradients(trained, of, step=0):
    trained.zero_grad()
    batches = of.begin(step)
    trained.train()
    losses = [of.loss(trained, batch) for batch in batches]
    for loss in losses:
        loss.backward()
    return sum(float(loss.detach()) for loss in losses), [p.grad.clone() for p in trained.parameters()], batches


def plain_distillation(trained, teacher, batches):
    """The loss by definition: KL over the teacher's top tokens and one bucket for all others, mean over tokens."""
    total, tokens = torch.zeros(()), 0
    for question, prompt, sample in (row for batch in batches for row in batch.rows):
        with torch.no_grad():
            p = response_logits(teacher, prompt, sample).float().softmax(-1)
        q = response_logits(trained, question, sample).float().softmax(-1)
        for p_t, q_t in zip(p, q, strict=True):
            top = p_t.argsort(descending=True)[:TOP_TOKENS]
            p_parts = torch.cat([p_t[top], 1 - p_t[top].sum().reshape(1)])
            q_parts = torch.cat([q_t[top], 1 - q_t[top].sum().reshape(1)])
            total = total + (p_parts * (p_parts.log() - q_parts.log())).sum()
            tokens += 1
    return total / tokens


@pytest.mark.parametrize("limit", [100_000, 150])
def test_the_distillation_loss_and_its_gradient_are_those_of_the_definition(tmp_path, limit):
    trained, teacher = model(0), model(1)
    loss, found, batches = gradients(trained, objective(trained, teacher, tmp_path, limit))
    assert (len(batches) > 1) == (limit < 1000)
    trained.zero_grad()
    expected = plain_distillation(trained, teacher, batches)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4) and loss > 0.1
    for ours, theirs in zip(found, [p.grad for p in trained.parameters()], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_the_teacher_reads_question_and_demonstration_and_then_the_models_sample(tmp_path):
    of = objective(model(0), model(1), tmp_path)
    shown = [row for batch in of.begin(0) for row in of.shown(batch)]
    texts = {(row.question, row.solution) for row in ROWS}
    assert len(shown) == 4
    for row in shown:
        assert any(q in row["prompt"] and q in row["teacher_prompt"] and s in row["teacher_prompt"] for q, s in texts)
        assert "because" not in row["prompt"]
    assert len([json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]) == 4


def test_a_teacher_prompt_that_does_not_fit_is_refused_and_never_cut(tmp_path):
    small = model(0)
    with pytest.raises(InputError) as error:
        objective(small, small, tmp_path, max_new_tokens=small.config.max_position_embeddings - 40)
    assert len(error.value.problems) >= 5 and "row 1" in error.value.problems[0]


def test_a_teacher_equal_to_the_model_teaches_nothing(tmp_path):
    trained = model(0)
    of = DistillationObjective(
        ROWS, HFEngine(trained), model(0), RENDERER, lambda row: row.question, 4, 10, 3, tmp_path / "s.jsonl", 100_000
    )
    loss, found, _ = gradients(trained, of)
    assert abs(loss) < 1e-5 and max(float(g.abs().max()) for g in found) < 1e-4


def test_a_moving_teacher_takes_over_its_share_of_the_weights(tmp_path):
    trained, teacher = model(0), model(1)
    before = [p.detach().clone() for p in teacher.parameters()]
    of = objective(trained, teacher, tmp_path, teacher_update=0.25)
    of.begin(0)
    of.end(0)
    for old, new, now in zip(before, trained.parameters(), teacher.parameters(), strict=True):
        torch.testing.assert_close(now, 0.75 * old + 0.25 * new)


def test_distillation_moves_the_model_towards_its_teacher_and_resumes_bit_equal(tmp_path):
    teacher, settings = model(1), SFTConfig(steps=4, batch_size=5, learning_rates=(1e-3,))
    every_step = ExecutionConfig(checkpoint_every=1)

    def run(folder, steps=4):
        def on_step(step, row):
            if step == steps < 4:
                raise KeyboardInterrupt

        words = (ROWS, teacher, RENDERER, teacher_text, settings, 1e-3, 8, 0, tmp_path / folder)
        return distil(model(0), *words, execution=every_step, on_step=on_step)

    whole, cost = run("whole")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    assert cost.generated_tokens == cost.trained_tokens > 0 and cost.flops > 0
    with pytest.raises(KeyboardInterrupt):
        run("parts", steps=2)
    resumed, _ = run("parts")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert (tmp_path / "parts/samples.jsonl").read_text() == (tmp_path / "whole/samples.jsonl").read_text()


def test_top_tokens_are_the_models_most_likely_ones():
    trained, rows = model(0), [([1, 2, 3], [4, 5]), ([7], [8, 9, 10])]
    ids, logprobs = top_logprobs(trained, rows, 3)
    expected = torch.cat([response_logits(trained, *row).float().log_softmax(-1) for row in rows])
    torch.testing.assert_close(logprobs, expected.topk(3).values)
    torch.testing.assert_close(expected.gather(1, ids), logprobs)
    torch.testing.assert_close(chosen_token_logprobs(trained, rows, ids), logprobs)


@given(st.integers(2, 12), st.integers(0, 1000))
def test_a_bucket_divergence_is_a_lower_bound_of_the_whole_one(vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    p, q = torch.randn(2, 5, vocabulary, generator=generator, dtype=torch.float64).log_softmax(-1)
    whole = (p.exp() * (p - q)).sum(-1)
    ids = p.topk(max(1, vocabulary // 2)).indices
    part = bucket_kl(p.gather(1, ids), q.gather(1, ids))
    assert (part > -1e-9).all() and (part <= whole + 1e-9).all()


@pytest.mark.parametrize("limit", [100_000, 60])
def test_masking_trains_on_the_tokens_that_the_target_finds_likely(limit):
    rows = [("why? " * i, "because " * (7 - i)) for i in range(1, 7)]
    trained, target = model(0), taught(rows)
    of = SFTObjective(rows, RENDERER, 6, 0, 512, limit, "stm", target)
    trained.zero_grad()
    batches = of.begin(0)
    assert (len(batches) > 1) == (limit < 1000)
    loss = sum(of.loss(trained, batch) for batch in batches)
    loss.backward()
    found = [p.grad.clone() for p in trained.parameters()]
    trained.zero_grad()
    kept, every = [], 0
    for question, solution in rows:
        prompt, response = RENDERER.prompt_ids(question), RENDERER.response_ids(solution)
        ids = torch.tensor(response)[:, None]
        with torch.no_grad():
            under_target = response_logits(target, prompt, response).log_softmax(-1).gather(1, ids)[:, 0]
        own = response_logits(trained, prompt, response).log_softmax(-1).gather(1, ids)[:, 0]
        kept += [value for value, before in zip(own, under_target, strict=True) if math.exp(-before) <= STM_PERPLEXITY]
        every += len(response)
    assert 0 < len(kept) < every
    expected = -torch.stack(kept).mean()
    expected.backward()
    torch.testing.assert_close(loss.detach(), expected.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found, [p.grad for p in trained.parameters()], atol=1e-5, rtol=1e-3)
    assert of.end(0)["trained_tokens"] == len(kept)


def test_masking_without_a_likely_token_has_no_loss():
    of = SFTObjective([("why?", "so")] * 2, RENDERER, 2, 0, 512, 100_000, "stm", model(1))
    [batch] = of.begin(0)
    assert not batch.selected.any()
    assert float(of.loss(model(0), batch).detach()) == 0
