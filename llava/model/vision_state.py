"""Load trained vision modules, connector and tower, into a model."""

from typing import Any

import torch

from llava.model.vision_tokenizer import gathered
from llava.model.weights import adapter_state


def load_connector_state(model: Any, state: dict[str, torch.Tensor], path: str) -> None:
    """Load the connector (and `image_newline`, if both sides have one) from a stage-1 file with any prefix.

    Args:
        model: the inner model (`LlavaMetaModel`) that holds the connector.
        state: the entries of the file.
        path: the file, for the error message.

    Raises:
        ValueError: the file's entries do not fit the connector.
    """
    projector = model.mm_projector.load_published_state(adapter_state(state, "mm_projector"))
    try:
        with gathered(list(model.mm_projector.parameters())):
            model.mm_projector.load_state_dict(projector, strict=True)
    except RuntimeError as error:
        torch_reasons = "; ".join(line.strip() for line in str(error).splitlines()[1:])
        reasons = model.mm_projector.explain_misfit(projector) or torch_reasons
        raise ValueError(
            f"{path} does not fit the connector {model.config.mm_projector_type!r} and its settings: {reasons}"
        ) from error
    newline = [value for key, value in state.items() if key.endswith("image_newline")]
    if newline and getattr(model, "image_newline", None) is not None:
        with gathered([model.image_newline]), torch.no_grad():
            model.image_newline.copy_(newline[0])


def load_tower_state(model: Any, state: dict[str, torch.Tensor], path: str) -> None:
    """Load the vision tower, if the file comes from a run with --tune_vision_tower and holds one.

    Args:
        model, state, path: as in `load_connector_state`; entries may be missing, none may be too many.

    Raises:
        ValueError: the file's entries do not fit the tower.
    """
    tuned = adapter_state(state, "vision_tower")
    if not tuned:
        return
    tower = model.get_vision_tower()
    parameters = dict(tower.named_parameters())
    wrong = [key for key in tuned if key not in parameters]
    with gathered(list(parameters.values())), torch.no_grad():
        wrong += [k for k, v in tuned.items() if k not in wrong and parameters[k].shape != v.shape]
        if wrong:
            raise ValueError(
                f"{path} holds another vision tower than {tower.vision_tower_name}: {', '.join(wrong[:3])} does "
                "not fit; give the --vision_tower that it was trained with"
            )
        for key, value in tuned.items():
            parameters[key].copy_(value)
    model.config.tune_vision_tower = True
