"""The calls of lmms-eval and VLMEvalKit, which have their own adapters for upstream's package.

The functions `lmms_eval_*` and `vlmevalkit_*` make the suites' calls with exactly the suites' arguments.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    get_model_name_from_path,
    process_images,
    tokenizer_image_token,
)
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_projector.builder import build_vision_projector
from tests.support import vlora_models

CHECKPOINTS = ["llava-v1-tiny-mlp2x", "llava-tiny-mistral", "llava-v1.6-tiny-anyres-unpad"]
QUESTIONS = ["What color is the tall clock?", "Hi", "What is happening in the park?", "Is there a red house here? Why?"]
IMAGES = ["img0.png", None, "img2.png", "img3.png"]

Suite = tuple[Any, Any, Any]  # tokenizer, model, image processor


def load_as_lmms_eval(path: str, device_map: str = "cpu", **more: Any) -> tuple[Any, Any, Any, int]:
    """With `multimodal`, and without it after a TypeError."""
    arguments = {"multimodal": True, "attn_implementation": "sdpa"} | more
    name = get_model_name_from_path(path)
    try:
        return load_pretrained_model(path, None, name, device_map=device_map, **arguments)
    except TypeError:
        arguments.pop("multimodal")
        return load_pretrained_model(path, None, name, device_map=device_map, **arguments)


def open_suite(path: str, **more: Any) -> Suite:
    """Open a model as lmms-eval does."""
    tokenizer, model, image_processor, _ = load_as_lmms_eval(path, **more)
    model.eval()
    model.tie_weights()
    model.to("cpu")
    return tokenizer, model, image_processor


def half(images: Any) -> Any:
    """Convert pixel values as the suites do, independently of the model's dtype."""
    if type(images) is list:
        return [image.to(dtype=torch.float16, device="cpu") for image in images]
    return images.to(dtype=torch.float16, device="cpu")


def open_images(names: list[str | None]) -> list[list[Image.Image]]:
    """Return the images of each question; an empty list for a text-only one."""
    return [[Image.open(f"assets/images/{name}").convert("RGB")] if name else [] for name in names]


def prompt_of(template: str, question: str, answer: str | None = None) -> str:
    conversation = conv_templates[template].copy()
    conversation.append_message(conversation.roles[0], question)
    conversation.append_message(conversation.roles[1], None)
    conversation.messages[1][1] = answer
    return conversation.get_prompt()


