"""What is assumed of a call whose usage nobody reported."""

from __future__ import annotations

from typing import Any

import pytest

from router.call import Call, Usage
from router.config.document import InputBounds, Model
from router.pricing.estimates import estimate, estimated_input
from router.providers.generated_bytes import utf8_bytes

MODEL = Model("m")


def call(fields: dict[str, Any], operation: Any = "chat") -> Call:
    return Call("openai", operation, "m", "m", fields, None)


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "not counted", "messages": list(messages), **more}


# Article 1 of the Universal Declaration of Human Rights (ohchr.org) and two pieces of code, with
# the tokens that the package bpe-openai 0.1.4 counts in them for cl100k_base and o200k_base.
TEXTS: dict[str, tuple[str, int, int]] = {
    "English": (
        "All human beings are born free and equal in dignity and rights. They are endowed with"
        " reason and conscience and should act towards one another in a spirit of brotherhood.",
        33,
        33,
    ),
    "German": (
        "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft"
        " und Gewissen begabt und sollen einander im Geist der Brüderlichkeit begegnen.",
        44,
        38,
    ),
    "Vietnamese": (
        "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền. Mọi con người"
        " đều được tạo hóa ban cho lý trí và lương tâm và cần phải đối xử với nhau trong tình bằng"
        " hữu.",
        84,
        49,
    ),
    "Russian": (
        "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены"
        " разумом и совестью и должны поступать в отношении друг друга в духе братства.",
        74,
        41,
    ),
    "Greek": (
        "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. Είναι"
        " προικισμένοι με λογική και συνείδηση, και οφείλουν να συμπεριφέρονται μεταξύ τους με"
        " πνεύμα αδελφοσύνης.",
        172,
        71,
    ),
    "Arabic": (
        "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميرًا وعليهم أن"
        " يعامل بعضهم بعضًا بروح الإخاء.",
        88,
        44,
    ),
    "Hindi": (
        "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।"
        " उन्हें बुद्धि और अन्तरात्मा की देन प्राप्त है और परस्पर उन्हें भाईचारे के भाव से बर्ताव करना चाहिए।",
        180,
        54,
    ),
    "Thai": (
        "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ต่างมีเหตุผลและมโนธรรม"
        " และควรปฏิบัติต่อกันด้วยเจตนารมณ์แห่งภราดรภาพ",
        135,
        63,
    ),
    "Chinese": (
        "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
        50,
        35,
    ),
    "Japanese": (
        "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。"
        "人間は、理性と良心とを授けられており、互いに同胞の精神をもって行動しなければならない。",
        93,
        72,
    ),
    "Korean": (
        "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로"
        " 이성과 양심을 부여받았으며 서로 형제애의 정신으로 행동하여야 한다.",
        85,
        51,
    ),
    "emoji": ("🙂🚀🎉👍🏽❤️🔥😂🙏✨🐙", 30, 15),
    "Python": (
        "def total(items: list[int], *, skip: int = 0) -> int:\n"
        '    """The sum of all but the first."""\n'
        "    result = 0\n"
        "    for index, item in enumerate(items):\n"
        "        if index >= skip:\n"
        "            result += item\n"
        "    return result\n",
        58,
        58,
    ),
    "JSON": (
        '{"type":"object","properties":{"city":{"type":"string","description":"Name of the city"},'
        '"unit":{"enum":["celsius","fahrenheit"]}},"required":["city"],'
        '"additionalProperties":false}',
        41,
        43,
    ),
}


@pytest.mark.parametrize(("text", "older", "newer"), TEXTS.values(), ids=TEXTS)
def test_a_text_of_any_script_is_about_what_tokenizers_count(
    text: str, older: int, newer: int
) -> None:
    """Four characters a token used to make a quarter of Chinese, and half of Russian."""
    guess = estimated_input(call(chat({"role": "user", "content": text})), MODEL)
    assert 0.75 * min(older, newer) <= guess <= 1.35 * max(older, newer)
    assert estimate(call({}), MODEL, utf8_bytes(text)).tokens_output == guess


def test_400_chinese_characters_are_not_100_tokens() -> None:
    """Between the 240 of the newest tokenizers and one a character."""
    assert estimated_input(call({"prompt": "自" * 400}), MODEL) == 300


