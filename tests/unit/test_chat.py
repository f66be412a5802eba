"""Prompts of one conversation: the template by name, the markers of the pictures."""

from types import SimpleNamespace

import pytest

from llava import chat
from llava.program import RequestError

PLAIN = SimpleNamespace()
WITH_TOKENS = SimpleNamespace(mm_use_im_start_end=True)


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("LLaVA-Llama-2-13b-v1", "llava_llama_2"),
        ("llava-v1.6-mistral-7b", "mistral_instruct"),
        ("llava-v1.6-34b", "chatml_direct"),
        ("llava-v1.5-13b", "llava_v1"),
        ("llava-mpt-7b", "mpt"),
        ("opt-350m", "llava_v0"),
    ],
)
def test_template_by_name(name: str, template: str) -> None:
    assert chat.infer_template(name, PLAIN) == template


def test_template_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert chat.choose_template(None, "llava-v1.5") == "llava_v1"
    assert chat.choose_template("llava_v1", "llava-v1.5") == "llava_v1"
    assert chat.choose_template(None, "llava-v1.5", SimpleNamespace(conv_mode="mpt")) == "mpt"
    assert capsys.readouterr().out == ""
    assert chat.choose_template("plain", "llava-v1.5") == "plain"
    assert capsys.readouterr().out.startswith("[WARNING] ")
    with pytest.raises(RequestError, match="choose --conv-mode from"):
        chat.new_conversation("mpt_text")


def test_announcing_pictures() -> None:
    assert chat.announce_images("Q", PLAIN) == "<image>\nQ"
    assert chat.announce_images("Q", WITH_TOKENS, 2) == "<im_start><image><im_end>\n<im_start><image><im_end>\nQ"
    assert chat.place_images_in_query("Q", PLAIN, 2) == "<image>\n<image>\nQ"
    query = "<image-placeholder> or <image-placeholder>?"
    assert chat.place_images_in_query(query, PLAIN, 2) == "<image> or <image>?"
    assert chat.place_images_in_query(query, WITH_TOKENS, 2).count("<im_start><image><im_end>") == 2
    chat.check_markers("<image>\nQ", 1)
    with pytest.raises(RequestError, match=r"2 image marker\(s\) for 1 picture"):
        chat.check_markers("<image>\n<image>", 1)


def test_no_marker_is_left_however_it_is_typed() -> None:
    for text in ("<image>", "<im<image>age>", "a<image><image>b", "<<image>image>"):
        assert "<image>" not in chat.without_markers(text)
