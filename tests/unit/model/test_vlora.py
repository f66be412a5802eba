"""VLoRA beyond its recordings: what equals what, rows with and without images, decoding, other decoders, refusals."""

import copy
import gc
import logging
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, TextStreamer

from llava.model import LlavaLlamaVLoRAForCausalLM, LlavaVLoRAConfig
from llava.model.builder import load_pretrained_model
from llava.model.families import read_config
from llava.model.image_inputs import ImageInputs
from llava.model.multimodal_projector.image_rows import ImageCountError
from llava.model.multimodal_projector.vlora import DecoderShape, VLoRAConfig, check_settings
from llava.model.splice import LanguageInputs
from tests.conftest import REPOSITORY
from tests.support.training import losses_of, run_training
from tests.support.vlora_models import (
    FLAGS,
    GREEDY,
    PROMPTS,
    SMALL,
    assert_cached_equals_uncached,
    build,
    logits,
    pad,
    random_images,
)


@pytest.fixture
def model(llava_vectors: Path) -> Any:
    return build()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("letters", ["qkvom", "m", "vq", "o"])
def test_batch_equals_one_by_one(letters: str, side: str, llava_vectors: Path) -> None:
    model, images = build(vlora_type=letters), random_images(3)
    together = logits(model, PROMPTS, images, side)
    for i, row in enumerate(PROMPTS):
        alone = logits(model, [row], images[i : i + 1])[0]
        torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-5)


def test_it_is_a_low_rank_update_of_the_matrices(model: Any) -> None:
    """`W + B A^T` written into copies of the matrices gives the same answers; m is a path of its own."""
    model, images = build(kv_heads=4, vlora_type="qkvo"), random_images(1)
    expected = logits(model, PROMPTS[:1], images)[0]
    ids = torch.tensor(PROMPTS[:1])
    bound = model.assemble_inputs(LanguageInputs(ids), ImageInputs(images))
    plain = LlamaForCausalLM(LlamaConfig(**{k: getattr(model.config, k) for k in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings")})).eval()  # fmt: skip
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "mm_projector" not in k and "tower" not in k})
    with torch.no_grad():
        for index, layer in enumerate(plain.model.layers):
            for letter, (a, b) in bound.weights.of_layer(index).items():
                getattr(layer.self_attn, f"{letter}_proj").weight += b @ a[0].T
        out = plain(bound.input_ids, attention_mask=bound.attention_mask, position_ids=bound.position_ids).logits[0]
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)


def test_without_a_image_it_is_the_language_model_bit_for_bit(model: Any) -> None:
    rows = [[1, 305, 306], [1, 307, 308, 309, 310]]
    plain = logits(model, rows, None)
    with torch.no_grad():
        model(torch.tensor(PROMPTS[:1]), images=random_images(1))  # hooks are there from now on
    for before, after in zip(plain, logits(model, rows, None), strict=True):
        assert torch.equal(before, after)
    for before, beside_dummies in zip(plain, logits(model, rows, random_images(2)), strict=True):
        assert torch.equal(before, beside_dummies)


def test_text_rows_run_neither_tower_nor_generator(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encode = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda images, *more: seen.append(len(images)) or encode(images, *more))
    logits(model, PROMPTS, random_images(3))
    assert seen == [2]
    logits(model, [[1, 305]], random_images(1))
    assert seen == [2]
    text = torch.tensor([[1, 300, 301]])
    loss = model(text, labels=text, images=random_images(1)).loss
    assert seen == [2, 1], "a text-only training step must run the generator for the other processes' sake"
    loss.backward()
    generator = list(model.model.mm_projector.parameters())
    assert all(p.grad is not None and not p.grad.any() for p in generator)


def test_nobody_attends_to_the_slot(model: Any) -> None:
    """What stands in the slot does not matter to any other place."""
    images = random_images(1)
    before = logits(model, PROMPTS[:1], images)[0]
    with torch.no_grad():
        model.get_input_embeddings().weight[0] += 5  # the slot's embedding is that of id 0
        after = logits(model, PROMPTS[:1], images)[0]
    others = [i for i, token in enumerate(PROMPTS[0]) if token != -200]
    assert torch.equal(before[others], after[others])


