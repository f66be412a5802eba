"""Packages and dependencies of `llava`; everything else is in pyproject.toml."""

from setuptools import find_namespace_packages, setup

CORE = [
    "torch>=2.4,<2.14",
    "transformers>=5.17,<5.24",
    "accelerate>=1.10",
    "peft>=0.18",
    "safetensors>=0.4.5",
    "sentencepiece>=0.2",
    "protobuf>=4",
    "pillow>=10",
    "numpy>=1.26",
    "requests>=2.31",
    "tqdm>=4.66",
]

EXTRAS = {
    "train": ["deepspeed>=0.16", "ninja>=1.11"],
    "flash": ["flash-attn>=2.6"],
    "quant": ["bitsandbytes>=0.45"],
    "serve": ["gradio>=6", "fastapi>=0.110", "uvicorn>=0.29", "httpx>=0.27", "prometheus-client>=0.20", "psutil>=5.9"],
    "eval": ["matplotlib>=3.8", "openai>=1.40", "openpyxl>=3.1", "pandas>=2.2"],
    "patches": ["libcst>=1.1"],
    "vllm": ["vllm>=0.30"],
    "test": [
        "import-linter>=2",
        "playwright>=1.45",
        "pytest>=8",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.7",
        "ruff>=0.6",
        "schemathesis>=4",
        "tensorboard>=2.16",
    ],
}
EXTRAS["build"] = ["build>=1.2", "twine>=5"]

setup(
    packages=find_namespace_packages(include=["llava", "llava.*"]),
    package_data={"llava.eval": ["table/*.json"], "llava.serve": ["examples/*.jpg"]},
    install_requires=CORE,
    extras_require=EXTRAS,
)