PARAMETERS = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/place"}, "unit": {"anyOf": [{"enum": ["C", "F"]}]}},
    "$defs": {"place": {"type": "string", "description": "x" * 20_000}},
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 4_000}}


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        pytest.param(chat({"role": "user", "content": "12345678"}), 2, id="a message"),
        pytest.param(
            chat({"role": "system", "content": "1234"}, {"role": "user", "content": "12"}),
            2,
            id="two messages",
        ),
        pytest.param(
            chat({"role": "user", "content": [{"type": "text", "text": "1234"}] * 2}),
            2,
            id="parts of a content",
        ),
        pytest.param(
            chat({"content": [{"type": "tool_result", "content": [{"text": "1"}, {"text": "2"}]}]}),
            1,
            id="parts in parts",
        ),
        pytest.param(chat({"role": "user", "content": [PICTURE]}), 765, id="a picture"),
        pytest.param(chat({"role": "user", "content": [PICTURE] * 10}), 7_650, id="ten pictures"),
        pytest.param(
            chat({"content": [{"type": "input_audio", "input_audio": {"data": "A" * 900}}]}),
            600,
            id="a sound",
        ),
        pytest.param(
            chat({"content": [{"type": "file", "file": {"file_id": "f-1"}}]}), 3_000, id="a file"
        ),
        pytest.param(chat({"role": "user", "name": "Ann", "content": "1"}), 1, id="a name"),
        pytest.param(chat({"role": "x" * 16, "content": "1"}), 1, id="a role"),
        pytest.param(chat({"role": "x" * 4_000, "content": "1"}), 1_001, id="a text as a role"),
        pytest.param(chat({"role": 7, "content": "1234"}), 1, id="no role"),
        pytest.param(
            chat(
                {"content": [{"type": "document", "source": {"type": "text", "data": "1" * 800}}]}
            ),
            3_200,
            id="a document of text",
        ),
        pytest.param({"system": "1234", "messages": []}, 1, id="a system prompt beside messages"),
        pytest.param({"prompt": "1234567"}, 2, id="a prompt"),
        pytest.param({"prompt": ["12", "345"]}, 2, id="several prompts"),
        pytest.param({"prompt": [101, 102, 0]}, 3, id="token ids"),
        pytest.param({"prompt": [[101, 102], [103]]}, 3, id="several lists of token ids"),
        pytest.param({"input": ["1234", "5678"]}, 2, id="texts to embed"),
        pytest.param({"prompt": [True, None, 1.5]}, 0, id="neither text nor tokens"),
        pytest.param({"temperature": 1, "user": "somebody", "stop": ["x"]}, 0, id="parameters"),
        pytest.param({"metadata": {"a": "b" * 500}}, 0, id="what labels a call"),
        pytest.param({}, 0, id="nothing"),
        pytest.param({"messages": None, "prompt": 0}, 0, id="no texts at all"),
    ],
)
def test_what_is_read(fields: dict[str, Any], tokens: int) -> None:
    """Text counts wherever it stands; names of fields, ids and settings do not."""
    assert estimated_input(call(fields), MODEL) == tokens


@pytest.mark.parametrize("field", ["tools", "functions", "response_format", "prediction"])
def test_schemas_count_in_every_field(field: str) -> None:
    """20 kB below ``$defs`` and ``anyOf`` used to be one token."""
    assert 5_000 < estimated_input(call({field: [TOOL]}), MODEL) < 5_100


def test_calls_of_tools_count() -> None:
    """An agent's prompt is mostly those."""
    called = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "x" * 4_000}}
    fields = chat({"role": "assistant", "content": None, "tool_calls": [called]})
    assert 1_000 < estimated_input(call(fields), MODEL) < 1_030


def test_deep_content_does_not_exhaust_the_stack() -> None:
    """The depth of a body is bounded elsewhere; here it costs no recursion at all."""
    content: Any = "1234"
    for _ in range(5_000):
        content = [{"content": content}]
    assert estimated_input(call({"messages": content}), MODEL) == 1


@pytest.mark.parametrize(
    ("size", "tokens"), [(0, 0), (1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (4_000_001, 1_000_001)]
)
def test_four_bytes_are_a_token(size: int, tokens: int) -> None:
    """Whatever is begun counts, for the prompt and for the answer alike."""
    expected = Usage(tokens, tokens, 0, "estimated")
    assert estimate(call({"prompt": "x" * size}), MODEL, size) == expected


def test_no_more_output_is_assumed_than_was_asked_for() -> None:
    """P6: English has five characters a token, and a charge above the reservation overspends."""
    asked = call({"max_tokens": 10})
    assert estimate(asked, MODEL, 50).tokens_output == 10
    asked.fields["n"] = 2
    assert estimate(asked, MODEL, 500).tokens_output == 20
    imposed = call({})
    imposed.output_limit = 7
    assert estimate(imposed, MODEL, 500).tokens_output == 7


def test_no_more_input_is_assumed_than_the_model_takes() -> None:
    """Nor more for a picture than the document says."""
    small = Model("m", max_input_tokens=100, input_bounds=InputBounds(image_tokens=30))
    assert estimated_input(call({"prompt": "x" * 4_000}), small) == 100
    assert estimated_input(call(chat({"role": "user", "content": [PICTURE] * 2})), small) == 60


def test_what_the_backend_said_at_the_start_is_kept() -> None:
    """Of a stream that broke off only the output is estimated; the input was reported."""
    at_start = Usage(1_000, 1, 250)
    found = estimate(call(chat({"content": "short"})), MODEL, 41, at_start)
    assert found == Usage(1_000, 11, 250, "estimated")


def test_what_was_reported_on_the_way_is_the_least() -> None:
    """A running total counts reasoning that was not shown; more text than it counts is more."""
    running = Usage(1_000, 50, special={"output_reasoning": 40})
    hidden = estimate(call(chat({"content": "short"})), MODEL, 41, running)
    assert (hidden.tokens_output, hidden.classes()["output_reasoning"]) == (50, 40)
    assert estimate(call(chat({"content": "short"})), MODEL, 400, running).tokens_output == 100


def test_a_reported_input_of_zero_is_none() -> None:
    """Backends that count at the end of a stream begin it with zeros. They used to be believed, and
    a stream that broke off cost no input."""
    assert estimate(call({"prompt": "12345678"}), MODEL, 0, Usage(0, 0)).tokens_input == 2


def test_an_estimate_says_that_it_is_one() -> None:
    """Usage records are exact or say that they are not."""
    assert estimate(call({}), MODEL, 0).source == "estimated"
    assert estimate(call({}), MODEL, 0, Usage(1, 1)).source == "estimated"
    assert Usage(1, 1).source == "reported"