def test_several_images_of_a_row_are_averaged(model: Any) -> None:
    images, row = random_images(2), [1, -200, 300, -200, 301]
    bound = model.assemble_inputs(LanguageInputs(torch.tensor([row])), ImageInputs(images))
    single = [
        model.assemble_inputs(LanguageInputs(torch.tensor([[1, -200]])), ImageInputs(images[i : i + 1]))
        for i in range(2)
    ]
    for letter, a in bound.weights.inputs.items():
        mean = (single[0].weights.inputs[letter] + single[1].weights.inputs[letter]) / 2
        torch.testing.assert_close(a, mean, rtol=0, atol=1e-5)
    summed = build(vlora_reduction="sum").assemble_inputs(LanguageInputs(torch.tensor([row])), ImageInputs(images))
    torch.testing.assert_close(summed.weights.inputs["q"], 2 * bound.weights.inputs["q"], rtol=0, atol=1e-5)
    assert bound.attention_mask.tolist() == [[True, False, True, False, True]]
    same = logits(model, [row], images[[0, 0]])[0]
    assert same.shape[0] == 5


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
@pytest.mark.parametrize("side", ["left", "right"])
def test_generation_answers_row_by_row(model: Any, options: dict[str, int], side: str) -> None:
    images = random_images(3)
    ids, mask = pad(PROMPTS, side)
    together = model.generate(ids, images=images, attention_mask=mask, **GREEDY, **options)
    copies = options.get("num_return_sequences", 1)
    for i, row in enumerate(PROMPTS):
        alone = model.generate(torch.tensor([row]), images=images[i : i + 1], **GREEDY, **options)
        rows = together[i * copies : (i + 1) * copies, : alone.shape[1]]
        assert torch.equal(rows, alone)


def test_cached_equals_uncached(model: Any) -> None:
    assert_cached_equals_uncached(model)


def test_sampling_and_streaming(model: Any) -> None:
    class Tokenizer:
        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(f"<{int(i)}>" for i in ids)

    shown: list[str] = []
    streamer = TextStreamer(Tokenizer(), skip_prompt=True)
    streamer.on_finalized_text = lambda text, stream_end=False: shown.append(text)
    ids = model.generate(torch.tensor(PROMPTS[:1]), images=random_images(1), streamer=streamer, **GREEDY)
    assert "".join(shown) == "".join(f"<{i}>" for i in ids[0].tolist())
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 4, "pad_token_id": 0}
    assert model.generate(torch.tensor(PROMPTS[:1]), images=random_images(1), **options).shape == (3, 4)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("mistral", [False, True])
