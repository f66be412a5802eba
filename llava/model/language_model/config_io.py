"""config.json that both old and new readers understand."""

from typing import Any


class LegacyConfigMixin:
    """Writes, beside transformers 5's keys, those that older readers look for.

    Without `rope_theta` an old reader silently falls back to 10000, without `torch_dtype` to float32.
    """

    @property
    def torch_dtype(self) -> Any:
        """`dtype` by its old name, written for old readers; transformers warns about it."""
        return self.dtype

    @torch_dtype.setter
    def torch_dtype(self, value: Any) -> None:
        self.dtype = value

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        rope = output.get("rope_parameters") or {}
        if "rope_theta" in rope:
            output.setdefault("rope_theta", rope["rope_theta"])
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        plain = scaling.get("rope_type", "default") == "default"
        output.setdefault("rope_scaling", None if plain else scaling)
        if output.get("dtype") is not None:
            output.setdefault("torch_dtype", output["dtype"])
        return output
