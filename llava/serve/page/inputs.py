"""Inputs that the tabs of the demo share: uploads, the visitor's address, models, numbers of visual tokens."""

import os
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_pil_to_cache
from PIL import Image

from llava.serve.page.client import ModelClient, ModelDetails, ServerError
from llava.serve.page.images import make_preview, open_images

PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}  # for every event: the page is the only client
# Text is escaped (`text.to_html`); in addition, the chat box renders no markdown and sanitizes HTML.
CHAT_BOX = {
    "elem_classes": "chat-box",
    "layout": "panel",
    "buttons": [],
    "sanitize_html": True,
    "render_markdown": False,
    "latex_delimiters": [],
}
EXAMPLES_FOLDER = str(Path(__file__).resolve().parents[1] / "examples")
EXAMPLES = [
    [os.path.join(EXAMPLES_FOLDER, "extreme_ironing.jpg"), "What is unusual about this image?"],
    [
        os.path.join(EXAMPLES_FOLDER, "waterview.jpg"),
        "What are the things I should be cautious about when I visit here?",
    ],
]
OWN_NUMBER = 0  # choice of visual tokens: the model's own number


def open_uploads(
    chatbot: gr.Chatbot, image: str | None, more: list[Any] | None = None
) -> tuple[list[Image.Image], list[str]]:
    """The images of an image box and a gallery, in this order, and preview files for a chat box.

    Raises:
        ImageError: one of them cannot be used.
    """
    paths = [image] if image else []
    paths += [one[0] if isinstance(one, tuple | list) else one for one in more or []]
    images = open_images(paths)
    previews = [save_pil_to_cache(make_preview(one), chatbot.GRADIO_CACHE, format="jpeg") for one in images]
    chatbot.temp_files.update(previews)  # deleted by Gradio with its own files
    return images, previews


def visitor_address(request: gr.Request) -> str:
    """The IP address a request comes from, as it is logged."""
    return request.client.host if request.client else ""


def model_box(models: list[str], index: int = 0, **options: Any) -> gr.Dropdown:
    """A list of models; the one at `index`, or the last, is chosen."""
    chosen = models[min(index, len(models) - 1)] if models else None
    return gr.Dropdown(choices=models, value=chosen, interactive=True, **options)


def image_box(**options: Any) -> gr.Image:
    """An upload box; images are opened by `open_uploads`, within limits."""
    sources = ["upload", "clipboard"]
    return gr.Image(type="filepath", image_mode=None, label="Image", height=260, sources=sources, **options)


def question_box(placeholder: str) -> gr.Textbox:
    """A text box that is rendered later, below the chat."""
    options = {"container": False, "lines": 1, "max_lines": 8, "render": False}
    return gr.Textbox(label="Question", show_label=False, placeholder=placeholder, **options)


def parameter_sliders() -> tuple[gr.Slider, gr.Slider, gr.Slider]:
    """Temperature, top p and longest answer, in a closed accordion."""
    with gr.Accordion("Parameters", open=False):
        return (
            gr.Slider(0.0, 1.0, value=0.2, step=0.1, interactive=True, label="Temperature"),
            gr.Slider(0.0, 1.0, value=0.7, step=0.1, interactive=True, label="Top P"),
            gr.Slider(0, 1024, value=512, step=64, interactive=True, label="Max output tokens"),
        )


def budget_box(**options: Any) -> gr.Dropdown:
    """A choice of the number of visual tokens per image; filled by `budget_choices`.

    Any value is accepted and left to the worker: the list changes with the model, and Gradio would refuse a number
    that was on the list when the visitor chose it.
    """
    return gr.Dropdown(
        choices=[("default", OWN_NUMBER)],
        value=OWN_NUMBER,
        interactive=False,
        label="Visual tokens",
        allow_custom_value=True,
        **options,
    )


async def budget_choices(client: ModelClient, model: str | None) -> Any:
    """An update for `budget_box`: the numbers that a model allows, or its own if it is not elastic."""
    try:
        details = await client.details_of(model) if model else ModelDetails()
    except ServerError:
        details = ModelDetails()
    own = details.num_visual_tokens
    choices = [(f"{own} (default)" if own else "default", OWN_NUMBER)]
    choices += [(str(budget), budget) for budget in details.budgets if budget != own]
    return gr.update(choices=choices, value=OWN_NUMBER, interactive=len(choices) > 1)


def chosen_budget(choice: int | str | None) -> int | None:
    """The number to request; None, the model's own, for anything else than a positive number."""
    return int(choice) or None if str(choice).isdecimal() else None