def test_grouped_queries_train(mistral: bool, recompute: bool, llava_vectors: Path) -> None:
    """Keys and values narrower than queries; gradients equal with and without recomputation."""
    gradients = []
    for use in (False, recompute):
        model = build(mistral=mistral).train()
        if use:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        ids, mask = pad(PROMPTS)
        model(ids, attention_mask=mask, labels=ids.masked_fill(ids < 2, -100), images=random_images(3)).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert set(gradients[0]) == set(gradients[1]) and any("Bs.k" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_training_starts_at_the_language_model(llava_vectors: Path) -> None:
    """B starts at zero: the first step changes nothing but B."""
    model = build().train()
    for factor in model.model.mm_projector._output_parameters():
        torch.nn.init.zeros_(factor)
    ids = torch.tensor(PROMPTS[:1])
    model(ids, labels=ids.masked_fill(ids < 2, -100), images=random_images(1)).loss.backward()
    for name, parameter in model.model.mm_projector.named_parameters():
        assert bool(parameter.grad.any()) == name.startswith("Bs"), name


def test_layers_left_over_get_no_weights(llava_vectors: Path) -> None:
    model = build(skip_layers=2)
    bound = model.assemble_inputs(LanguageInputs(torch.tensor(PROMPTS[:1])), ImageInputs(random_images(1)))
    assert [bool(bound.weights.of_layer(i)) for i in range(3)] == [False, True, False]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"vlora_visual_dim": 99}, "vlora_visual_dim is 99, but the vision tower's width is 64"),
        ({"vlora_llm_dim": 99}, "vlora_llm_dim is 99, but the language model's width is 32"),
        ({"vlora_llm_depth": 9}, "vlora_llm_depth is 9, but the language model's number of layers is 3"),
        ({"vlora_pos_num": 9}, "vlora_pos_num is 9, but the vision tower has 16 patches"),
        ({"vlora_type": "qx"}, "different letters of qkvom"),
        ({"vlora_type": "qq"}, "different letters of qkvom"),
        ({"vlora_reduction": "max"}, "vlora_reduction is 'max'; it must be mean or sum"),
        ({"vlora_dim": 17}, "vlora_dim 17 is not a multiple of vlora_heads 2"),
        ({"skip_layers": 4}, "skip_layers is 4; the language model has 3 layers"),
        ({"vlora_rank": 0}, "vlora_rank must be a whole number of 1 or more, not 0"),
    ],
)
def test_contradictions(settings: dict[str, Any], message: str, llava_vectors: Path) -> None:
    with pytest.raises(ValueError) as caught:
        build(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("projector, prefix", [("vlora", ""), ("acformer_vlora", "weights.")])
def test_the_checks_read_no_weight(projector: str, prefix: str, llava_vectors: Path) -> None:
    """Under ZeRO-3 every parameter is empty while the model is built and checked."""
    tokens = {} if projector == "vlora" else {"mm_num_visual_tokens": 9, "mm_resampler_depth": 1}
    generator = build(projector=projector, **tokens).connector
    for parameter in generator.parameters():
        parameter.data = torch.empty(0)
    generator.check_tower(num_heads=4, num_patches=16)
    with pytest.raises(ValueError, match="vlora_pos_num is 16, but the vision tower has 25 patches"):
        generator.check_tower(num_heads=4, num_patches=25)
    assert generator.explain_misfit({f"{prefix}visual_proj.weight": torch.empty(16, 64)}) is None
    reason = generator.explain_misfit({f"{prefix}visual_proj.weight": torch.empty(32, 64)})
    assert reason is not None and "vlora_dim 32, this one 16" in reason


def test_joint_generator_needs_equal_widths() -> None:
    shape = DecoderShape({"q": 8, "o": 12}, {"q": 12, "o": 8}, layers=2)
    with pytest.raises(ValueError, match="equal input widths"):
        check_settings(VLoRAConfig(vlora_type="qo", weights_sep=False, vlora_dim=16, vlora_pos_num=4), 4, shape)


def test_flash_attention_does_not_train(model: Any) -> None:
    """It would leave the slot's row out, from which a caption's first word is predicted."""
    ids = torch.tensor(PROMPTS[:1])
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="needs attn_implementation sdpa or eager"):
        model(ids, labels=ids, images=random_images(1))


def test_refused_inputs(model: Any) -> None:
    images = random_images(2)
    with pytest.raises(ValueError, match="A row starts with an image"):
        model(torch.tensor([[-200, 1, 300]]), images=images[:1])
    with pytest.raises(ImageCountError, match="no image was given"):
        model.generate(torch.tensor(PROMPTS[:1]), max_new_tokens=1)
    with pytest.raises(ImageCountError, match="needs 2 image"):
        model(torch.tensor([[1, -200, 5, -200]]), images=images[:1])
    with pytest.raises(ValueError, match=r"one view of each image.*not images of shape \[2, 3, 56, 56\]"):
        model(torch.tensor(PROMPTS[:1]), images=[images])
    with pytest.raises(ValueError, match="must have one size"):
        model(torch.tensor(PROMPTS[:1]), images=[images[0], images[1, :, :28]])
    with pytest.raises(ImageCountError, match="no image was given"):
        model(torch.tensor(PROMPTS[:1]), images=[])
    with pytest.raises(ValueError, match="fixed number of visual tokens"):
        model.generate(torch.tensor(PROMPTS[:1]), images=images[:1], num_visual_tokens=9)
    with pytest.raises(TypeError, match="use assemble_inputs"):
        model.prepare_inputs_labels_for_multimodal(torch.tensor(PROMPTS[:1]), None, None, None, None, images)


