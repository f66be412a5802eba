"""A visitor of the demo: a page in the browser, with words for what people do on it."""

from pathlib import Path
from typing import Any

from tests.support.serving import wait_until

QUESTION = 'textarea[placeholder="Enter text and press ENTER"]'
BOTH = 'textarea[placeholder="Ask both and press ENTER"]'
PATIENCE = 30  # seconds


class Visitor:
    """Opens the page and waits until it can be used.

    Attributes:
        strangers: addresses outside of the demo that the page asked for something.
    """

    def __init__(self, browser: Any, url: str) -> None:
        self.page = browser.new_page(viewport={"width": 1360, "height": 900})
        self.page.set_default_timeout(PATIENCE * 1000)
        self.strangers: list[str] = []
        own = (url.split("?")[0], "data:", "blob:")
        self.page.on("request", lambda asked: None if asked.url.startswith(own) else self.strangers.append(asked.url))
        self.page.goto(url, wait_until="domcontentloaded")
        self.page.wait_for_selector(QUESTION)

    def wait_model(self, name: str) -> None:
        wait_until(lambda: self.page.locator("#model_selector_row input").input_value() == name)

    def upload(self, *images: Path) -> None:
        box = self.page.locator("input[type=file]").nth(0)
        box.set_input_files(images[0])
        self.page.locator('[data-testid="image"] img, .image-frame img').first.wait_for()
        if images[1:]:
            self.page.get_by_text("More images").click()
            self.page.locator("input[type=file]").nth(1).set_input_files(list(images[1:]))
            self.page.locator(".grid-container img").nth(len(images) - 2).wait_for()

    def ask(self, text: str) -> None:
        self.page.fill(QUESTION, text)
        self.page.keyboard.press("Enter")

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name).locator("visible=true").first

    def press(self, name: str) -> None:
        self.wait_enabled(name)
        self.button(name).click()

    def is_enabled(self, name: str) -> bool:
        return self.button(name).is_enabled()

    def wait_enabled(self, name: str, enabled: bool = True) -> None:
        wait_until(lambda: self.is_enabled(name) is enabled)

    @property
    def replies(self) -> list[str]:
        return [text.strip() for text in self.page.locator('#chatbot [data-testid="bot"]').all_inner_texts()]

    def wait_reply(self, text: str, box: str = "#chatbot") -> None:
        self.page.locator(f'{box} [data-testid="bot"]').last.get_by_text(text).wait_for()

    def states(self) -> dict[str, bool]:
        return {name: self.is_enabled(name) for name in ("Upvote", "Downvote", "Flag", "Regenerate", "Clear")}
