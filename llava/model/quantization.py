"""What bitsandbytes must leave alone."""

from torch import nn

# As transformers matches them: from the start of a module's full name. `lm_head` must be named too: a list without it
# quantises it.
NEVER_QUANTISED = ["model.mm_projector", "model.vision_tower", "lm_head"]

# What the CPU kernel for 4-bit inference packs: whole quantisation blocks per row, and whole groups of output rows.
BLOCK, ROWS = 64, 32


def guard_cpu_packing(model: nn.Module, will_train: bool) -> None:
    """Keep 4-bit layers from being repacked for bitsandbytes' CPU inference kernel where that would do harm.

    The kernel has no backward: a layer that was evaluated once gives no gradient afterwards, silently. And it fails on
    layers whose shape does not fit its blocks. Without it such layers are dequantised, as on other CPUs.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            fits = module.in_features % BLOCK == 0 and module.out_features % ROWS == 0
            module.support_avx512bf16_for_cpu &= fits and not will_train
