"""The list of connectors. Adding one = adding a file that registers itself, and one import line in builder.py."""

import logging
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar

from torch import nn

from llava.model.vision_features import VisionFeatures

logger = logging.getLogger(__name__)


class BareParameters(nn.Module):
    """A module with parameters of its own beside those in layers.

    transformers initialises what a checkpoint lacks layer by layer, and does not know of these.
    """

    def reset_parameters(self) -> None:
        """Initialise this module's own parameters; those of its sub-modules initialise themselves."""


class Connector(BareParameters):
    """Turns `VisionFeatures` into what the language model takes. Stateless between calls.

    Attributes:
        space: `"input"`: `forward` gives visual tokens `[B, T, d]` that are spliced into the sequence;
            `"parameter"`: it gives `PerceptualWeights`, and the picture keeps one masked place;
            `"both"`: a tuple of the two, and no place is masked.
        needs_cls_attention: whether the tower must supply `VisionFeatures.cls_attention`.
        needs_patch_keys: whether the tower must supply `VisionFeatures.patch_keys`.
        is_elastic: whether the weights do not depend on the number of visual tokens, so that it can be changed when a
            checkpoint is opened and in every call.
        is_grid: whether the tokens are a square patch map, as unpadding and newline embeddings (anyres) require.
        num_visual_tokens: T, the tokens handed over per picture.
    """

    space: ClassVar[str] = "input"
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
        """Build it; connectors that need more of the configuration than the widths override this."""
        return cls(settings, config.mm_hidden_size, config.hidden_size)

    def count_tokens(self, wanted: int, num_heads: int, num_patches: int) -> int:
        """Tokens that come out when `wanted` are asked for, on a tower of so many heads and patches.

        Raises:
            ValueError: names the numbers that do not fit and the legal ones.
        """
        return wanted

    def check_tower(self, num_heads: int, num_patches: int) -> None:
        """Refuse, before any work, a vision tower that this connector cannot read; else settle `num_visual_tokens`.

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
        """Map a published checkpoint's key names (without prefix) to this module's; the default changes nothing."""
        return state

    def explain_misfit(self, state: dict[str, Any]) -> str | None:
        """Why a stage-1 file's entries do not fit, and what to do; None: nothing better to say than torch does."""

    def forward(self, features: VisionFeatures, num_visual_tokens: int | None = None) -> Any:
        """`num_visual_tokens` (elastic connectors only) replaces the module's own in this call."""
        raise NotImplementedError


def space_of(projector: nn.Module | None) -> str:
    """`Connector.space`; plain projectors, and a model without one, have visual tokens."""
    return projector.space if isinstance(projector, Connector) else "input"


@dataclass(frozen=True)
class RegisteredConnector:
    """A connector's name, its class and the dataclass of its settings."""

    name: str
    connector_class: type[Connector]
    config_class: type

    def is_free(self, field: Field) -> bool:
        """Whether no weight depends on a setting, so that it may change when a checkpoint is opened."""
        return self.connector_class.is_elastic if field.name == "mm_num_visual_tokens" else field.metadata["at_load"]


CONNECTORS: dict[str, RegisteredConnector] = {}


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
