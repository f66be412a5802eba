"""What an `encode_images` does beside running vision tower and projector."""

import libcst

from patches.syntax import assignments, calls, code, find, last_name, returns

# What encode_images may call, beside the tower and the projector, and still be "tower, projector, return".
HARMLESS_CALLS = {
    "get_model", "get_vision_tower", "mm_projector", "no_grad", "contiguous", "to", "type", "type_as", "float", "half",
    "detach", "print", "rank0_print",
}  # fmt: skip
# What else it may not do: it would be left out where a connector encodes.
FOREIGN_WORK = {
    "computes": (libcst.BinaryOperation, libcst.Subscript, libcst.AugAssign),
    "loops": (libcst.For, libcst.CompFor),
    "yields": (libcst.Yield,),
}


def beside_tower_and_projector(node: libcst.FunctionDef) -> str | None:
    """What `encode_images` does beside "tower, projector, return"; None if nothing."""
    called = calls(node)
    held = {target for target, value in assignments(node) if _is_vision_module(value)}  # tower = self.vision_tower
    foreign = [
        name
        for name, _ in called
        if last_name(name) not in HARMLESS_CALLS and name not in held and not _is_vision_module(name)
    ]
    if foreign:
        return f"calls {', '.join(dict.fromkeys(foreign))}"
    if not any(name.endswith("mm_projector") or name in held for name, _ in called):
        return "does not call mm_projector"
    if any(name == "self.mm_projector" for name, _ in called):
        return "calls self.mm_projector, so this is not the causal language model, which has get_model()"
    for name, call in called:
        if len(call.args) != 1 and (name in held or _is_vision_module(name)):
            return f"gives {name} more than images or their features"
    if any(isinstance(each.value, libcst.Tuple | libcst.List | libcst.Dict) for each in returns(node)):
        return "returns several values"
    for verb, kinds in FOREIGN_WORK.items():
        for found in find(node.body, *kinds):
            return f"{verb} ({code(found).splitlines()[0]})"
    for target, _ in assignments(node):
        if "." in target:
            return f"sets {target}"
    return None


def _is_vision_module(expression: str) -> bool:
    return expression.endswith(("get_vision_tower()", ".vision_tower", ".mm_projector"))
