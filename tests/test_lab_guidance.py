"""The auxiliary attention loss: subjects are detected in every dialect, and training reduces the loss."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dartune.lab.build import RECIPES, Recipe, build_model
from dartune.lab.dialects import DIALECTS
from dartune.lab.guidance import attention_loss, subject_positions
from dartune.lab.tokenizer import build_tokenizer
from dartune.lab.world import NAMES, ProblemSpec, sample_problem, statement

SPEC = ProblemSpec(steps=(1, 5), new_steps=(0, 2), distractors=(0, 2))


@given(st.integers(0, 10**9))
@settings(max_examples=100)
def test_every_word_of_a_statement_has_its_person_as_subject(seed):
    problem = sample_problem(random.Random(seed), SPEC)
    statements = [statement(fact).split() for fact in problem.statements]
    tokens = ["<user>", *(word for words in statements for word in words)]
    subjects = [tokens[position] if position >= 0 else None for position in subject_positions(tokens)]
    assert subjects == [None, *(words[0] for words in statements for _ in words)]


@pytest.mark.parametrize("dialect", ["explicit", "equations", "backward", "recall"])
def test_the_subject_of_a_sum_is_the_person_with_its_value(dialect):
    problem = sample_problem(random.Random(3), ProblemSpec(steps=(3, 3)))
    tokens = ["<assistant>", *DIALECTS[dialect](problem).split()]
    subjects = subject_positions(tokens)
    values = problem.values
    results = [
        i for i, token in enumerate(tokens) if token == "=" and tokens[i + 1].isdigit() and tokens[i + 2] in ".;,"
    ]
    assert len(results) >= 3
    for i in results:
        assert values[tokens[subjects[i]]] == int(tokens[i + 1])


def test_subjects_are_names_at_or_before_the_token():
    tokens = "How many does Ada have ? Ben has 3 . Cora = Ben + 2 ; The answer is 3 .".split()
    for position, subject in enumerate(subject_positions(tokens)):
        assert subject == -1 or (subject <= position and tokens[subject] in NAMES)
    assert subject_positions([]) == []


def test_training_reduces_the_loss_and_the_model_is_otherwise_unchanged():
    tokenizer = build_tokenizer()
    model = build_model(Recipe(hidden=32, layers=2, heads=2, intermediate=32), len(tokenizer), 3, seed=0)
    rng = random.Random(0)
    rows = []
    for _ in range(8):
        problem = sample_problem(rng, ProblemSpec(steps=(1, 2)))
        rows.append(tuple(tokenizer.encode(text) for text in (problem.question, DIALECTS["recall"](problem))))
    before = model(torch.tensor([rows[0][0]])).logits
    first = attention_loss(model, rows)
    assert torch.equal(model(torch.tensor([rows[0][0]])).logits, before)
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    attention_loss(model, rows)
    assert model.config._attn_implementation == "eager"
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        attention_loss(model, rows).backward()
        optimizer.step()
    assert float(attention_loss(model, rows).detach()) < 0.3 * float(first.detach())


def test_an_untrained_model_returns_its_embeddings_unchanged():
    model = build_model(RECIPES["backward"], len(build_tokenizer()), 3, seed=0)
    ids = torch.tensor([[5, 6, 7]])
    hidden_states = model(ids, output_hidden_states=True).hidden_states
    assert torch.equal(hidden_states[0], hidden_states[1])
