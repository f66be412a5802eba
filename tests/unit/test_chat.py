"""Prompts of one conversation: the template by name, the markers of the images."""

from types import SimpleNamespace

import pytest

from llava import chat
from llava.conversation import conv_templates
from llava.program import RequestError

PLAIN = SimpleNamespace()
WITH_TOKENS = SimpleNamespace(mm_use_im_start_end=True)


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("llava-llama-2-13b-chat-lightning", "llava_llama_2"),
        ("LLaVA-Llama-2-13b-v1", "llava_llama_2"),
        ("llava-v1.6-mistral-7b", "mistral_instruct"),
        ("llava-mixtral-8x7b", "mistral_instruct"),
        ("llava-mistral-7b-hermes", "chatml_direct"),
        ("llava-mistral-7b-orca", "chatml_direct"),
        ("llava-v1.6-34b", "chatml_direct"),
        ("llava-v1.5-13b", "llava_v1"),
        ("llava-v1-mmtag", "v1_mmtag"),
        ("llava-v1-plain", "v1_mmtag"),
        ("llava-v1-plain-finetune", "llava_v1"),
        ("llava-mpt-7b", "mpt"),
        ("llava-13b-delta-v0", "llava_v0"),
        ("llava-plain", "v0_mmtag"),
        ("LLaVA-MMTag", "v0_mmtag"),
        ("mpt-7b-chat", "mpt"),
        ("MPT-7B", "mpt"),
        ("Llama-2-7b-chat", "llama_2"),
        ("vicuna-13b", "vicuna_v1"),
        ("opt-350m", "vicuna_v1"),
        ("", "vicuna_v1"),
    ],
)
def test_template_by_name(name: str, template: str) -> None:
    assert chat.infer_template(name, PLAIN) == template
    assert template in conv_templates


@pytest.mark.parametrize(
    ("name", "template"),
    [("my-finetune-v1.5", "llava_v1"), ("my-finetune", "llava_v0"), ("Mistral-v0.3-ours", "mistral_instruct")],
)
def test_a_model_with_a_vision_tower_needs_no_llava_in_its_name(name: str, template: str) -> None:
    assert chat.infer_template(name, SimpleNamespace(mm_vision_tower="openai/clip-vit-large-patch14")) == template


def test_recorded_template_takes_precedence(caplog: pytest.LogCaptureFixture) -> None:
    assert chat.infer_template("llava-mpt", SimpleNamespace(conv_mode="vlora")) == "vlora"
    assert chat.infer_template("llava-mpt", SimpleNamespace(conv_mode=None)) == "mpt"
    assert caplog.text == ""
    assert chat.infer_template("llava-mpt", SimpleNamespace(conv_mode="unheard_of")) == "mpt"
    assert "unknown template 'unheard_of'" in caplog.text


def test_questions_open_a_turn() -> None:
    conversation = chat.new_conversation("llava_v1")
    chat.append_question(conversation, "Hello")
    assert conversation.messages == [["USER", "Hello"], ["ASSISTANT", None]]
    assert conv_templates["llava_v1"].messages == []
    assert chat.stop_string(conversation) == "</s>"
    assert chat.stop_string(conv_templates["mpt"]) == conv_templates["mpt"].sep


def test_template_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert chat.choose_template(None, "llava-v1.5") == "llava_v1"
    assert chat.choose_template("llava_v1", "llava-v1.5") == "llava_v1"
    assert chat.choose_template(None, "llava-v1.5", SimpleNamespace(conv_mode="mpt")) == "mpt"
    assert capsys.readouterr().out == ""
    assert chat.choose_template("plain", "llava-v1.5") == "plain"
    assert capsys.readouterr().out.startswith("[WARNING] ")
    with pytest.raises(RequestError, match="choose --conv-mode from"):
        chat.new_conversation("mpt_text")


def test_announcing_images() -> None:
    assert chat.announce_images("Q", PLAIN) == "<image>\nQ"
    assert chat.announce_images("Q", WITH_TOKENS, 2) == "<im_start><image><im_end>\n<im_start><image><im_end>\nQ"
    assert chat.place_images_in_query("Q", PLAIN, 2) == "<image>\n<image>\nQ"
    query = "<image-placeholder> or <image-placeholder>?"
    assert chat.place_images_in_query(query, PLAIN, 2) == "<image> or <image>?"
    assert chat.place_images_in_query(query, WITH_TOKENS, 2).count("<im_start><image><im_end>") == 2
    chat.check_markers("<image>\nQ", 1)
    with pytest.raises(RequestError, match=r"2 image marker\(s\) for 1 image"):
        chat.check_markers("<image>\n<image>", 1)


def test_no_marker_is_left_however_it_is_typed() -> None:
    for text in ("<image>", "<im<image>age>", "a<image><image>b", "<<image>image>"):
        assert "<image>" not in chat.without_markers(text)
