"""Copy the connector out of a full checkpoint into one torch file.

Reads `pytorch_model.bin` or `model.safetensors`, sharded or not.
"""

import argparse


def extract(model_path: str, output: str) -> None:
    """Write every entry of the connector, under its full key, to `output`.

    Raises:
        ValueError: the folder holds no weights of a connector.
    """
    from llava.model.weights import projector_entries, save_torch_atomically

    state = projector_entries(model_path)
    if not state:
        raise ValueError(
            f"{model_path} has no weights of a connector in model.safetensors or pytorch_model.bin, whole or sharded: "
            "it is not a full LLaVA checkpoint"
        )
    save_torch_atomically(output, state)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", type=str, required=True, help="folder of the full checkpoint")
    parser.add_argument("--output", type=str, required=True, help="file to write, for example mm_projector.bin")
    args = parser.parse_args()
    extract(args.model_path, args.output)
