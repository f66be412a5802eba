"""Teach the tiny LLaMA the playground's language, from text alone.

In most sequences a description stands exactly where the image will stand later (`USER: <here>\\n question`), and
many questions follow it, so that one reading of a scene pays for many answers. Another part is `description caption`
without any conversation, the form of LLaVA's first stage. What is then missing is only an image.
Only scenes of the training split are described.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ..world.language import DESCRIBE, FACTS, READING, SYSTEM_PROMPT, ask, ask_many, caption, describe
from ..world.scene import Scene, sample_split_scene
from ..world.tokenizer import MAX_LENGTH
from . import drills
from .look_back import add_look_back_heads
from .loop import Checkpointer, Progress, cosine_lr

BOS, EOS = 1, 2
# Kinds of sequences, in turn: before and after `early_until`.
EARLY = ("drill", "single", "drill", "caption")
LATE = ("drill", "single", "talk", "caption")


@dataclass(frozen=True)
class LanguageRecipe:
    """Hyper-parameters of language pre-training."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    ff: int = 352
    steps: int = 2400
    batch: int = 16
    turns: int = 14
    lr: float = 1e-3
    warmup: int = 50
    other_weight: float = 0.1  # weight of tokens that are not part of an answer
    early_until: int = 800
    words_from: int = 1600  # from this step on, reading the word is asked more often: it is learned last
    word_repeats: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Sequence:
    """Token ids; for each whether it is part of an answer, and the branch it is in.

    Branch 0 is common to all. A token sees branch 0 and its own branch only, so that many questions about one
    description can share it without seeing one another.
    """

    ids: list[int]
    answer: list[bool]
    branch: list[int]


class Writer:
    """Writes token sequences in the two prompt formats, piece by piece as the multimodal tokenization does."""

    def __init__(self, pieces: SentencePieceProcessor) -> None:
        self.encode = cache(lambda text: tuple(pieces.encode(text)))

    def conversation(self, image: str, turns: list[tuple[str, str]]) -> Sequence:
        """The v1 format; `image` is a description in the image's place, or empty for a conversation without one."""
        ids, answer = [BOS], [False]

        def add(tokens: tuple[int, ...], is_answer: bool) -> None:
            ids.extend(tokens)
            answer.extend([is_answer] * len(tokens))

        for i, (question, reply) in enumerate(turns):
            if i > 0:  # no space goes between `</s>` and `USER`
                add(self.encode(f"USER: {question} ASSISTANT:")[1:], False)
            elif image:
                add(self.encode(f"{SYSTEM_PROMPT} USER: "), False)
                add(self.encode(image), False)
                add(self.encode(f"\n{question} ASSISTANT:"), False)
            else:
                add(self.encode(f"{SYSTEM_PROMPT} USER: {question} ASSISTANT:"), False)
            add((*self.encode(reply), EOS), True)
        return Sequence(ids, answer, [0] * len(ids))

    def branches(self, head: tuple[int, ...], pairs: list[tuple[str, str]], end: tuple[int, ...]) -> Sequence:
        """A common head, then every (prompt, answer) in a branch of its own; `end` closes each answer."""
        ids, answer, branch = list(head), [False] * len(head), [0] * len(head)
        for i, (prompt, reply) in enumerate(pairs):
            before, after = self.encode(prompt), (*self.encode(reply), *end)
            ids += [*before, *after]
            answer += [False] * len(before) + [True] * len(after)
            branch += [i + 1] * (len(before) + len(after))
        return Sequence(ids, answer, branch)

    def single_turns(self, image: str, pairs: list[tuple[str, str]]) -> Sequence:
        """Many v1 conversations of one turn about the same description."""
        head = (BOS, *self.encode(f"{SYSTEM_PROMPT} USER: "), *self.encode(image))
        return self.branches(head, [(f"\n{question} ASSISTANT:", answer) for question, answer in pairs], (EOS,))

    def plain(self, image: str, reply: str) -> Sequence:
        """The format of stage 1: image, caption, line break."""
        head = [BOS, *self.encode(image)]
        tail = list(self.encode(reply + "\n"))
        ids = head + tail
        return Sequence(ids, [False] * len(head) + [True] * len(tail), [0] * len(ids))


