"""The page of the demo: `build_demo`."""

from typing import Any

import gradio as gr

from llava.serve.page.anchors_tab import AnchorsTab
from llava.serve.page.answer import Answerer
from llava.serve.page.chat_tab import ChatTab
from llava.serve.page.client import ModelClient, ServerError
from llava.serve.page.compare_tab import CompareTab
from llava.serve.page.inputs import PRIVATE, budget_choices
from llava.serve.page.log import ChatLog
from llava.serve.page.style import HEADER, LICENSE, TERMS
from llava.serve.page.text import sentence

UPLOADS_CHECK, UPLOADS_AGE = 3600, 86400  # seconds between clean-ups, and age at which uploads are deleted


def build_demo(
    controller_url: str = "http://localhost:21001",
    models: list[str] | None = None,
    embed: bool = False,
    concurrency_count: int = 16,
    moderate: bool = False,
    log: ChatLog | None = None,
    client: ModelClient | None = None,
) -> gr.Blocks:
    """The page, ready for `launch(**launch_options())` (see `llava.serve.page.style`).

    Args:
        controller_url: base URL of the controller.
        models: the list shown to everyone (model list mode `once`); None asks the controller at every page load
            (`reload`).
        embed: omit header, terms and licence.
        concurrency_count: simultaneous answers.
        moderate: refuse texts that OpenAI's moderation service flags.
        log: records chats; None: into `LOGDIR`.
        client: for tests; None: a client of `controller_url`.
    """
    client = client or ModelClient(controller_url)
    answerer = Answerer(client, log or ChatLog())
    listed = models or []
    with gr.Blocks(title="LLaVA", analytics_enabled=False, delete_cache=(UPLOADS_CHECK, UPLOADS_AGE)) as demo:
        if not embed:
            gr.Markdown(HEADER)
        with gr.Tabs():
            with gr.Tab("Chat"):
                chat = ChatTab(answerer, listed, moderate, concurrency_count)
            with gr.Tab("Compare"):
                compare = CompareTab(answerer, listed, concurrency_count)
            with gr.Tab("What the model looks at"):
                anchors = AnchorsTab(client, listed)
        if not embed:
            gr.Markdown(TERMS, elem_classes="fine-print")
            gr.Markdown(LICENSE, elem_classes="fine-print")

        model_boxes = [chat.model, *compare.models, anchors.model]

        async def list_models(request: gr.Request) -> list[Any]:
            """Updates of all model boxes. The chats are not reset: a quick visitor may have asked already."""
            now, preselected = await _models(client, models, request)
            return [
                gr.update(choices=now, value=name) for name in (preselected, *(_at(now, place) for place in (0, 1, 0)))
            ]

        async def list_budgets(*chosen: str | None) -> list[Any]:
            """The numbers of visual tokens of the chosen models; takes as long as their workers do."""
            found = {name: await budget_choices(client, name) for name in dict.fromkeys(chosen)}
            return [found[name] for name in chosen]

        demo.load(list_models, None, model_boxes, **PRIVATE).then(
            list_budgets, model_boxes[1:], [*compare.budgets, anchors.budget], **PRIVATE
        )
    return demo.queue(api_open=False, default_concurrency_limit=concurrency_count)


def _at(names: list[str], place: int) -> str | None:
    """The name at a place, or the last one."""
    return names[min(place, len(names) - 1)] if names else None


async def _models(client: ModelClient, fixed: list[str] | None, request: gr.Request) -> tuple[list[str], str | None]:
    """The models to list, and the selected one: `?model=NAME` if listed, else the first."""
    if fixed is not None:
        asked = request.query_params.get("model")
        return fixed, asked if asked in fixed else next(iter(fixed), None)
    try:
        now = await client.list_models()
    except ServerError as error:
        gr.Warning(sentence(error))
        now = []
    return now, next(iter(now), None)