def lmms_eval_generate(
    suite: Suite,
    questions: list[str],
    visuals: list[list[Image.Image]],
    max_new_tokens: int = 12,
    temperature: float = 0,
    num_beams: int = 1,
) -> list[str]:
    """One batch of `generate_until`."""
    tokenizer, model, image_processor = suite
    flat = [pil_image for pil_images in visuals for pil_image in pil_images]
    images = half(process_images(flat, image_processor, model.config)) if flat else None
    prompts = []
    for question, pil_images in zip(questions, visuals, strict=True):
        if images is not None and DEFAULT_IMAGE_TOKEN not in question:
            question = " ".join([DEFAULT_IMAGE_TOKEN] * len(pil_images)) + "\n" + question
        prompts.append(prompt_of("vicuna_v1", question))
    rows = [tokenizer_image_token(p, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt") for p in prompts]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    flip = (lambda row: torch.flip(row, [0])) if tokenizer.padding_side == "left" else (lambda row: row)
    input_ids = torch.nn.utils.rnn.pad_sequence([flip(row) for row in rows], batch_first=True, padding_value=pad)
    input_ids = torch.flip(input_ids, [1]) if tokenizer.padding_side == "left" else input_ids
    output = model.generate(
        input_ids,
        attention_mask=input_ids.ne(pad),
        pad_token_id=pad,
        images=images,
        image_sizes=[pil_image.size for pil_image in flat],
        do_sample=temperature > 0,
        temperature=temperature,
        top_p=None,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        use_cache=True,
    )
    return tokenizer.batch_decode(output, skip_special_tokens=True)


def lmms_eval_loglikelihood(suite: Suite, question: str, pil_images: list[Image.Image], answer: str) -> tuple[Any, Any]:
    """`(labels [1, n], output)` of one request."""
    tokenizer, model, image_processor = suite
    sizes = [[pil_image.size[0], pil_image.size[1]] for pil_image in pil_images]
    images = half(process_images(pil_images, image_processor, model.config)) if pil_images else None
    if images is not None:
        question = " ".join([DEFAULT_IMAGE_TOKEN] * len(pil_images)) + "\n" + question
    context = tokenizer_image_token(prompt_of("vicuna_v1", question), tokenizer, return_tensors="pt").unsqueeze(0)
    prompt = prompt_of("vicuna_v1", question, answer)
    input_ids = tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt").unsqueeze(0)
    labels = input_ids.clone()
    labels[0, : context.shape[1]] = -100
    with torch.inference_mode():
        output = model(input_ids=input_ids, labels=labels, images=images, use_cache=True, image_sizes=sizes)
    return labels, output


def vlmevalkit_generate(suite: Suite, question: str, pil_images: list[Image.Image]) -> str:
    """One message of VLMEvalKit: its own prompt, a minimal configuration, stopping criteria in a plain list."""
    tokenizer, model, image_processor = suite
    config = SimpleNamespace(image_aspect_ratio="pad")
    images = process_images(pil_images, image_processor, config).to("cpu", dtype=torch.float16) if pil_images else None
    content = DEFAULT_IMAGE_TOKEN * len(pil_images) + question
    prompt = f"{conv_templates['vicuna_v1'].system} USER: {content} ASSISTANT: "
    input_ids = tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt").unsqueeze(0)
    stop = KeywordsStoppingCriteria(["</s>"], tokenizer, input_ids)
    with torch.inference_mode():
        output = model.generate(
            input_ids,
            images=images,
            stopping_criteria=[stop],
            do_sample=False,
            temperature=0,
            max_new_tokens=12,
            top_p=None,
            num_beams=1,
            use_cache=True,
        )
    return tokenizer.batch_decode(output, skip_special_tokens=True)[0].strip()


# --- opening ---


@pytest.mark.parametrize("path", [*(f"checkpoints/{name}" for name in CHECKPOINTS), "assets/base-llama"])
def test_unknown_keywords_are_a_type_error(path: str, llava_vectors: Path) -> None:
    """lmms-eval tries again without `multimodal` on a TypeError, and on nothing else."""
    for unknown in ({"multimodal": True}, {"customized_config": "a.json"}, {"use_flash_attention_2": True}):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{next(iter(unknown))}'"):
            load_pretrained_model(path, None, "llava", device_map="cpu", attn_implementation="sdpa", **unknown)


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_opening(name: str, device_map: str, llava_vectors: Path) -> None:
    tokenizer, model, image_processor, length = load_as_lmms_eval(f"checkpoints/{name}", device_map)
    assert model.dtype == torch.float16
    assert model.config._attn_implementation == "sdpa"
    assert length == 2048
    assert image_processor is not None
    assert tokenizer.eos_token_id == 2
    head = model.lm_head.weight.clone()
    model.tie_weights()
    assert torch.equal(model.lm_head.weight, head), "an untied model must stay untied"
    assert model.eval() is model
    assert model.to(torch.device("cpu")) is model
    assert Accelerator(cpu=True).unwrap_model(model) is model
    assert "image_aspect_ratio" in model.config.__dict__  # lmms-eval sets it if it is missing


def test_other_attention(llava_vectors: Path) -> None:
    model = load_as_lmms_eval("checkpoints/llava-v1-tiny-mlp2x", attn_implementation="eager")[1]
    assert model.config._attn_implementation == "eager"


# --- generating ---


@pytest.fixture
def mlp2x(llava_vectors: Path) -> Suite:
    return open_suite("checkpoints/llava-v1-tiny-mlp2x", dtype=torch.float32)


@pytest.fixture
def anyres(llava_vectors: Path) -> Suite:
    """Images as a list of crops."""
    return open_suite("checkpoints/llava-v1.6-tiny-anyres-unpad", dtype=torch.float32)


@pytest.fixture
def acformer(mlp2x: Suite) -> Suite:
    torch.manual_seed(0)
    config = SimpleNamespace(
        mm_projector_type="acformer", mm_hidden_size=64, hidden_size=64, mm_num_visual_tokens=9, mm_resampler_depth=2
    )
    mlp2x[1].model.mm_projector = build_vision_projector(config).eval()
    return mlp2x


def _with_weights(mlp2x: Suite, projector: str, **settings: Any) -> Suite:
    model = vlora_models.build(projector=projector, **settings)
    model.resize_token_embeddings(len(mlp2x[0]))
    model.config.image_aspect_ratio = "pad"
    for name, parameter in model.named_parameters():
        if "vision_tower" not in name and "mm_projector" not in name and parameter.ndim == 2:
            parameter.data *= 8  # as initialised, the model hardly depends on its input
    return mlp2x[0], model, mlp2x[2]


@pytest.fixture
def vlora(mlp2x: Suite) -> Suite:
    return _with_weights(mlp2x, "vlora")


@pytest.fixture
def acformer_vlora(mlp2x: Suite) -> Suite:
    return _with_weights(mlp2x, "acformer_vlora", mm_num_visual_tokens=9, mm_resampler_depth=1)


SUITES = ["mlp2x", "anyres", "acformer", "vlora", "acformer_vlora"]


@pytest.mark.parametrize("which", SUITES)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("names", [IMAGES, [None] * 4, [None, None, None, "img1.png"], ["img1.png"] * 4])
def test_batch_answers_as_one_by_one(
    which: str, side: str, names: list[str | None], request: pytest.FixtureRequest
) -> None:
    """A batch of lmms-eval holds no dummy images for its text-only rows."""
    suite, visuals = request.getfixturevalue(which), open_images(names)
    suite[0].padding_side = side
    # in a batch with images lmms-eval starts text-only rows with an empty line too
    questions = [q if pil_images or not any(visuals) else "\n" + q for q, pil_images in zip(QUESTIONS, visuals)]
    alone = [lmms_eval_generate(suite, [q], [pil_images])[0] for q, pil_images in zip(questions, visuals)]
    assert lmms_eval_generate(suite, QUESTIONS, visuals) == alone
    assert len(set(alone)) > 1 and all(alone)


def test_batch_without_a_padding_token(mlp2x: Suite) -> None:
    """lmms-eval pads with the end token then."""
    visuals = open_images(IMAGES)
    expected = lmms_eval_generate(mlp2x, QUESTIONS, visuals)
    mlp2x[0].pad_token = None
    assert mlp2x[0].pad_token_id is None
    assert lmms_eval_generate(mlp2x, QUESTIONS, visuals) == expected


@pytest.mark.parametrize("which", ["mlp2x", "vlora"])
def test_beams(which: str, request: pytest.FixtureRequest) -> None:
    suite, visuals = request.getfixturevalue(which), open_images(["img0.png", "img1.png", "img2.png", "img3.png"])
    alone = [lmms_eval_generate(suite, [q], [p], num_beams=2)[0] for q, p in zip(QUESTIONS, visuals)]
    assert lmms_eval_generate(suite, QUESTIONS, visuals, num_beams=2) == alone


def test_replies_are_those_of_upstream(mlp2x: Suite, llava_vectors: Path) -> None:
    """`generate` returns no part of the prompt. The images are those of the recording, in float16."""
    recorded = json.loads((llava_vectors / "eval/vqa/loader_mlp2x.jsonl").read_text().splitlines()[3])
    visuals = open_images(["img3.png"])
    assert lmms_eval_generate(mlp2x, [recorded["prompt"]], visuals, max_new_tokens=128) == [recorded["text"]]
    marked = f"{DEFAULT_IMAGE_TOKEN}\n{recorded['prompt']}"  # a task may place the marker itself
    assert lmms_eval_generate(mlp2x, [marked], visuals, max_new_tokens=128) == [recorded["text"]]


def test_sampling(mlp2x: Suite) -> None:
    torch.manual_seed(0)
    replies = {lmms_eval_generate(mlp2x, QUESTIONS[:1], open_images(["img0.png"]), temperature=2.0)[0] for _ in "abc"}
    assert len(replies) > 1


def test_half_precision_model(llava_vectors: Path) -> None:
    """The default dtype, also on a CPU; with `auto` the tower is in float32."""
    for device_map in ("cpu", "auto"):
        suite = open_suite("checkpoints/llava-v1-tiny-mlp2x", device_map=device_map)
        assert lmms_eval_generate(suite, QUESTIONS, open_images(IMAGES), max_new_tokens=2)


@pytest.fixture
def transformers_messages() -> Iterator[list[str]]:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def test_warnings_are_not_repeated(
    mlp2x: Suite, transformers_messages: list[str], recwarn: pytest.WarningsRecorder
) -> None:
    """`temperature=0` with `do_sample=False` gives at most one message, for any number of batches."""
    for _ in range(3):
        lmms_eval_generate(mlp2x, QUESTIONS, open_images(IMAGES), max_new_tokens=2)
        vlmevalkit_generate(mlp2x, QUESTIONS[0], open_images(["img0.png"])[0])
    assert len(transformers_messages) <= 1
    assert [str(warning.message) for warning in recwarn if "temperature" in str(warning.message)] == []


# --- likelihood ---


@pytest.mark.parametrize("which", SUITES)
def test_likelihood_of_an_answer(which: str, request: pytest.FixtureRequest) -> None:
    """The loss is the mean over the tokens of the answer, under the prompt that `generate` would get."""
    suite = request.getfixturevalue(which)
    for pil_images in open_images(["img0.png", None]):
        labels, output = lmms_eval_loglikelihood(suite, QUESTIONS[0], pil_images, "a red clock")
        count = int((labels != -100).sum())
        predicted = output["logits"][0, -count - 1 : -1].float().log_softmax(-1)
        expected = -predicted.gather(1, labels[0, -count:, None]).mean()
        torch.testing.assert_close(output["loss"].float(), expected, rtol=0, atol=1e-5)
    assert output["logits"].shape[:2] == labels.shape, "without images nothing is spliced in"


@pytest.mark.parametrize("which", ["mlp2x", "vlora"])
def test_training_after_inference_mode(which: str, request: pytest.FixtureRequest) -> None:
    """Nothing computed in inference mode is cached and used in training."""
    suite, pil_images = request.getfixturevalue(which), open_images(["img0.png"])[0]
    vlmevalkit_generate(suite, QUESTIONS[0], pil_images)
    lmms_eval_loglikelihood(suite, QUESTIONS[0], pil_images, "yes")
    ids = torch.tensor([[1, 300, IMAGE_TOKEN_INDEX, 301, 302]])
    pixels = process_images(pil_images, suite[2], suite[1].config)
    suite[1](ids, labels=ids.masked_fill(ids < 0, -100), images=pixels).loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in suite[1].get_model().mm_projector.parameters())


# --- VLMEvalKit ---


@pytest.mark.parametrize("which", ["mlp2x", "acformer", "vlora"])
def test_vlmevalkit(which: str, request: pytest.FixtureRequest) -> None:
    """Its reply is that of a plain call: no mask, criteria in a list, a configuration of one attribute."""
    suite = request.getfixturevalue(which)
    tokenizer, model, image_processor = suite
    for pil_images in open_images(["img0.png", None]):
        prompt = f"{conv_templates['vicuna_v1'].system} USER: {'<image>' * len(pil_images)}{QUESTIONS[0]} ASSISTANT: "
        ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt").unsqueeze(0)
        images = half(process_images(pil_images, image_processor, model.config)) if pil_images else None
        plain = model.generate(ids, images=images, do_sample=False, max_new_tokens=12)
        expected = tokenizer.batch_decode(plain, skip_special_tokens=True)[0].strip()
        assert vlmevalkit_generate(suite, QUESTIONS[0], pil_images) == expected


def test_stopping_criteria_end_a_reply(mlp2x: Suite) -> None:
    """A keyword that occurs in the reply ends it there."""
    tokenizer, model, image_processor = mlp2x
    reply = lmms_eval_generate(mlp2x, QUESTIONS[:1], open_images(["img0.png"]))[0]
    prompt = prompt_of("vicuna_v1", f"{DEFAULT_IMAGE_TOKEN}\n{QUESTIONS[0]}")
    ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt").unsqueeze(0)
    images = half(process_images(open_images(["img0.png"])[0], image_processor, model.config))
    keyword = reply[3:6]
    stop = KeywordsStoppingCriteria([keyword], tokenizer, ids)
    output = model.generate(ids, images=images, stopping_criteria=[stop], do_sample=False, max_new_tokens=12)
    text = tokenizer.decode(output[0], skip_special_tokens=True)
    assert keyword in text
    assert reply.startswith(text) and len(text) < len(reply)


@pytest.mark.parametrize("ratio", ["pad", "square"])
def test_images_with_a_bare_configuration(ratio: str, mlp2x: Suite) -> None:
    config = SimpleNamespace(image_aspect_ratio=ratio)
    pil_images = [pil_image for (pil_image,) in open_images(["img0.png", "img1.png"])]
    assert process_images(pil_images, mlp2x[2], config).shape == (2, 3, 56, 56)
