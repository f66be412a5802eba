"""Which template the demo chats in (contract: serve.md 7.2 and S-12)."""

import pytest

from llava.conversation import conv_templates
from llava.serve.page.template import begin_in_template, choose_template, template_by_name


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("llava-llama-2-13b-chat-lightning", "llava_llama_2"),
        ("LLaVA-Llama-2-v1", "llava_llama_2"),
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
        ("", "vicuna_v1"),
    ],
)
def test_by_name(name: str, template: str) -> None:
    assert template_by_name(name) == template
    assert template in conv_templates


def test_what_the_worker_states_goes_first() -> None:
    assert choose_template("llava-mpt", "vlora") == "vlora"
    assert choose_template("llava-mpt", None) == choose_template("llava-mpt", "unheard_of") == "mpt"


def test_the_question_moves_into_the_template() -> None:
    conversation = begin_in_template("llava_v1", "Hello")
    assert conversation.messages == [["USER", "Hello"], ["ASSISTANT", None]]
    assert conv_templates["llava_v1"].messages == []
