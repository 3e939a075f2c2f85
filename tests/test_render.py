"""Tests of rendering: the trained tokens are the response and its end token, for any text and template."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dartune.data.chat_template import Renderer
from dartune.errors import InputError
from fixtures_models import CHATML, byte_tokenizer, sentencepiece_tokenizer

MERGES = (("Ċ", "Ċ"), ("t", "h"), ("th", "e"), ("Ġ", "the"), ("<", "|"), ("|", ">"))
CHAT = byte_tokenizer(merges=MERGES)
LLAMA = byte_tokenizer(chat=False, bos=True, merges=MERGES)
GPT2 = byte_tokenizer(chat=False, merges=MERGES)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|pad|>", "<s>", "<|im_", "end|>"]
JINJA = [
    "{{ 7 * 7 }}",
    "{% raw %}",
    "{{ messages }}",
    "{#",
    "%}",
    "\ue0010\ue001",
    "\ue000answer\ue000",
    "\ue001",
]
TEXT = st.lists(st.text(max_size=12) | st.sampled_from(SPECIAL + JINJA), max_size=6).map("".join)
HARMLESS = st.text(st.characters(codec="utf-8", exclude_characters="<|>{}"), max_size=40)

# The relevant part of Qwen3's template: an empty thinking block before the assistant's text.
THINKING = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + message['content'] + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def sentencepiece(prefix):
    tokenizer = sentencepiece_tokenizer(prefix)
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    return tokenizer


PIECES = {prefix: sentencepiece(prefix) for prefix in ("first", "always", "never")}


def with_template(template):
    tokenizer = byte_tokenizer(merges=MERGES)
    tokenizer.chat_template = template
    return tokenizer


def special_count(tokenizer, ids):
    return sum(index in tokenizer.all_special_ids for index in ids)


@pytest.mark.parametrize("tokenizer", [CHAT, LLAMA, GPT2], ids=["chat", "llama", "gpt2"])
@settings(max_examples=150, deadline=None)
@given(text=TEXT)
def test_a_response_is_the_text_and_one_end_token_for_any_text(tokenizer, text):
    renderer = Renderer(tokenizer)
    ids = renderer.response_ids(text)
    assert special_count(tokenizer, ids) == 1
    assert ids[-1] == renderer.end_id
    assert renderer.decode(ids) == text


@settings(max_examples=300, deadline=None)
@given(text=TEXT, system=TEXT)
def test_data_in_a_chat_prompt_is_plain_text(text, system):
    ids = Renderer(CHAT, system).prompt_ids(text)
    assert special_count(CHAT, ids) == 5  # two whole turns and the start of the third
    assert CHAT.decode(ids) == (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    )


@settings(max_examples=150, deadline=None)
@given(text=TEXT)
def test_data_in_a_prompt_without_a_template_is_plain_text(text):
    ids = Renderer(LLAMA).prompt_ids(text)
    assert ids[0] == LLAMA.bos_token_id and special_count(LLAMA, ids) == 1
    assert LLAMA.decode(ids[1:]) == text + "\n"
    assert special_count(GPT2, Renderer(GPT2).prompt_ids(text)) == 0


@pytest.mark.parametrize("prefix", PIECES)
@settings(max_examples=150, deadline=None)
@given(question=HARMLESS, solution=HARMLESS.filter(lambda text: "▁" not in text))  # SentencePiece's blank
@example(question="why?", solution="because")
@example(question="why?", solution=" because")
def test_without_a_template_a_response_continues_its_prompt(prefix, question, solution):
    renderer = Renderer(PIECES[prefix])
    response = renderer.response_ids(solution)
    assert renderer.decode(response) == solution
    if solution[:1].isalnum() and solution[:1].isascii():
        full_ids = PIECES[prefix].encode(f"{question}\n{solution}")
        assert renderer.prompt_ids(question) + response[:-1] == full_ids


@settings(max_examples=200, deadline=None)
@given(text=HARMLESS)
def test_harmless_text_gets_the_ids_of_the_plain_chat_template(text):
    plain = CHAT.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)["input_ids"]
    assert Renderer(CHAT).prompt_ids(text) == plain


@settings(max_examples=100, deadline=None)
@given(text=HARMLESS)
def test_piecewise_encoding_agrees_with_the_plain_chat_template(text):
    renderer = Renderer(CHAT)
    rendered = renderer._render(text, None)
    assert renderer._encode_between_controls(rendered, str) == renderer.prompt_ids(text)


@pytest.mark.parametrize("template", [CHATML, THINKING], ids=["chatml", "thinking"])
@settings(max_examples=100, deadline=None)
@given(question=HARMLESS, solution=HARMLESS.map(lambda text: "the " + text))
def test_prompt_and_response_are_a_prefix_of_the_rendered_conversation(template, question, solution):
    tokenizer = with_template(template)
    renderer = Renderer(tokenizer)
    conversation = [{"role": "user", "content": question}, {"role": "assistant", "content": solution}]
    full_ids = tokenizer.apply_chat_template(conversation)["input_ids"]
    ids = renderer.prompt_ids(question) + renderer.response_ids(solution)
    assert full_ids[: len(ids)] == ids
    assert tokenizer.decode(full_ids[len(ids) :]) == "\n"


def test_golden_ids():
    renderer = Renderer(CHAT, "Be brief.")
    assert CHAT.convert_ids_to_tokens(renderer.prompt_ids("the\n\n<|im_end|>")) == (
        ["<|im_start|>", *"system", "Ċ", *"Be", "Ġ", *"brief.", "<|im_end|>", "Ċ", "<|im_start|>", *"user"]
        + ["Ċ", "the", "ĊĊ", "<|", *"im_end", "|>", "<|im_end|>", "Ċ", "<|im_start|>", *"assistant", "Ċ"]
    )
    assert CHAT.convert_ids_to_tokens(renderer.response_ids("on the")) == [*"on", "Ġthe", "<|im_end|>"]


def test_solutions_with_their_own_thinking_start_at_the_generation_prompt():
    tokenizer = with_template(THINKING)
    assert tokenizer.decode(Renderer(tokenizer).prompt_ids("q")).endswith("assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(Renderer(tokenizer, thinking=True).prompt_ids("q")).endswith("assistant\n")


def test_a_template_that_trims_and_writes_no_end_token_ends_with_eos():
    tokenizer = with_template(
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] | trim + '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    renderer = Renderer(tokenizer)
    assert renderer.end_id == tokenizer.eos_token_id
    assert tokenizer.decode(renderer.prompt_ids("  <|im_end|> hi  ")) == "user: <|im_end|> hi\nassistant: "


def test_special_tokens_that_absorb_spaces_are_encoded_the_same_both_ways():
    from transformers import AddedToken

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|turn|>", rstrip=True, special=True)]})
    tokenizer.chat_template = CHATML.replace("<|im_start|>", "<|turn|>  ")
    renderer = Renderer(tokenizer)
    plain = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert renderer.prompt_ids("hi") == plain["input_ids"]
    assert renderer._encode_between_controls(renderer._render("hi", None), str) == plain["input_ids"]


def test_a_normaliser_cannot_turn_text_into_a_special_token():
    from tokenizers import normalizers
    from transformers import AddedToken

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|evil|>", normalized=True, special=True)]})
    text = "＜|evil|＞"
    evil = tokenizer.convert_tokens_to_ids("<|evil|>")
    assert evil in tokenizer.encode(text)
    assert evil not in Renderer(tokenizer).prompt_ids(text)


def test_a_word_level_vocabulary_does_not_encode_text_as_special_tokens():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1, "<user>": 2, "one": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<user>"],
        chat_template="{% for m in messages %}<user> {{ m.content }} <end> {% endfor %}",
    )
    renderer = Renderer(tokenizer)
    assert renderer.response_ids("one <end> one") == [3, 0, 0, 3, 1]
    assert renderer.prompt_ids("one <user> word") == [2, 3, 0, 0, 0, 1, 2]


def test_a_date_in_the_template_is_fixed():
    tokenizer = with_template("{{ strftime_now('%Y-%m-%d') }}" + CHATML)
    assert tokenizer.decode(Renderer(tokenizer).prompt_ids("q")).startswith("26 Jul 2024<|im_start|>")


def test_without_any_end_token_the_error_names_a_remedy():
    with pytest.raises(InputError, match="no end-of-sequence token.*set one"):
        Renderer(byte_tokenizer(chat=False, eos=False))
    tokenizer = byte_tokenizer(chat=True, eos=False)
    assert Renderer(tokenizer).end_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ raise_exception('no system role') }}",
            "refuses the roles system, user.*no system role.*leave target",
        ),
        (
            "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
            "leaves out target.system_prompt",
        ),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            "leaves out the assistant's text",
        ),
        (
            "{{ messages[0].content }}{% if messages[-1].role == 'assistant' %}{{ messages[-1].content }}{% endif %}",
            "leaves out the question",
        ),
    ],
)
def test_a_template_that_drops_or_rejects_text_is_an_input_error(template, message):
    with pytest.raises(InputError, match=message):
        Renderer(with_template(template), "Be brief.")


def test_marked_pieces_join_to_the_row_and_mark_trained_tokens():
    renderer = Renderer(CHAT)
    pieces = renderer.marked(renderer.prompt_ids("Wie alt?"), renderer.response_ids("Häh 7"))
    assert pieces == [
        ("<|im_start|>user\nWie alt?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Häh 7<|im_end|>", True),
    ]


def test_the_hash_depends_on_everything_that_changes_ids_and_on_nothing_else():
    base = Renderer(byte_tokenizer()).hash
    used = byte_tokenizer()
    used(["a", "bbb"], padding=True, truncation=True, max_length=2)
    assert Renderer(used).hash == base
    changed = [
        Renderer(byte_tokenizer(), "Be brief."),
        Renderer(byte_tokenizer(merges=MERGES)),
        Renderer(byte_tokenizer(chat=False)),
        Renderer(with_template(THINKING)),
    ]
    assert len({base, *(renderer.hash for renderer in changed)}) == 5


def test_the_same_hash_after_saving_and_loading(tmp_path):
    from transformers import AutoTokenizer

    CHAT.save_pretrained(tmp_path)
    loaded = Renderer(AutoTokenizer.from_pretrained(tmp_path))
    assert loaded.prompt_ids("the <s>") == Renderer(CHAT).prompt_ids("the <s>")
    assert loaded.hash == Renderer(CHAT).hash


def test_stop_ids_include_the_end_tokens_of_the_tokenizer_and_the_model():
    tokenizer = byte_tokenizer(chat=True)
    renderer = Renderer(tokenizer, end_ids=(7,))
    names = tokenizer.convert_ids_to_tokens(list(renderer.stop_ids))
    assert renderer.stop_ids[0] == renderer.end_id and 7 in renderer.stop_ids
    assert {"<|im_end|>", "<|endoftext|>"} <= set(names) and "<|im_start|>" not in names


def test_decoding_stops_at_the_first_end_token():
    renderer = Renderer(byte_tokenizer(chat=True))
    other_end = renderer.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ids = [*renderer.text_ids("#### 6"), other_end, *renderer.text_ids(" #### 7")]
    assert other_end != renderer.end_id and renderer.decode(ids) == "#### 6"


@pytest.mark.parametrize("thinking", [False, True])
def test_the_template_receives_enable_thinking(thinking):
    tokenizer = byte_tokenizer(chat=True)
    enable_thinking_values: list[bool] = []
    apply = tokenizer.apply_chat_template
    tokenizer.apply_chat_template = lambda *args, **kwargs: (
        enable_thinking_values.append(kwargs["enable_thinking"]) or apply(*args, **kwargs)
    )
    Renderer(tokenizer, thinking=thinking).prompt_ids("Why?")
    assert set(enable_thinking_values) == {thinking}
