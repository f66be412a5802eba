"""Appearance and fixed texts of the demo."""

from typing import Any

HEADER = """
# LLaVA
Chat with a model about images, compare two models or two numbers of visual tokens, and see what a model looks at.
"""

TERMS = """
**Terms of use.** This is a research preview. It has limited safety measures and may give wrong or offensive answers;
it must not be used for anything illegal, harmful, violent, racist, or sexual. The operator of this server may keep the
conversations and images; do not upload anything private. Press **Flag** at an inappropriate answer.
"""

LICENSE = """
**Licence.** The code is under the Apache License 2.0. A model is subject to the licences of its language model, its
vision tower and its training data.
"""

CSS = """
.gradio-container { max-width: 1440px !important; margin: 0 auto !important; }
.chat-box .message img { max-height: 180px; width: auto; border-radius: 8px; }
.chat-box .message .image-container button { justify-content: flex-start; }
.chat-box .message .image-frame img { margin: 4px 0; }
/* Gradio's own Clear would empty the box, but not the chat; images are not offered for download. */
.chat-box button[aria-label="Clear"], .chat-box .message .icon-button-wrapper, .chat-box .message-buttons {
    display: none;
}
#buttons button { white-space: nowrap; padding-left: 8px; padding-right: 8px; }
/* The names of the tabs side by side would make the page wider than the screen of a phone. */
@media (max-width: 480px) { .tab-container button { padding-left: 8px !important; padding-right: 8px !important; } }
@media (max-width: 380px) { .tab-container button { padding-left: 4px !important; padding-right: 4px !important; } }
.reply-note { margin-top: 6px; font-size: 12px; line-height: 1.4; color: var(--body-text-color); opacity: 0.7; }
.fine-print, .fine-print p { font-size: 13px; color: var(--body-text-color); opacity: 0.85; }
"""


def launch_options() -> dict[str, Any]:
    """Options for `launch` of the page: appearance, limits on uploads and events, no links to other servers."""
    import gradio as gr
    from starlette.middleware import Middleware

    from llava.serve.page.guard import PageGuard
    from llava.serve.page.images import MAX_UPLOAD_BYTES

    fonts = ["ui-sans-serif", "system-ui", "sans-serif"]  # of the visitor's system; none are fetched
    mono = ["ui-monospace", "Consolas", "monospace"]
    return {
        "theme": gr.themes.Default(primary_hue="indigo", secondary_hue="indigo", font=fonts, font_mono=mono),
        "css": CSS,
        "max_file_size": MAX_UPLOAD_BYTES,
        "footer_links": [],
        "app_kwargs": {"middleware": [Middleware(PageGuard)]},
    }
