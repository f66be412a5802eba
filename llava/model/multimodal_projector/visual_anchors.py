"""Visual anchors: the patches to which the image encoder's class token attends most (arXiv 2405.17815, section 3)."""

import torch


def num_anchors_per_head(num_anchors: int, num_heads: int, num_patches: int) -> int:
    """How many new patches each attention head contributes.

    Raises:
        ValueError: fewer anchors than heads, or more anchors than patches.
    """
    per_head = num_anchors // num_heads
    if per_head < 1:
        raise ValueError(
            f"{num_anchors} visual anchors cannot be shared by {num_heads} attention heads: each head contributes at "
            f"least one. {legal_token_counts(num_heads, num_patches)}"
        )
    if per_head * num_heads > num_patches:
        raise ValueError(
            f"{num_anchors} visual anchors are more than the {num_patches} patches of the image. "
            f"{legal_token_counts(num_heads, num_patches)}"
        )
    return per_head


def legal_token_counts(num_heads: int, num_patches: int) -> str:
    """One sentence that names the legal values of `mm_num_visual_tokens` (class token included)."""
    largest = num_patches // num_heads
    counts = [k * num_heads + 1 for k in range(1, largest + 1)]
    shown = ", ".join(map(str, counts)) if largest <= 8 else f"{counts[0]}, {counts[1]}, ..., {counts[-1]}"
    return f"Legal values of mm_num_visual_tokens for this tower are {shown} (1 + a multiple of {num_heads} heads)."


def count_anchor_tokens(wanted: int, num_heads: int, num_patches: int) -> int:
    """The number of tokens for `wanted`: the class token and the same number of anchors from every head.

    Raises:
        ValueError: `wanted` is too small or too large; names the legal values.
    """
    return num_anchors_per_head(wanted - 1, num_heads, num_patches) * num_heads + 1


def gather_tokens(hidden: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Rows of `hidden` `[B, n, D]` at `indices` `[B, T]` -> `[B, T, D]`."""
    return hidden.gather(1, indices.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


def rank_patches(scores: torch.Tensor, count: int | None = None) -> torch.Tensor:
    """Patch indices from the highest to the lowest score; among equals the larger index comes first.

    Score and index go together into one whole number, so that no two are equal: the order is then the same on every
    device, and the first few can be found without sorting all.

    Args:
        scores: `[..., P]`; compared in float32.
        count: how many patches are wanted; all by default.

    Returns:
        `[..., count]` int64.
    """
    patches = scores.shape[-1]
    bits = (scores.float() + 0.0).view(torch.int32)  # + 0.0 turns -0 into 0
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # now in the order of the scores, negative ones too
    keys = bits.long() * patches + torch.arange(patches, device=scores.device)
    return keys.topk(patches if count is None else count, dim=-1).indices


def select_visual_anchors(cls_attention: torch.Tensor, num_anchors: int) -> torch.Tensor:
    """Pick visual anchors by the progressive per-head rule.

    Heads take turns in their own order; each adds its `num_anchors // H` most attended patches that no earlier head has
    taken. Among equal attention values the larger patch index wins. All images are handled together: one
    ranking, then one small step per head, with no copy to the host.

    Args:
        cls_attention: `[B, H, P]`, the class token's attention to the patches, without its own column. Ranked in
            float32, into which half-precision values go unchanged.
        num_anchors: wanted number of anchors K.

    Returns:
        `[B, T]` int64 token indices with `T = (K // H) * H + 1`: 0 for the class token, then the anchors' patch
        index + 1 in ascending order.

    Raises:
        ValueError: `K < H` or `K` larger than the number of patches.
    """
    batch, num_heads, num_patches = cls_attention.shape
    per_head = num_anchors_per_head(num_anchors, num_heads, num_patches)
    total = per_head * num_heads

    # Earlier heads take less than `total` patches, so every head finds its own among its first `total`.
    order = rank_patches(cls_attention, total)  # [B, H, K]
    free = torch.ones(batch, num_patches, dtype=torch.bool, device=cls_attention.device)
    for ranked in order.unbind(dim=1):
        still_free = free.gather(1, ranked)
        free = free.scatter(1, ranked, still_free & (still_free.cumsum(dim=1) > per_head))

    # The k-th anchor goes to index k, the class token to 0; all other patches go to one last index, which is cut off.
    place = torch.where(free, total + 1, (~free).cumsum(dim=1))
    tokens = torch.arange(1, num_patches + 1, device=cls_attention.device).expand(batch, -1)
    return place.new_zeros(batch, total + 2).scatter(1, place, tokens)[:, : total + 1]