def test_both_stages_lora_and_opening_again(tmp_path: Path, llava_vectors: Path) -> None:
    base, options = "assets/base-llama", {"device": "cpu", "dtype": torch.float32}
    step = ["--save_strategy", "no", "--max_steps", "2"]
    first = run_training(
        tmp_path / "llava-first", "--version", "plain", "--data_path", "train/data_plain.json",
        "--tune_mm_mlp_adapter", "True", *step, *FLAGS,
    )  # fmt: skip
    adapter = ["--pretrain_mm_mlp_adapter", str(tmp_path / "llava-first/mm_projector.bin")]
    v1 = ["--version", "v1", "--data_path", "train/data.json", "--group_by_modality_length", "True", *step, *FLAGS]
    full = run_training(tmp_path / "full", *v1, *adapter)
    lora = run_training(tmp_path / "llava-lora", *v1, *adapter, "--lora_enable", "True", "--lora_r", "4")
    ids = torch.tensor(PROMPTS[:1])
    for folder, opened_on, trainer in (("llava-first", base, first), ("full", None, full), ("llava-lora", base, lora)):
        assert all(torch.isfinite(torch.tensor(losses_of(trainer))))
        model = load_pretrained_model(str(tmp_path / folder), opened_on, "llava", **options)[1]
        assert all(factor.any() for factor in model.model.mm_projector._output_parameters())
        with torch.no_grad():
            expected = trainer.model.eval()(ids, images=random_images(1)).logits
            torch.testing.assert_close(model(ids, images=random_images(1)).logits, expected, rtol=0, atol=1e-4)
    assert type(full.model).__name__ == "LlavaLlamaVLoRAForCausalLM"


@pytest.mark.parametrize("letters", ["qkvom", "qk", "m"])
def test_merging_changes_neither_answers_nor_weights(letters: str, llava_vectors: Path) -> None:
    model, ids, images = build(vlora_type=letters), torch.tensor(PROMPTS[:1]), random_images(1)
    options = GREEDY | {"output_logits": True, "return_dict_in_generate": True}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen: list[bool] = []
    model.model.layers[0].self_attn.q_proj.register_forward_hook(
        lambda m, *_: seen.append(torch.equal(m.weight, before["model.layers.0.self_attn.q_proj.weight"]))
    )
    plain, merged = model.generate(ids, images=images, **options), []
    seen.clear()
    merged = model.generate(ids, images=images, merge_weights=True, num_beams=1, **options)
    assert torch.equal(plain.sequences, merged.sequences)
    torch.testing.assert_close(torch.stack(merged.logits), torch.stack(plain.logits), rtol=0, atol=1e-4)
    assert set(seen) == {"q" not in letters}, "the matrices were changed meanwhile"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_merging_is_refused_for_several_images(model: Any) -> None:
    for rows in (PROMPTS[:2], [PROMPTS[0], PROMPTS[2]]):
        ids, mask = pad(rows)
        with pytest.raises(ValueError, match="one image for all rows"):
            model.generate(ids, images=random_images(2), attention_mask=mask, merge_weights=True, **GREEDY)


def test_a_checkpoint_without_a_generator_gets_a_fresh_one(llava_vectors: Path) -> None:
    """transformers initialises what a checkpoint lacks; the generator's own rules must hold all the same."""
    config = read_config(LlavaVLoRAConfig, "assets/base-llama")
    config.initializer_range = 0.5  # the language model's, not the generator's
    settings = SMALL | {"vlora_dim": 64, "vlora_pos_num": 16}
    for key, value in {"mm_projector_type": "vlora", "mm_vision_tower": "assets/towers/clip-a", "mm_hidden_size": 64,
                       "mm_vision_select_layer": -2, **settings}.items():  # fmt: skip
        setattr(config, key, value)
    for model in (
        LlavaLlamaVLoRAForCausalLM.from_pretrained("assets/base-llama", config=config),
        LlavaLlamaVLoRAForCausalLM(config),
    ):
        for name, value in model.model.mm_projector.state_dict().items():
            if name.startswith("Bs") or "bias" in name:
                assert not value.any(), name
            elif "norm" in name:
                assert (value == 1).all(), name
            elif name.endswith("queries") or name == "pos_embed":
                assert 0.8 < value.std() < 1.2, name
            elif "in_proj" in name:
                bound = (6 / (value.shape[0] + value.shape[1])) ** 0.5  # Xavier
                assert bound * 0.9 < value.abs().max() <= bound, name
            else:
                assert 0.017 < value.std() < 0.023, name