def conversation_about(scene: Scene, rng: random.Random, writer: Writer, turns: int) -> Sequence:
    """Many turns about one described scene; one in five conversations carries the description in the question."""
    pairs = [(q.text, q.answer) for q in ask_many(scene, rng, turns)]
    if rng.random() < 0.3:
        pairs.insert(rng.randrange(len(pairs)), (DESCRIBE, caption(scene)))
    for _ in range(2):
        if rng.random() < 0.3:
            pairs.insert(rng.randrange(1, len(pairs) + 1), rng.choice(FACTS))
    description = describe(scene, rng)
    if rng.random() < 0.2:
        question, answer = pairs[0]
        pairs[0] = (f"{READING} {description.rstrip('.')}. {question}", answer)
        return writer.conversation("", pairs)
    return writer.conversation(description, pairs)


def _drill(rng: random.Random, writer: Writer) -> Sequence:
    items = drills.sample_items(rng, rng.randint(2, 3))
    head = (BOS, *writer.encode(drills.facts(items, rng)))
    return writer.branches(head, drills.claims(items, rng, 8) + drills.look_ups(items, rng, 8), ())


def _single_turns(scene: Scene, rng: random.Random, writer: Writer, turns: int, word_repeats: int) -> Sequence:
    pairs = [(q.text, q.answer) for q in ask_many(scene, rng, turns)]
    word = ask(scene, rng, "word")
    if word is not None:
        pairs += [(word.text, word.answer)] * word_repeats
    return writer.single_turns(describe(scene, rng), pairs)


def _caption_task(scene: Scene, rng: random.Random, writer: Writer) -> Sequence:
    return writer.plain(describe(scene, rng), caption(scene))


Batch = tuple[Tensor, Tensor, Tensor]


def make_batch(rng: random.Random, writer: Writer, recipe: LanguageRecipe, step: int) -> Batch:
    """Ids, answer flags and branches of one step, all [B, n]. A step holds one kind of sequence: little is padding."""
    kinds = EARLY if step < recipe.early_until else LATE
    kind = kinds[step % len(kinds)]
    sequences = []
    for _ in range(recipe.batch if kind in ("talk", "single") else 2 * recipe.batch):
        scene = sample_split_scene(rng, held_out=False)
        if kind == "drill":
            sequences.append(_drill(rng, writer))
        elif kind == "caption":
            sequences.append(_caption_task(scene, rng, writer))
        elif kind == "single":
            repeats = recipe.word_repeats if step >= recipe.words_from else 0
            sequences.append(_single_turns(scene, rng, writer, recipe.turns, repeats))
        else:
            sequences.append(conversation_about(scene, rng, writer, recipe.turns))
    return pad(sequences)


def pad(sequences: list[Sequence]) -> Batch:
    """Right-padded ids (0), answer flags (-1 on padding) and branches (-1 on padding), all [B, n]."""
    length = max(len(s.ids) for s in sequences)
    ids = torch.zeros(len(sequences), length, dtype=torch.long)
    flags, branch = torch.full_like(ids, -1), torch.full_like(ids, -1)
    for i, s in enumerate(sequences):
        ids[i, : len(s.ids)] = torch.tensor(s.ids)
        flags[i, : len(s.ids)] = torch.tensor(s.answer, dtype=torch.long)
        branch[i, : len(s.ids)] = torch.tensor(s.branch)
    return ids, flags, branch


