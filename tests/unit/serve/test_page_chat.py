"""The rules of a chat of the demo."""

import asyncio

import pytest
from PIL import Image

from llava.conversation import conv_templates
from llava.program import RequestError
from llava.serve.page.chat import MAX_IMAGES, Chat

RED, BLUE = Image.new("RGB", (30, 20), "red"), Image.new("RGB", (8, 8), "blue")


def test_nothing_is_no_question() -> None:
    chat = Chat()
    for text in ("", "  \n", "<image>", "<im<image>age>"):
        chat.add_text(text)
        assert chat.conversation.skip_next and chat.conversation.messages == []
    chat.add_text("Hello")
    assert not chat.conversation.skip_next
    assert chat.conversation.messages == [["USER", "Hello"], ["ASSISTANT", None]]


def test_lengths() -> None:
    chat = Chat()
    chat.add_text("x" * 2000)
    assert chat.conversation.messages[0][1] == "x" * 1536
    chat.conversation.messages[-1][1] = "y"
    chat.add_text("x" * 2000, [RED])
    assert chat.conversation.messages[0][1] == ("x" * 1200 + "\n<image>", RED, "Default")


@pytest.mark.parametrize("typed", ["<image>What?", "What<image>?", "<ima<image>ge>What?", "What?"])
def test_markers_match_the_images_whatever_is_typed(typed: str) -> None:
    for count in (0, 1, 2, 3):
        chat = Chat()
        chat.add_text(typed, [RED, BLUE, RED][:count])
        assert chat.conversation.get_prompt().count("<image>") == count == len(chat.conversation.get_images())


def test_an_image_begins_a_new_conversation_unless_it_is_kept() -> None:
    chat = Chat()
    chat.add_text("Hello")
    chat.conversation.messages[-1][1] = "Hi."
    chat.add_text("Who?", [RED], ["red.jpg"], keep=True)
    assert len(chat.conversation.messages) == 4 and chat.previews == {2: ["red.jpg"]}
    assert chat.conversation.get_prompt().endswith("Hi.</s>USER: Who?\n<image> ASSISTANT:")
    chat.conversation.messages[-1][1] = "Red."
    chat.add_text("And here?", [RED, BLUE], ["red.jpg", "blue.jpg"])
    assert len(chat.conversation.messages) == 2 and chat.previews == {0: ["red.jpg", "blue.jpg"]}
    assert chat.conversation.get_prompt().endswith("USER: <image>\n<image>\nAnd here? ASSISTANT:")


def test_too_many_images() -> None:
    chat = Chat()
    with pytest.raises(RequestError, match="at most 8"):
        chat.add_text("What?", [RED] * (MAX_IMAGES + 1))
    assert chat.conversation.messages == []
    chat.add_text("What?", [RED] * MAX_IMAGES)
    chat.conversation.messages[-1][1] = "Red."
    with pytest.raises(RequestError, match="9 images are too many for one chat"):  # for every later question, too
        chat.add_text("And?", [RED], keep=True)
    chat.add_text("And?", [RED])


def test_no_question_while_an_answer_comes() -> None:
    chat = Chat(stop=asyncio.Event())
    with pytest.raises(RequestError, match="press Stop"):
        chat.add_text("Hello")


def test_no_question_while_an_answer_waits_for_its_place() -> None:
    """All places are taken: neither Enter nor Regenerate may make the answer be left out."""
    chat = Chat()
    chat.add_text("Hello")
    for impatient in ("Hello?", ""):
        with pytest.raises(RequestError, match="press Stop"):
            chat.add_text(impatient)
    chat.regenerate("Default")
    assert not chat.conversation.skip_next
    assert chat.conversation.messages == [["USER", "Hello"], ["ASSISTANT", None]]


def test_regenerate_opens_the_answer_and_changes_the_mode() -> None:
    chat = Chat()
    chat.regenerate("Pad")  # nothing to do again
    assert chat.conversation.skip_next
    chat.add_text("What?", [RED])
    chat.conversation.messages[-1][1] = "Red."
    chat.remarks[1] = "old"
    chat.regenerate("Pad")
    assert chat.conversation.messages[0][1] == ("What?\n<image>", RED, "Pad")
    assert chat.conversation.messages[1][1] is None and chat.remarks == {}
    assert chat.conversation.get_images(return_pil=True)[0].size == (30, 30)


def test_visitors_share_nothing() -> None:
    one, other = Chat(), Chat()
    one.add_text("Hello")
    assert other.conversation.messages == [] and Chat().conversation.messages == []


def test_several_images_of_one_message() -> None:
    """A list of images in a message: as many markers, parts of the chat window, and images."""
    for template, head in (
        ("llava_v1", "USER: <image>\n<image>\nWhich? ASSISTANT:"),
        (
            "v1_mmtag",
            "USER: <Image><image></Image><Image><image></Image> ASSISTANT: Received.</s>USER: Which? ASSISTANT:",
        ),
        ("llava_llama_2", "<image>\n<image>\nWhich? [/INST]"),
        ("mpt", "<image>\n<image>\nWhich?<|im_end|><|im_start|>assistant\n"),
    ):
        conversation = conv_templates[template].copy()
        conversation.append_message(conversation.roles[0], ("Which?\n<image>\n<image>", [RED, BLUE], "Default"))
        conversation.append_message(conversation.roles[1], None)
        assert conversation.get_prompt().endswith(head)
        assert [image.size for image in conversation.get_images(return_pil=True)] == [RED.size, BLUE.size]
        ((shown, _),) = conversation.to_gradio_chatbot()
        assert shown.count("<img ") == 2 and shown.endswith("/>Which?")
        assert conversation.dict()["messages"][0][1] == "Which?\n<image>\n<image>"
