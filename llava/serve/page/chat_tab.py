"""The tab "Chat": upstream's layout and events, with several images and a Stop button."""

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from llava.images import ImageError
from llava.program import RequestError
from llava.serve.page.answer import Answerer
from llava.serve.page.chat import ALL_OFF, Buttons, Chat, Settings
from llava.serve.page.inputs import (
    CHAT_BOX,
    EXAMPLES,
    PRIVATE,
    image_box,
    model_box,
    open_uploads,
    parameter_sliders,
    question_box,
    visitor_address,
)
from llava.serve.page.text import sentence, to_messages
from llava.utils import moderation_msg, violates_moderation

PREPROCESS_MODES = ["Crop", "Resize", "Pad", "Default"]


class ChatTab:
    """Builds the tab's components inside the current `gr.Blocks`, then connects them.

    Args:
        answerer: gets the answers.
        models: listed initially.
        moderate: refuse texts that the moderation service flags.
        concurrency: simultaneous answers.
    """

    def __init__(self, answerer: Answerer, models: list[str], moderate: bool, concurrency: int) -> None:
        self.answerer = answerer
        self.moderate = moderate
        self.state = gr.State(Chat())
        with gr.Row():
            with gr.Column(scale=3):
                self._build_controls(models)
            with gr.Column(scale=8):
                self._build_chat()
        self._connect(concurrency)

    def _build_controls(self, models: list[str]) -> None:
        with gr.Row(elem_id="model_selector_row"):
            self.model = model_box(models, show_label=False, container=False)
        self.image = image_box()
        with gr.Accordion("More images", open=False):
            self.more = gr.Gallery(
                type="filepath",
                label="Together with the image above",
                columns=3,
                height=160,
                interactive=True,
                sources=["upload"],
                file_types=["image"],
                object_fit="cover",
                buttons=[],
            )
            self.keep = gr.Checkbox(False, label="Images join the running chat (otherwise they begin a new one)")
        self.mode = gr.Radio(PREPROCESS_MODES, value="Default", label="Preprocess for non-square image", visible=False)
        self.text = question_box("Enter text and press ENTER")
        gr.Examples(EXAMPLES, inputs=[self.image, self.text], cache_examples=False, label="Examples")
        self.parameters = parameter_sliders()

    def _build_chat(self) -> None:
        self.chatbot = gr.Chatbot(elem_id="chatbot", label="LLaVA Chatbot", height=650, **CHAT_BOX)
        with gr.Row():
            with gr.Column(scale=8, min_width=180):
                self.text.render()
            with gr.Column(scale=1, min_width=70):
                self.send = gr.Button("Send", variant="primary")
            with gr.Column(scale=1, min_width=70):
                self.stop = gr.Button("Stop", variant="stop", interactive=False)
        with gr.Row(elem_id="buttons"):
            self.upvote = gr.Button("👍  Upvote", interactive=False)
            self.downvote = gr.Button("👎  Downvote", interactive=False)
            self.flag = gr.Button("⚠️  Flag", interactive=False)
            self.again = gr.Button("🔄  Regenerate", interactive=False)
            self.clear = gr.Button("🗑️  Clear", interactive=False)

    @property
    def _buttons(self) -> list[gr.Button]:
        return [self.upvote, self.downvote, self.flag, self.again, self.clear]

    def _connect(self, concurrency: int) -> None:
        outputs = [self.chatbot, *self._buttons, self.stop]
        answer = {
            "fn": self._http_bot,
            "inputs": [self.state, self.model, *self.parameters],
            "outputs": outputs,
            "concurrency_limit": concurrency,
            "concurrency_id": "answers",
            **PRIVATE,
        }
        asked = gr.on(
            [self.text.submit, self.send.click],
            self._add_text,
            [self.state, self.text, self.image, self.more, self.mode, self.keep],
            [self.text, self.image, self.more, *outputs],
            **PRIVATE,
        )
        asked.then(**answer)
        again = self.again.click(self._regenerate, [self.state, self.mode], outputs, **PRIVATE)
        again.then(**answer)
        self.stop.click(_stop, [self.state], [self.stop], queue=False, **PRIVATE)
        self.clear.click(_clear, [self.state], [self.state, self.text, self.image, self.more, *outputs], **PRIVATE)
        for button, kind in ((self.upvote, "upvote"), (self.downvote, "downvote"), (self.flag, "flag")):
            button.click(
                self._voter(kind),
                [self.state, self.model],
                [self.text, self.upvote, self.downvote, self.flag],
                **PRIVATE,
            )

    def _add_text(
        self, chat: Chat, text: str, image: str | None, more: list[Any] | None, mode: str, keep: bool
    ) -> tuple[Any, ...]:
        """Append the question to the chat; a question that is refused stays in its boxes, and a notice tells why."""
        try:
            chat.check_free()  # first: setting `skip_next` below would cancel the answer that is under way
            if self.moderate and text and violates_moderation(text):
                chat.conversation.skip_next = True
                return (moderation_msg, gr.skip(), gr.skip(), *_unchanged())
            images, previews = open_uploads(self.chatbot, image, more)
            chat.add_text(text or "", images, previews, mode, keep)
        except (ImageError, RequestError) as error:
            if not chat.is_busy:
                chat.conversation.skip_next = True
            gr.Warning(sentence(error))
            return (gr.skip(), gr.skip(), gr.skip(), *_unchanged())
        if chat.conversation.skip_next:
            return ("", gr.skip(), gr.skip(), *_unchanged())
        return ("", None, None, *_shown(chat, ALL_OFF))

    async def _http_bot(
        self, chat: Chat, model: str | None, temperature: float, top_p: float, max_tokens: int, request: gr.Request
    ) -> AsyncIterator[tuple[Any, ...]]:
        settings = Settings(temperature, top_p, int(max_tokens))
        async for buttons in self.answerer.http_bot(chat, model, settings, visitor_address(request)):
            if chat.is_abandoned:
                return
            if buttons is None:
                yield _unchanged()
            else:
                yield _shown(chat, buttons)

    def _regenerate(self, chat: Chat, mode: str) -> tuple[Any, ...]:
        chat.regenerate(mode)
        return _shown(chat, ALL_OFF)

    def _voter(self, kind: str) -> Any:
        def vote(chat: Chat, model: str | None, request: gr.Request) -> tuple[Any, ...]:
            self.answerer.log.vote(kind, model or "", chat.conversation, visitor_address(request))
            return ("", *[gr.update(interactive=False)] * 3)

        return vote


def _shown(chat: Chat, buttons: Buttons) -> tuple[Any, ...]:
    """Chat box, the five buttons, and Stop."""
    can_stop = buttons == ALL_OFF and chat.is_running and not chat.stop.is_set()
    states = [buttons.votes] * 3 + [buttons.regenerate, buttons.clear, can_stop]
    return (to_messages(chat), *[gr.update(interactive=state) for state in states])


def _unchanged() -> tuple[Any, ...]:
    return (gr.skip(),) * 7


def _stop(chat: Chat) -> Any:
    chat.end_answer()
    return gr.update(interactive=False)


def _clear(chat: Chat) -> tuple[Any, ...]:
    chat.abandon()
    fresh = Chat()
    return (fresh, "", None, None, *_shown(fresh, ALL_OFF))
