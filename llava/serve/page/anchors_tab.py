"""The tab "What the model looks at": the visual anchors of AcFormer drawn on an image (arXiv 2405.17815)."""

import html
from typing import Any

import gradio as gr

from llava.images import ImageError, open_image
from llava.program import RequestError
from llava.serve.page.client import ModelClient, ServerError
from llava.serve.page.images import make_upload, open_images
from llava.serve.page.inputs import EXAMPLES, PRIVATE, budget_box, budget_choices, chosen_budget, image_box, model_box
from llava.serve.page.text import sentence

ABOUT = (
    "A vision tower gathers the information of an image in a few patches, which its class token attends to most: the "
    "*visual anchors*. AcFormer reads the image only at these; they are circled here. Other connectors do not use them."
)


class AnchorsTab:
    """Builds the tab's components inside the current `gr.Blocks`, then connects them.

    Args:
        client: of controller and workers.
        models: listed initially.
    """

    def __init__(self, client: ModelClient, models: list[str]) -> None:
        self.client = client
        with gr.Row():
            with gr.Column(scale=3):
                gr.Markdown(ABOUT)
                self.model = model_box(models, label="Model", elem_id="anchors_model")
                self.budget = budget_box(elem_id="anchors_budget")
                self.image = image_box(elem_id="anchors_image")
                gr.Examples([row[:1] for row in EXAMPLES], inputs=[self.image], cache_examples=False, label="Examples")
                self.show = gr.Button("Show the anchors", variant="primary")
            with gr.Column(scale=8):
                self.drawn = gr.Image(
                    label="Visual anchors",
                    format="png",
                    interactive=False,
                    height=650,
                    elem_id="anchors_drawn",
                    buttons=["download", "fullscreen"],
                )
                self.caption = gr.HTML(elem_id="anchors_caption", elem_classes="fine-print")
        self.model.change(self.choices, [self.model], [self.budget], **PRIVATE)
        self.show.click(
            self._draw,
            [self.model, self.budget, self.image],
            [self.drawn, self.caption],
            api_visibility="private",
            show_progress="minimal",
        )

    async def choices(self, model: str | None) -> Any:
        """The numbers of visual tokens that a model allows, as an update."""
        return await budget_choices(self.client, model)

    async def _draw(self, model: str | None, budget: int | str | None, path: str | None) -> tuple[Any, str]:
        """The image with its anchors and a caption; on failure, no image and the reason."""
        try:
            if not path:
                raise RequestError("choose an image first")
            if not model:
                raise RequestError("no model is chosen; start a worker and reload the page")
            image = make_upload(open_images([path])[0])
            drawn = await self.client.anchors(model, image, chosen_budget(budget))
            return open_image(drawn.png), html.escape(drawn.caption)
        except (ImageError, RequestError, ServerError) as error:
            return None, sentence(error)
