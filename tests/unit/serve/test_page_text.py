"""Escaped texts, measurements below a reply, images of visitors."""

import re
from pathlib import Path

import pytest
from PIL import Image

from llava.images import ImageError
from llava.serve.page.chat import Chat, ReplyFigures, Stopwatch
from llava.serve.page.images import make_preview, open_images
from llava.serve.page.text import sentence, to_html, to_messages

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "**<b onclick=alert(1)>x</b>**",
    "`<script>`",
    "```\n<script>alert(1)</script>\n```",
    "```<script>\nx\n```",
    "[x](javascript:alert(1))",
    '" onmouseover="alert(1)',
    "&lt;script&gt;",
]


@pytest.mark.parametrize("text", ATTACKS)
def test_only_our_own_tags(text: str) -> None:
    tags = re.findall(r"<[^>]*>", to_html(text))
    assert set(tags) <= {"<strong>", "</strong>", "<code>", "</code>", "<pre>", "</pre>"}


def test_a_little_markdown() -> None:
    assert to_html("a **b** `c<d` e * f ** g") == "a <strong>b</strong> <code>c&lt;d</code> e * f ** g"
    assert to_html("x\n```py\nif **a** < b:\n```\ny") == "x\n<pre><code>if **a** &lt; b:</code></pre>\ny"
    assert to_html("```\nnot finished") == "<pre><code>not finished</code></pre>"


def test_messages_of_a_chat() -> None:
    chat = Chat()
    chat.add_text("What <b>?", [Image.new("RGB", (9, 9))], ["p.jpg"])
    chat.conversation.messages[-1][1] = "A <i>dot</i>."
    chat.figures[1] = ReplyFigures(visual_tokens=17, completion_tokens=1, first_token=1.25, rate=None)
    chat.remarks[1] = "<u>"
    chat.conversation.append_message("USER", "Why?")
    chat.conversation.append_message("ASSISTANT", None)
    assert to_messages(chat) == [
        {"role": "user", "content": {"path": "p.jpg"}},
        {"role": "user", "content": "What &lt;b&gt;?"},
        {
            "role": "assistant",
            "content": 'A &lt;i&gt;dot&lt;/i&gt;.<div class="reply-note">&lt;u&gt;</div>'
            '<div class="reply-note">17 visual tokens · 1 token · first after 1.2 s</div>',
        },
        {"role": "user", "content": "Why?"},
    ]
    assert sentence(ValueError("no <b> here.")) == "No &lt;b&gt; here."


def test_figures() -> None:
    now = iter([10.0, 10.2, 10.5, 11.0, 11.5, 12.0, 12.5])
    watch = Stopwatch(lambda: next(now))
    for has_grown in (False, True, True, True, True, False):  # the first and the last one bring no text
        watch.frame(has_grown)
    assert watch.figures(None, True) == ReplyFigures(None, 4, 0.5, 1.5, True)
    usage = {"visual_tokens": 9, "completion_tokens": 5, "time_to_first_token": 0.25}
    assert watch.figures(usage, False).caption() == "9 visual tokens · 5 tokens · first after 250 ms · 2.0 tokens/s"
    assert watch.figures({"completion_tokens": "<b>", "visual_tokens": True}, False).completion_tokens == 4
    assert watch.figures({"completion_tokens": 2}, False).rate is None
    assert ReplyFigures(stopped=True).caption() == "stopped"


def test_images_of_visitors(tmp_path: Path) -> None:
    good, small, damaged = (tmp_path / name for name in ("good.jpg", "small.png", "damaged.png"))
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.new("RGB", (2000, 1000), "red").save(good, exif=exif)
    Image.new("RGB", (1, 1)).save(small)
    damaged.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (image,) = open_images([str(good)])
    assert image.size == (1000, 2000) and make_preview(image).size == (320, 640)
    for path in (small, damaged, tmp_path / "missing.png"):
        with pytest.raises(ImageError) as caught:
            open_images([str(path)])
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("format", ["GIF", "BMP", "EPS"])
def test_other_formats_are_not_opened(tmp_path: Path, format: str) -> None:
    """Whatever their names: for some formats, Pillow starts other programs."""
    path = tmp_path / "image.png"
    Image.new("RGB", (20, 20)).save(path, format=format)
    with pytest.raises(ImageError, match="JPEG, PNG, WEBP"):
        open_images([str(path)])


def test_large_images_are_kept_small(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (6000, 100)).save(path)
    assert open_images([str(path)])[0].size == (2688, 45)
