"""Tests of solutions with a <think> block: answers are read after it, and rewrites have one if their source does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dartune.answers.grading import grade_samples
from dartune.config.load import load_config
from dartune.data.records import Demonstration
from dartune.engines.base import Sample
from dartune.gates.gate_input import GateInput, GateThresholds
from dartune.gates.registry import run_gates
from dartune.stages.models import RunModels
from dartune.text.features import count_thinking_blocks, without_thinking
from fixtures_models import save_tiny
from test_render import THINKING
from test_reward import RENDERER

QUESTION = "Ann has 3 pens. Bob has twice as many. How many has Bob?"
SOURCE = "<think>\nBob has 2 * 3 = 6.\n</think>\n\nBob has twice 3, that is 2 * 3 = 6 pens.\n#### 6"


def gates(rewrite, checker, source=SOURCE):
    (results,) = run_gates([GateInput(QUESTION, source, rewrite)], GateThresholds(), checker)
    return {name for name, passed in results.items() if not passed}


def test_answers_inside_the_think_block_do_not_count(checker):
    tried = "<think>\nIs it 3 + 2 = 5? The answer is 5. No: twice, 2 * 3 = 6.\n</think>\n\nBob has 2 * 3 = 6.\n#### 6"
    assert gates(tried, checker) == set()
    assert "one_answer" in gates(tried.replace("</think>", ""), checker)
    wrong = tried.replace("#### 6", "#### 5")
    assert "correct_answer" in gates(wrong, checker)


def test_a_rewrite_has_a_think_block_exactly_if_its_source_does(checker):
    without = without_thinking(SOURCE)
    assert "finished" in gates(without, checker) and gates(without, checker, source=without) == set()
    assert "finished" in gates(SOURCE, checker, source=without)
    assert "finished" in gates("<think>\nBob has 2 * 3 = 6, that is 6.\n#### 6", checker)
    assert "finished" in gates("<think>\nBob has 2 * 3 = 6.\n</think>\n ", checker)


@given(st.text(), st.text().filter(lambda text: "</think>" not in text))
def test_aloud_returns_the_text_after_the_last_block(before, after):
    assert without_thinking(after) == after and count_thinking_blocks(after) == 0
    assert (
        without_thinking(f"{before}</think>{after}") == after and count_thinking_blocks(f"{before}</think>{after}") >= 1
    )


def test_evaluation_reads_the_answer_after_the_block(checker):
    row = Demonstration("a", QUESTION, SOURCE, "6")
    texts = {
        "<think>The answer is 5.</think>The answer is 6.": True,
        "<think>The answer is 6.</think>The answer is 5.": False,
        "<think>The answer is 6.</think>Done.": False,
    }
    samples = [[Sample(tuple(RENDERER.response_ids(text)), (), "stop") for text in texts]]
    assert [right for _, right in grade_samples([row], samples, RENDERER, checker)[0]] == list(texts.values())


@pytest.mark.parametrize("thinking", ["true", "false"])
def test_target_thinking_decides_whether_the_prompt_closes_the_think_block(thinking, tmp_path):
    folder = save_tiny(tmp_path / "target", "qwen3", context=2048)
    (folder / "chat_template.jinja").write_text(THINKING)
    settings = {"data.path": "lab:values", "target.path": str(folder), "target.thinking": thinking}
    renderer = RunModels(load_config(None, settings)).renderer
    prompt = renderer.tokenizer.decode(renderer.prompt_ids("q"))
    assert ("</think>" in prompt) == (thinking == "false")
