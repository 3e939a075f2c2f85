"""Tests for each family of chat templates: the response and its end are trained, and data is encoded as plain text."""

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dartune.data.chat_template import Renderer
from dartune.errors import InputError
from fixtures_templates import FAMILIES, family_tokenizer

TOKENIZERS = {name: family_tokenizer(name) for name in FAMILIES}
SPECIAL = sorted({token for family in FAMILIES.values() for token in family.special}) + [
    "<s>",
    "<|endoftext|>",
    "<|pad|>",
]
JINJA = ["{{ 7 * 7 }}", "{% for x in y %}", "{{ bos_token }}", "{# note #}", "{{ raise_exception('x') }}"]
TEXT = st.lists(st.text(max_size=12) | st.sampled_from(SPECIAL + JINJA), max_size=6).map("".join)
each_family = pytest.mark.parametrize("name", FAMILIES)


def special(tokenizer, ids):
    return [tokenizer.convert_ids_to_tokens(index) for index in ids if index in tokenizer.all_special_ids]


@each_family
@settings(max_examples=60, deadline=None)
@given(text=TEXT)
@example(text=" 0")
def test_trained_tokens_are_the_response_and_its_end(name, text):
    assume(text.strip())  # rows with an empty solution are rejected when the data is read
    renderer = Renderer(TOKENIZERS[name])
    ids = renderer.response_ids(text)
    assert special(TOKENIZERS[name], ids) == [FAMILIES[name].end]
    assert ids[-1] == renderer.end_id and renderer.decode(ids) == text


@each_family
@settings(max_examples=60, deadline=None)
@given(text=TEXT, system=TEXT)
def test_data_in_a_prompt_is_plain_text(name, text, system):
    """The prompt has the special tokens of the template only, and contains the complete text of the data."""
    family, tokenizer = FAMILIES[name], TOKENIZERS[name]
    # A template may drop a system prompt of white space, or reject all system prompts.
    system = f"Be brief. {system}" if family.system else None
    renderer = Renderer(tokenizer, system)
    ids = renderer.prompt_ids(text)
    assert special(tokenizer, ids) == special(tokenizer, renderer.prompt_ids("harmless"))
    shown = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert (text.strip() if family.trims else text) in shown
    assert system is None or system.strip() in shown


def conversation(renderer, *turns, **options):
    """Returns the ids of a conversation from the tokenizer itself, with the renderer's template (fixed date)."""
    messages = [{"role": role, "content": text} for role, text in turns]
    return renderer.tokenizer.apply_chat_template(messages, chat_template=renderer.template, **options)["input_ids"]


# Older SentencePiece conversions add another blank before the one in the template.
@pytest.mark.parametrize("name", [n for n in FAMILIES if FAMILIES[n].template and n != "mistral-legacy"])
@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="<|>[]{}▁"), min_size=1, max_size=40).map(
        "the {} end".format
    )
)
def test_prompt_and_response_equal_the_rendered_conversation(name, solution):
    renderer = Renderer(TOKENIZERS[name])
    full_ids = conversation(renderer, ("user", "How many?"), ("assistant", solution))
    ids = renderer.prompt_ids("How many?") + renderer.response_ids(solution)
    assert full_ids[: len(ids)] == ids


@pytest.mark.parametrize("name", [n for n in FAMILIES if FAMILIES[n].template and FAMILIES[n].system])
def test_a_system_prompt_is_part_of_the_generation_prompt(name):
    """This includes templates that drop it once there is an assistant message, as Mistral's do."""
    renderer = Renderer(TOKENIZERS[name], "Be brief.")
    prompt = renderer.prompt_ids("How many?")
    used = conversation(renderer, ("system", "Be brief."), ("user", "How many?"), add_generation_prompt=True)
    shown, theirs = (TOKENIZERS[name].decode(ids) for ids in (prompt, used))
    if "think" in theirs or name == "qwen3":  # without thinking, the block is closed or not opened
        shown, theirs = shown.removesuffix("<think>\n\n</think>\n\n"), theirs.removesuffix("<think>\n")
        assert shown == theirs
    else:
        assert prompt == used


@pytest.mark.parametrize("name", ["qwen3", "qwen3-thinking", "deepseek-r1"])
def test_the_think_block_of_a_solution_is_opened_once(name):
    renderer = Renderer(TOKENIZERS[name], thinking=True)
    ids = renderer.prompt_ids("How many?") + renderer.response_ids("<think>\n3 and 4\n</think>\n\nSeven.")
    generation = conversation(renderer, ("user", "How many?"), add_generation_prompt=True)
    assert ids[: len(generation)] == generation
    assert TOKENIZERS[name].decode(ids).count("<think>") == 1
    if name != "deepseek-r1":  # its template drops the reasoning from conversations
        full_ids = conversation(renderer, ("user", "How many?"), ("assistant", "<think>\n3 and 4\n</think>\n\nSeven."))
        assert full_ids[: len(ids)] == ids


def test_a_system_prompt_that_a_template_rejects_is_an_input_error():
    with pytest.raises(InputError, match="leave target.system_prompt out"):
        Renderer(TOKENIZERS["gemma2"], "Be brief.")
