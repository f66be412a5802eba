"""The tab "Compare": one question to two models, or to one model with two numbers of visual tokens, side by side."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import gradio as gr

from llava.images import ImageError
from llava.program import RequestError
from llava.serve.page.answer import Answerer
from llava.serve.page.chat import ALL_OFF, Chat, Settings
from llava.serve.page.inputs import (
    CHAT_BOX,
    EXAMPLES,
    PRIVATE,
    budget_box,
    budget_choices,
    chosen_budget,
    image_box,
    model_box,
    open_uploads,
    parameter_sliders,
    question_box,
    visitor_address,
)
from llava.serve.page.text import sentence, to_messages

# Seconds the right answer waits for its turn. The left one never begins if the visitor leaves while it is queued.
LONGEST_TURN = 600.0


@dataclass
class Pair:
    """Two chats with the same questions.

    Attributes:
        left_done: set when the left answer is complete; the right one may have to wait for it.
        is_stopped: the visitor stopped the current answers.
    """

    chats: tuple[Chat, Chat] = field(default_factory=lambda: (Chat(), Chat()))
    left_done: asyncio.Event | None = None
    is_stopped: bool = False

    def stop(self) -> None:
        """End both answers."""
        self.is_stopped = True
        for chat in self.chats:
            chat.end_answer()

    @property
    def is_busy(self) -> bool:
        """Whether an answer is being received, or waits for its turn."""
        return any(chat.is_busy for chat in self.chats)


class CompareTab:
    """Builds the tab's components inside the current `gr.Blocks`, then connects them.

    Args:
        answerer: gets the answers.
        models: listed initially.
        concurrency: simultaneous answers on each side.
    """

    def __init__(self, answerer: Answerer, models: list[str], concurrency: int) -> None:
        self.answerer = answerer
        self.pair = gr.State(Pair())
        with gr.Row():
            with gr.Column(scale=3):
                self._build_controls()
            with gr.Column(scale=8):
                self._build_chats(models)
        self._connect(concurrency)

    def _build_controls(self) -> None:
        self.image = image_box(elem_id="compare_image")
        self.text = question_box("Ask both and press ENTER")
        gr.Examples(EXAMPLES, inputs=[self.image, self.text], cache_examples=False, label="Examples")
        self.in_turn = gr.Checkbox(False, label="One after the other (two at once slow each other down)")
        self.parameters = parameter_sliders()

    def _build_chats(self, models: list[str]) -> None:
        self.models: list[gr.Dropdown] = []
        self.budgets: list[gr.Dropdown] = []
        self.chatbots: list[gr.Chatbot] = []
        with gr.Row():
            for i, side in enumerate(("left", "right")):
                with gr.Column(min_width=260):
                    with gr.Row():
                        self.models.append(
                            model_box(models, i, label="Model", scale=3, elem_id=f"compare_model_{side}")
                        )
                        self.budgets.append(budget_box(scale=2, elem_id=f"compare_budget_{side}"))
                    self.chatbots.append(
                        gr.Chatbot(elem_id=f"compare_{side}", label=f"Answers {side}", height=480, **CHAT_BOX)
                    )
        with gr.Row():
            with gr.Column(scale=8, min_width=180):
                self.text.render()
            with gr.Column(scale=1, min_width=90):
                self.send = gr.Button("Compare", variant="primary")
            with gr.Column(scale=1, min_width=70):
                self.stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="compare_stop")
            with gr.Column(scale=1, min_width=70):
                self.clear = gr.Button("Clear", elem_id="compare_clear")

    def _connect(self, concurrency: int) -> None:
        asked = gr.on(
            [self.text.submit, self.send.click],
            self._ask,
            [self.pair, self.text, self.image],
            [self.text, self.image, *self.chatbots, self.stop],
            **PRIVATE,
        )
        for i in range(2):
            asked.then(
                self._answering(i),
                [self.pair, self.models[i], self.budgets[i], self.in_turn, *self.parameters],
                [self.chatbots[i], self.stop],
                concurrency_limit=concurrency,
                # Two queues: a right answer that waits for the left one must not occupy its place.
                concurrency_id=f"compared-{i}",
                **PRIVATE,
            )
            self.models[i].change(self.choices, [self.models[i]], [self.budgets[i]], **PRIVATE)
        self.stop.click(_stop, [self.pair], [self.stop], queue=False, **PRIVATE)
        self.clear.click(_clear, [self.pair], [self.pair, self.text, self.image, *self.chatbots, self.stop], **PRIVATE)

    async def choices(self, model: str | None) -> Any:
        """The numbers of visual tokens that a model allows, as an update."""
        return await budget_choices(self.answerer.client, model)

    def _ask(self, pair: Pair, text: str, image: str | None) -> tuple[Any, ...]:
        try:
            if pair.is_busy:
                raise RequestError("the answers are still coming; wait for their end, or press Stop")
            images, previews = open_uploads(self.chatbots[0], image)
            for chat in pair.chats:
                chat.add_text(text or "", images, previews)
        except (ImageError, RequestError) as error:
            gr.Warning(sentence(error))
            return (gr.skip(),) * 5
        pair.is_stopped = False
        pair.left_done = asyncio.Event()
        return ("", None, *[to_messages(chat) for chat in pair.chats], gr.skip())

    def _answering(self, side: int) -> Any:
        """The event handler of one side."""

        async def answer(
            pair: Pair,
            model: str | None,
            budget: int | str | None,
            in_turn: bool,
            temperature: float,
            top_p: float,
            max_tokens: int,
            request: gr.Request,
        ) -> AsyncIterator[tuple[Any, ...]]:
            chat, left_done = pair.chats[side], pair.left_done
            try:
                if side == 1 and in_turn and left_done is not None:
                    with anyio.move_on_after(LONGEST_TURN) as turn:
                        await left_done.wait()
                    pair.is_stopped |= turn.cancelled_caught
                if pair.is_stopped and chat.is_busy:
                    chat.give_up("Stopped before it began.")
                    yield to_messages(chat), gr.skip()
                    return
                settings = Settings(temperature, top_p, int(max_tokens), chosen_budget(budget))
                async for buttons in self.answerer.http_bot(chat, model, settings, visitor_address(request)):
                    if chat.is_abandoned:
                        return
                    if buttons is not None:
                        can_stop = (buttons == ALL_OFF or pair.chats[1 - side].is_busy) and not pair.is_stopped
                        yield to_messages(chat), gr.update(interactive=can_stop)
            finally:
                if side == 0 and left_done is not None:
                    left_done.set()

        return answer


def _stop(pair: Pair) -> Any:
    pair.stop()
    return gr.update(interactive=False)


def _clear(pair: Pair) -> tuple[Any, ...]:
    for chat in pair.chats:
        chat.abandon()
    pair.is_stopped = True
    return (Pair(), "", None, [], [], gr.update(interactive=False))
