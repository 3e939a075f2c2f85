"""Solutions that think in a block of their own: answers are read behind it, and rewrites think as the source does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dartune.config import load_config
from dartune.data.records import Demonstration
from dartune.models.engine import Sample
from dartune.rewards.gates import run_gates
from dartune.rewards.items import GateInput, GateThresholds
from dartune.rewards.solved import solved
from dartune.rewards.text import aloud, thoughts
from dartune.roster import Roster
from fixtures_models import save_tiny
from test_render import THINKING
from test_reward import RENDERER

QUESTION = "Ann has 3 pens. Bob has twice as many. How many has Bob?"
SOURCE = "<think>\nBob has 2 * 3 = 6.\n</think>\n\nBob has twice 3, that is 2 * 3 = 6 pens.\n#### 6"


def gates(rewrite, checker, source=SOURCE):
    (found,) = run_gates([GateInput(QUESTION, source, rewrite)], GateThresholds(), checker)
    return {name for name, passed in found.items() if not passed}


def test_answers_tried_while_thinking_do_not_count(checker):
    tried = "<think>\nIs it 3 + 2 = 5? The answer is 5. No: twice, 2 * 3 = 6.\n</think>\n\nBob has 2 * 3 = 6.\n#### 6"
    assert gates(tried, checker) == set()
    assert "one_answer" in gates(tried.replace("</think>", ""), checker)
    wrong = tried.replace("#### 6", "#### 5")
    assert "correct_answer" in gates(wrong, checker)


def test_a_rewrite_thinks_just_where_its_source_does(checker):
    without = aloud(SOURCE)
    assert "finished" in gates(without, checker) and gates(without, checker, source=without) == set()
    assert "finished" in gates(SOURCE, checker, source=without)
    assert "finished" in gates("<think>\nBob has 2 * 3 = 6, that is 6.\n#### 6", checker)
    assert "finished" in gates("<think>\nBob has 2 * 3 = 6.\n</think>\n ", checker)


@given(st.text(), st.text().filter(lambda text: "</think>" not in text))
def test_what_is_said_aloud_is_what_follows_the_last_block(before, after):
    assert aloud(after) == after and thoughts(after) == 0
    assert aloud(f"{before}</think>{after}") == after and thoughts(f"{before}</think>{after}") >= 1


def test_evaluation_reads_the_answer_behind_the_block(checker):
    row = Demonstration("a", QUESTION, SOURCE, "6")
    texts = {
        "<think>The answer is 5.</think>The answer is 6.": True,
        "<think>The answer is 6.</think>The answer is 5.": False,
        "<think>The answer is 6.</think>Done.": False,
    }
    samples = [[Sample(tuple(RENDERER.response_ids(text)), (), "stop") for text in texts]]
    assert [right for _, right in solved([row], samples, RENDERER, checker)[0]] == list(texts.values())


@pytest.mark.parametrize("thinking", ["true", "false"])
def test_the_config_says_whether_prompts_leave_the_thinking_to_the_model(thinking, tmp_path):
    folder = save_tiny(tmp_path / "target", "qwen3", context=2048)
    (folder / "chat_template.jinja").write_text(THINKING)
    words = {"data.path": "lab:values", "target.path": str(folder), "target.thinking": thinking}
    renderer = Roster(load_config(None, words)).renderer
    prompt = renderer.tokenizer.decode(renderer.prompt_ids("q"))
    assert ("</think>" in prompt) == (thinking == "false")
