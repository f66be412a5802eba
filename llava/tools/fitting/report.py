"""A plan as text, and as numbers."""

from typing import Any

from llava.tools.fitting.plan import GIB, Plan


def figures(plan: Plan) -> dict[str, Any]:
    """All numbers; memory in bytes per GPU."""
    memory, work, flops = plan.memory, plan.workload, plan.flops
    states = memory.states
    return {
        "connector": plan.meta.model.config.mm_projector_type,
        "visual_tokens": plan.meta.connector.num_visual_tokens,
        "stage": plan.stage,
        "zero_stage": None if plan.zero is None else plan.zero.stage,
        "gpus": plan.assumptions.gpus,
        "trained_parameters": plan.parameters.trained,
        "frozen_parameters": plan.parameters.frozen,
        "memory": {
            "weights": states.weights,
            "gradients": states.gradients,
            "optimizer": states.optimizer,
            "buffers": states.buffers,
            "decoder_activations": memory.decoder,
            "layer_in_work": memory.layer,
            "connector_activations": memory.connector,
            "loss": memory.loss,
            "vision_tower": memory.tower,
            "moments": memory.moments,
            "peak": memory.peak,
            "needed": round(plan.needed),
            "host": states.host,
        },
        "fits": plan.fits,
        "longest_row": work.longest_row,
        "row": work.row_length,
        "padding": work.padding,
        "samples_per_step": work.samples_per_step,
        "tokens_per_step": work.samples_per_step * work.sample_length,
        "positions_per_step": work.row_length * work.batching.rows * work.batching.devices * work.batching.accumulation,
        "records": work.records,
        "steps": work.steps,
        "flops_per_step": {"tower": flops.tower, "connector": flops.connector, "decoder": flops.decoder},
        "seconds_per_step": plan.seconds_per_step,
        "hours": plan.hours,
    }


def report(plan: Plan) -> str:
    """The plan for a terminal."""
    f, a, memory, work, flops = plan.flags, plan.assumptions, plan.memory, plan.workload, plan.flops
    states, connector = memory.states, plan.meta.model.config.mm_projector_type
    engine = "no DeepSpeed" if plan.zero is None else f"ZeRO-{plan.zero.stage}"
    tokens = plan.meta.connector.num_visual_tokens
    image = f"{tokens} visual tokens" if tokens else "images as weights, one masked position"
    kept = "recomputed" if f.gradient_checkpointing else "kept"
    loss = "in chunks" if f.chunked_loss or f.packing else "all logits"
    packed = work.batching.pack_length is not None
    rows = f"{work.batching.rows} {'packs' if packed else 'samples'}"
    lines = [
        f"{connector} ({image}) on {f.model_name_or_path}: {plan.stage}",
        f"{plan.parameters.trained / 1e9:.3f} G parameters train, {plan.parameters.frozen / 1e9:.3f} G are frozen; "
        f"{engine} on {a.gpus} GPUs, {rows} per GPU",
        "",
        f"Memory per GPU, GiB (longest row {work.longest_row} positions)",
        _row("weights", states.weights),
        _row("gradients", states.gradients),
        _row("optimizer states", states.optimizer),
        _row("buffers of the engine", states.buffers),
        _row(f"activations of the decoder ({kept})", memory.decoder),
        _row("  the layer in work, in addition", memory.layer),
        _row("connector", memory.connector),
        _row(f"loss ({loss})", memory.loss),
        _row("vision tower, workspace", memory.tower),
    ]
    if states.host:
        lines.append(_row("on the host instead (not counted)", states.host))
    lines += ["", "What is alive together, GiB"]
    lines += [
        _row(f"{moment}{' (peak)' if moment == memory.moment else ''}", n) for moment, n in memory.moments.items()
    ]
    left = a.gpu_memory - plan.needed / GIB
    verdict = f"fits, {left:.1f} GiB are left" if plan.fits else f"does NOT fit, {-left:.1f} GiB are missing"
    lines += [
        _row(f"peak and {a.reserve:g} GiB reserve", plan.needed),
        f"{verdict} of {a.gpu_memory:g} GiB",
        "",
        "Work",
        f"  {work.samples_per_step:,.0f} samples, {work.samples_per_step * work.sample_length:,.0f} tokens in an "
        f"optimizer step; {work.padding:.2f}x of these positions are computed "
        f"({'packed' if packed else f'rows of {work.row_length}'})",
        f"  {flops.total / 1e12:,.0f} TFLOP per step and GPU: vision tower {flops.tower / 1e12:,.1f}, connector "
        f"{flops.connector / 1e12:,.1f}, language model {flops.decoder / 1e12:,.0f}",
        f"  {plan.seconds_per_step:.2f} s per step at {100 * a.mfu:g} % of {a.peak_tflops:g} TFLOP/s, "
        f"{work.samples_per_step / plan.seconds_per_step:,.0f} samples/s",
        *_durations(plan),
        "",
        f"Assumed: text of {work.text.median:g} tokens (median), log-normal with sigma {work.text.spread:g}; "
        "recomputed and padded positions count as work.",
    ]
    return "\n".join(lines)


def _durations(plan: Plan) -> list[str]:
    if plan.workload.steps == 0:
        return ["  duration unknown: the data are neither there nor known by their name; give --records"]
    lines = [f"  {plan.workload.steps:,} steps, {plan.hours:.1f} h"]
    if plan.flags.gradient_checkpointing:
        kept = plan.changed(gradient_checkpointing=False)
        if kept.fits:
            lines.append(f"  fits without recomputation, too: --gradient_checkpointing False, {kept.hours:.1f} h")
    return lines


def _row(name: str, count: float) -> str:
    return f"  {name:<44}{count / GIB:>8.2f}"
