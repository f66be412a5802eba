"""The registry of connectors. To add one, add a file that registers itself and import it in builder.py."""

import logging
import re
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar

from torch import nn

from .vision_features import VisionFeatures

logger = logging.getLogger(__name__)

DEFAULT_PROJECTOR = "linear"
MLP_PATTERN = "mlp<k>x_gelu"  # the registered name of all MLPs; k is any positive number
MLP_NAME = re.compile(r"^mlp([1-9]\d*)x_gelu$")


class BareParameters(nn.Module):
    """Mixed into a module that has parameters of its own beside those of its layers.

    transformers initialises the layers of a known type that a checkpoint lacks. It does not know bare parameters.
    """

    def reset_parameters(self) -> None:
        """Initialise this module's own parameters; sub-modules initialise themselves."""
        raise NotImplementedError


class Connector(nn.Module):
    """Turns `VisionFeatures` into the input of a language model. Stateless between calls.

    Attributes:
        space: `"input"`: `forward` returns visual tokens `[B, T, d]`, which are spliced into the sequence;
            `"parameter"`: it returns `PerceptualWeights`, and the image keeps one masked position;
            `"both"`: it returns a tuple of the two, and no position is masked.
        needs_class_token: whether `features.hidden` must start with a class token.
        needs_cls_attention: whether the tower must supply `VisionFeatures.cls_attention`.
        needs_patch_keys: whether the tower must supply `VisionFeatures.patch_keys`.
        is_elastic: whether the weights are independent of the number of visual tokens, so that it can be changed when a
            checkpoint is opened and in every call.
        is_grid: whether the tokens are a square patch map, as unpadding and newline embeddings (anyres) require.
        num_visual_tokens: T, the number of tokens per image.
    """

    space: ClassVar[str] = "input"
    needs_class_token: ClassVar[bool] = True
    needs_cls_attention: ClassVar[bool] = False
    needs_patch_keys: ClassVar[bool] = False
    is_elastic: ClassVar[bool] = False
    is_grid: ClassVar[bool] = False
    num_visual_tokens: int

    @classmethod
    def derive_settings(cls, config: Any, tower: Any) -> None:
        """Write settings into `config` that follow from the models; called once, when the connector is new."""

    @classmethod
    def from_config(cls, settings: Any, config: Any) -> "Connector":
        """Build the connector; those that need more of the configuration than the widths override this."""
        return cls(settings, config.mm_hidden_size, config.hidden_size)

    def count_tokens(self, wanted: int, num_heads: int, num_patches: int) -> int:
        """The number of tokens returned when `wanted` are asked for, on a tower of this many heads and patches.

        Raises:
            ValueError: names the numbers that do not fit and the legal ones.
        """
        return wanted

    def check_tower(self, num_heads: int, num_patches: int) -> None:
        """Refuse a vision tower that this connector cannot read, before any work; else settle `num_visual_tokens`.

        Raises:
            ValueError: see `count_tokens`.
        """
        wanted = self.num_visual_tokens
        self.num_visual_tokens = self.count_tokens(wanted, num_heads, num_patches)
        if self.num_visual_tokens != wanted:
            logger.warning(
                "%s gives %d visual tokens where mm_num_visual_tokens asks for %d (tower: %d heads, %d patches).",
                type(self).__name__,
                self.num_visual_tokens,
                wanted,
                num_heads,
                num_patches,
            )

    def load_published_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Map the key names of a published checkpoint (without prefix) to this module's; the default keeps them."""
        return state

    def explain_misfit(self, state: dict[str, Any]) -> str | None:
        """Why the entries of a stage-1 file do not fit, and what to do; None leaves the message to torch."""

    def forward(self, features: VisionFeatures, num_visual_tokens: int | None = None) -> Any:
        """`num_visual_tokens` (elastic connectors only) replaces the module's own in this call."""
        raise NotImplementedError


@dataclass(frozen=True)
class RegisteredConnector:
    """A connector's name, its class and the dataclass of its settings."""

    name: str
    connector_class: type[Connector]
    config_class: type

    def is_free(self, field: Field) -> bool:
        """Whether no weight depends on a setting, so that it may change when a checkpoint is opened."""
        return self.connector_class.is_elastic if field.name == "mm_num_visual_tokens" else field.metadata["at_load"]


CONNECTORS: dict[str, RegisteredConnector] = {}  # filled at import, by the decorator below


def find_connector(projector_type: str | None) -> RegisteredConnector:
    """The entry of a value of `mm_projector_type`; None means the default.

    Raises:
        ValueError: the type is unknown; the message lists the known ones.
    """
    name = projector_type or DEFAULT_PROJECTOR
    name = MLP_PATTERN if MLP_NAME.match(name) else name
    if name not in CONNECTORS:
        raise ValueError(f"Unknown projector type: {projector_type} (known: {', '.join(known_projector_types())})")
    return CONNECTORS[name]


def known_projector_types() -> list[str]:
    """Every legal value of `mm_projector_type`, LLaVA's own first."""
    plain = [DEFAULT_PROJECTOR, MLP_PATTERN, "identity"]
    return [*plain, *sorted(CONNECTORS.keys() - set(plain))]


def register_connector(name: str, config_class: type) -> Callable[[type[Connector]], type[Connector]]:
    """Class decorator: make a connector known by `name`.

    `config_class` is a dataclass whose fields are at once the connector's config.json keys, their defaults and its
    command-line flags; each field's metadata `help` is shown by `--help`.
    """

    def decorate(connector_class: type[Connector]) -> type[Connector]:
        if name in CONNECTORS:
            raise ValueError(f"A connector named {name!r} is already registered: {CONNECTORS[name].connector_class}")
        CONNECTORS[name] = RegisteredConnector(name, connector_class, config_class)
        return connector_class

    return decorate


def setting(default: Any, help_text: str, at_load: bool = False, minimum: int | None = None) -> Any:
    """A dataclass field with a default and the text shown by `--help`.

    Args:
        at_load: no weight depends on it, so that it may be changed when a checkpoint is opened.
        minimum: smallest legal value of a whole number.
    """
    return field(default=default, metadata={"help": help_text, "at_load": at_load, "minimum": minimum})


def read_settings(config_class: type, config: Any) -> Any:
    """An instance of `config_class` filled from the attributes of a model config; absent or None means the default.

    Raises:
        ValueError: a setting is of the wrong kind, or a whole number too small; names it.
    """
    given = {f.name: getattr(config, f.name, None) for f in fields(config_class)}
    for f in fields(config_class):
        value, minimum, kind = given[f.name], f.metadata["minimum"], str(f.type)
        if value is None:
            continue
        if minimum is not None and not (_is_number(value, int) and value >= minimum):
            raise ValueError(f"{f.name} must be a whole number of {minimum} or more, not {value!r}")
        if "bool" in kind and not isinstance(value, bool):
            raise ValueError(f"{f.name} must be true or false, not {value!r}")
        if "float" in kind and not _is_number(value, (int, float)):
            raise ValueError(f"{f.name} must be a number, not {value!r}")
    return config_class(**{name: value for name, value in given.items() if value is not None})


def _is_number(value: Any, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)
