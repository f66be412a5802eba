"""Cog's entry point: LLaVA-1.5-13B as a streaming predictor (see cog.yaml)."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from queue import Empty
from typing import Any

from cog import BasePredictor, ConcatenateIterator, Input, Path
from transformers import StoppingCriteriaList, TextIteratorStreamer

from llava.chat import announce_images, build_prompt, without_markers
from llava.files import write_text_atomically
from llava.image_source import load_image
from llava.inference import generate_reply, inference_options, prepare_images
from llava.mm_utils import get_model_name_from_path, tokenizer_image_token
from llava.model.builder import load_pretrained_model

MODEL = "liuhaotian/llava-v1.5-13b"
# Name of the folder and of the repository on the Hub -> the revision this file was written for.
REVISIONS = {
    MODEL: "901a44b9113dea67b976e71f58d4e372cf9de81a",
    "openai/clip-vit-large-patch14-336": "ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
}
HUB_CACHE = "./weights"
VERIFIED = ".verified.json"
TEMPLATE = "llava_v1"
STREAMER_TIMEOUT = 20.0  # seconds without a new token


class Predictor(BasePredictor):
    """Keeps the model between predictions."""

    def setup(self) -> None:
        """Download the weights (once) and load the model."""
        for folder, revision in REVISIONS.items():
            download_weights(folder, revision)
        self.load(MODEL)

    def load(self, model_path: str, device: str = "cuda") -> None:
        """Load a model from a folder."""
        name = get_model_name_from_path(model_path)
        self.tokenizer, self.model, self.image_processor, self.context_len = load_pretrained_model(
            model_path, None, name, **inference_options(device)
        )

    def predict(
        self,
        image: Path = Input(description="Input image"),  # noqa: B008 - Cog reads the defaults
        prompt: str = Input(description="Prompt to use for text generation"),
        top_p: float = Input(description="Total probability of the tokens to sample from", ge=0.0, le=1.0, default=1.0),
        temperature: float = Input(description="Randomness of the reply; 0: always the likeliest", default=0.2, ge=0.0),
        max_tokens: int = Input(description="Largest number of tokens of the reply", default=1024, ge=0),
    ) -> ConcatenateIterator[str]:
        """The reply to a question about an image, piece by piece."""
        if max_tokens > 0:
            yield from join_spaces(self.stream_reply(str(image), prompt, top_p, temperature, max_tokens))

    def stream_reply(self, image: str, prompt: str, top_p: float, temperature: float, max_tokens: int) -> Iterator[str]:
        """Pieces of the reply as the model makes them; closing the iterator ends the generation.

        Raises:
            ImageError: the image cannot be used.
            TimeoutError: no new token for 20 seconds.
        """
        images, sizes = prepare_images([load_image(image)], self.image_processor, self.model.config)
        question = announce_images(without_markers(prompt), self.model.config)
        ids = tokenizer_image_token(build_prompt(question, TEMPLATE), self.tokenizer, return_tensors="pt").unsqueeze(0)
        streamer = TextIteratorStreamer(
            self.tokenizer, skip_prompt=True, timeout=STREAMER_TIMEOUT, skip_special_tokens=True
        )
        stopped = threading.Event()
        failures: list[Exception] = []

        def generate() -> None:
            try:
                generate_reply(
                    *(self.model, self.tokenizer, ids, images, sizes, temperature),
                    top_p=top_p,
                    max_new_tokens=max_tokens,
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([StopWhen(stopped)]),
                )
            except Exception as failure:  # it belongs to the reader of this stream, who sits in another thread
                failures.append(failure)
                streamer.end()

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        try:
            yield from streamer
        except Empty as error:
            raise TimeoutError(f"no new token for {STREAMER_TIMEOUT:g} seconds; try again") from error
        finally:
            stopped.set()
        thread.join()
        if failures:
            raise failures[0]


class StopWhen:
    """Ends a generation when an event is set. Goes into a `StoppingCriteriaList`."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def join_spaces(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces; a single space comes with the piece after it, an end token and a space at the end are cut."""
    held = ""
    for piece in pieces:
        if piece == " ":
            held += piece
            continue
        piece = (held + piece).removesuffix("</s>")
        held = ""
        if piece:
            yield piece


def download_weights(folder: str, revision: str) -> None:
    """Fetch a repository of the Hub at a fixed revision into a folder of the same name, and check its large files.

    A folder that has been checked once is left alone.

    Raises:
        OSError: a file is not what the Hub lists for this revision; names it.
    """
    if checked_revision(folder) == revision:
        return
    from huggingface_hub import HfApi, snapshot_download

    snapshot_download(folder, revision=revision, local_dir=folder, cache_dir=HUB_CACHE)
    for file in HfApi().model_info(folder, revision=revision, files_metadata=True).siblings:
        path = os.path.join(folder, file.rfilename)
        if file.lfs is not None and sha256_of(path) != file.lfs.sha256:
            raise OSError(
                f"{path} is damaged (its SHA-256 is not that of revision {revision}); delete it and try again"
            )
    write_text_atomically(os.path.join(folder, VERIFIED), json.dumps({"revision": revision}))


def checked_revision(folder: str) -> str | None:
    """The revision that was downloaded into a folder and found whole; None without one."""
    try:
        with open(os.path.join(folder, VERIFIED), encoding="utf-8") as file:
            return json.load(file)["revision"]
    except FileNotFoundError:
        return None


def sha256_of(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**24):
            digest.update(piece)
    return digest.hexdigest()