def run(model: LlamaForCausalLM, ids: Tensor, branch: Tensor) -> Tensor:
    """Logits [B, n, V]; with branches, each continues at the position where the common head ends."""
    if int(branch.max()) <= 0:
        return model(input_ids=ids, use_cache=False).logits
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    allowed = causal & same  # [B, n, n]
    # A token's position is the number of tokens it sees, less itself.
    positions = allowed.sum(-1) - 1
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits


def build_llama(recipe: LanguageRecipe, vocab_size: int) -> LlamaForCausalLM:
    """An untrained model of the recipe's size."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=recipe.width,
        intermediate_size=recipe.ff,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=MAX_LENGTH,
        rms_norm_eps=1e-5,
        initializer_range=0.04,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    add_look_back_heads(model)
    return model


def weighted_loss(model: LlamaForCausalLM, batch: Batch, other_weight: float) -> tuple[Tensor, float]:
    """Next-token loss with full weight on answers; also the plain mean over answers, for the progress line."""
    ids, flags, branch = batch
    logits = run(model, ids, branch)[:, :-1]
    target, flag = ids[:, 1:].flatten(), flags[:, 1:].flatten()
    # The first token of a branch does not follow from the token before it, which is in another branch.
    follows = ((branch[:, 1:] == branch[:, :-1]) | (branch[:, :-1] == 0)).flatten()
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), target, reduction="none")
    weight = (flag == 1).float() + other_weight * ((flag == 0) & follows).float()
    return (losses * weight).sum() / (flag == 1).sum(), losses[flag == 1].mean().item()


@torch.no_grad()
def score(model: LlamaForCausalLM, writer: Writer, scenes: int = 200, seed: int = 10**6) -> dict[str, float]:
    """Accuracy per kind of question on held-out described scenes: the greedy next token must be the answer's piece."""
    model.eval()
    rng = random.Random(seed)
    hits: dict[str, list[bool]] = {}
    for chunk in _chunks(scenes, 25):
        sequences, categories = [], []
        for _ in range(chunk):
            scene = sample_split_scene(rng, True)
            found = [q for q in (ask(scene, rng) for _ in range(8)) if q is not None]
            sequences.append(writer.single_turns(describe(scene, rng), [(q.text, q.answer) for q in found]))
            categories.append([q.category for q in found])
        ids, flags, branch = pad(sequences)
        best = run(model, ids, branch).argmax(-1)
        for row, names in enumerate(categories):
            positions = [j for j in range(1, ids.shape[1]) if flags[row, j] == 1 and ids[row, j] != EOS]
            for j, name in zip(positions, names, strict=True):
                right = bool(best[row, j - 1] == ids[row, j]) and bool(best[row, j] == EOS)
                hits.setdefault(name, []).append(right)
    model.train()
    return {name: round(sum(h) / len(h), 4) for name, h in sorted(hits.items())}


def _chunks(total: int, size: int) -> Iterator[int]:
    while total > 0:
        yield min(size, total)
        total -= size


def train_language(recipe: LanguageRecipe, pieces: SentencePieceProcessor, work_dir: Path) -> LlamaForCausalLM:
    """Train from scratch, or resume from the last checkpoint in `work_dir`."""
    torch.manual_seed(recipe.seed)
    writer = Writer(pieces)
    model = build_llama(recipe, pieces.get_piece_size())
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.01, betas=(0.9, 0.98))
    checkpointer = Checkpointer(work_dir / "language.pt", model, optimizer, recipe)
    progress = Progress("tiny-llama", recipe.steps)
    for step in range(checkpointer.load(), recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * cosine_lr(step, recipe.steps, recipe.warmup)
        batch = make_batch(random.Random(f"{recipe.seed} language {step}"), writer, recipe, step)
        loss, answer_loss = weighted_loss(model, batch, recipe.other_weight)
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"language pre-training diverged at step {step}: lower LanguageRecipe.lr")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        checkpointer.save_sometimes(step + 1, last=step + 1 == recipe.steps)
        progress.report(step + 1, answer_loss)
    return model