def test_four_bits(tmp_path: Path, llava_vectors: Path) -> None:
    """The weights use a layer's input and output, whatever it stores; generator and `lm_head` are not quantised."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    bases = REPOSITORY / "playground/bases"
    run_training(
        tmp_path, "--model_name_or_path", str(bases / "tiny-llama"), "--vision_tower", str(bases / "tiny-clip"),
        "--version", "v1", "--data_path", "train/data.json", "--save_strategy", "no", "--max_steps", "1", *FLAGS,
    )  # fmt: skip
    options = {"device": "cpu", "dtype": torch.float32}
    full = load_pretrained_model(str(tmp_path), None, "llava", **options)[1]
    quantised = load_pretrained_model(str(tmp_path), None, "llava", load_4bit=True, **options)[1]
    ids, images = torch.tensor([[1, 5, 6, -200, 7, 8]]), torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        for model in (full, quantised):
            for factor in model.model.mm_projector._output_parameters():
                torch.manual_seed(0)
                torch.nn.init.normal_(factor, std=0.3)
        a, b = (model(ids, images=images).logits.flatten() for model in (full, quantised))
        none = full(ids[:, :3]).logits
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.9
    assert none.isfinite().all()
    with pytest.raises(ValueError, match="quantised language model"):
        quantised.generate(ids, images=images, merge_weights=True, **GREEDY)


def test_compiled_equals_plain(model: Any) -> None:
    ids, mask = pad(PROMPTS)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager")
        for images in (random_images(3), 2 * random_images(3)):  # the second image's weights are not those of the first
            out = compiled(ids, attention_mask=mask, images=images).logits
            torch.testing.assert_close(out, model(ids, attention_mask=mask, images=images).logits, rtol=0, atol=1e-5)
        static = model.generate(
            ids, images=random_images(3), attention_mask=mask, cache_implementation="static", **GREEDY
        )
    assert torch.equal(static, model.generate(ids, images=random_images(3), attention_mask=mask, **GREEDY))
    torch._dynamo.reset()


def test_one_crop_each_is_one_view_each(model: Any) -> None:
    images = random_images(1)
    assert torch.equal(logits(model, PROMPTS[:1], images)[0], logits(model, PROMPTS[:1], [images])[0])
    assert torch.equal(logits(model, PROMPTS[:1], images)[0], logits(model, PROMPTS[:1], [images[0]])[0])


def test_weights_serve_for_any_rows(model: Any) -> None:
    """One image under two questions, and rows in another order than the images."""
    both = model.encode_images(random_images(2))
    for order in ([[1], [0]], [[0], [0]], [[1], [], [0]]):
        bound = both.for_rows(order)
        shown = [row[0] for row in order if row]
        assert torch.equal(bound.inputs["q"], both.inputs["q"][shown])


@torch.no_grad()
def test_weights_replace_their_images(model: Any) -> None:
    """Made once, for several questions."""
    ids, images = torch.tensor(PROMPTS[:1]), random_images(1)
    weights = model.assemble_inputs(LanguageInputs(ids), ImageInputs(images)).weights
    assert torch.equal(model(ids, perceptual_weights=weights).logits, model(ids, images=images).logits)
    assert torch.equal(
        model.generate(ids, perceptual_weights=weights, **GREEDY), model.generate(ids, images=images, **GREEDY)
    )
    with pytest.raises(ValueError, match="pass images instead"):
        model(ids, images=images, perceptual_weights=weights)


@torch.no_grad()
def test_peft_around_hooked_projections_adds_nothing_twice(model: Any) -> None:
    """An image was looked at before LoRA was put on."""
    before = logits(model, PROMPTS[:1], random_images(1))[0]
    config = LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"])
    wrapped = get_peft_model(model, config)
    assert torch.equal(logits(wrapped, PROMPTS[:1], random_images(1))[0], before)
    assert torch.equal(logits(wrapped.merge_and_unload(), PROMPTS[:1], random_images(1))[0], before)


def test_nothing_outlives_a_call(model: Any) -> None:
    x = torch.randn(1, 4, 32)
    mlp = model.model.layers[0].mlp
    with torch.no_grad():
        alone = mlp(x)
        model(torch.tensor(PROMPTS[:1]), images=random_images(1))
        assert torch.equal(mlp(x), alone)
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.tensor(PROMPTS[:1])
    model(ids, labels=ids.masked_fill(ids < 2, -100), images=random_images(1)).loss.backward()
    model.eval().gradient_checkpointing_disable()
    assert torch.equal(mlp(x), alone)
    bound = model.assemble_inputs(LanguageInputs(torch.tensor(PROMPTS[:1])), ImageInputs(random_images(1))).weights
    kept = weakref.ref(bound.inputs["m"])
    model(torch.tensor(PROMPTS[:1]), perceptual_weights=bound)
    del bound
    gc.collect()
    assert kept() is None


def test_a_model_that_saw_a_image_can_be_pickled_and_copied(model: Any) -> None:
    expected = logits(model, PROMPTS[:1], random_images(1))[0]
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(logits(twin, PROMPTS[:1], random_images(1))[0], expected)


def test_threads_with_different_images(llava_vectors: Path) -> None:
    """The first generation installs the hooks; all start at once."""
    images, ids = random_images(4), torch.tensor(PROMPTS[:1])
    expected = [build().generate(ids, images=images[i : i + 1], **GREEDY).tolist() for i in range(4)]
    model = build()
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(model.generate, ids, images=images[i % 4 : i % 4 + 1], **GREEDY) for i in range(12)]
    assert [answer.result().tolist() for answer in answers] == [expected[i % 4] for i in range(12)]
    assert len(model.model.layers[0].mlp._forward_hooks) == 1


def test_a_later_step_cannot_show_a_image(model: Any) -> None:
    ids, images = torch.tensor(PROMPTS[:1]), random_images(1)
    first = model(ids, images=images, use_cache=True)
    with pytest.raises(ValueError, match="act in every step"):
        model(ids[:, -1:], images=images, past_key_values=first.past_key_values)


def test_a_second_turn_with_a_new_image_is_read_anew(model: Any) -> None:
    first, second = torch.tensor([[1, -200, 300, 301]]), torch.tensor([[1, -200, 300, 301, 302, -200, 303]])
    images, cache = random_images(2), DynamicCache()
    model.generate(first, images=images[:1], past_key_values=cache, **GREEDY)
    assert cache.get_seq_length() > 0
    answer = model.generate(second, images=images, past_key_values=cache, **GREEDY)
    assert torch.equal(answer, model.generate(second, images=images, **GREEDY))


@torch.no_grad()
def test_text_goes_on_with_a_cache(model: Any) -> None:
    ids = torch.tensor([[1, 305, 306, 307, 308]])
    whole = model(ids).logits
    first = model(ids[:, :2], use_cache=True)
    rest = model(ids[:, 2:], attention_mask=torch.ones(1, 5), past_key_values=first.past_key_values)
    torch.testing.assert_close(rest.logits, whole[:, 2:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(model: Any, dtype: torch.dtype) -> None:
    exact = logits(model, PROMPTS, random_images(3))
    with torch.autocast("cpu", dtype):
        rounded = logits(model, PROMPTS, random_images(3))
    for a, b in zip(exact, rounded, strict=True):
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten().float(), dim=0) > 0.999


def test_reentrant_recomputation_is_refused(tmp_path: Path, llava_vectors: Path) -> None:
    recompute = ["--gradient_checkpointing", "True", "--gradient_checkpointing_kwargs", '{"use_reentrant": true}']
    with pytest.raises(ValueError, match="recomputation that is not reentrant"):
        run_training(tmp_path, "--version", "v1", "--data_path", "train/data.json", *FLAGS, *recompute)
