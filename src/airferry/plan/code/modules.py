"""Which distribution provides a module. A name is never guessed: anyone may have registered the guess."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CORE_MODULES = frozenset(
    {"datasets", "megatron", "nemo", "numpy", "ray", "torch", "transformers", "triton", "vllm"},
)
"""Top-level modules that belong to the base and are never installed."""

WELL_KNOWN: Mapping[str, str] = {
    "absl": "absl-py",
    "accelerate": "accelerate",
    "aiohttp": "aiohttp",
    "attr": "attrs",
    "attrs": "attrs",
    "bcp47": "bcp47",
    "boto3": "boto3",
    "botocore": "botocore",
    "bs4": "beautifulsoup4",
    "cattrs": "cattrs",
    "click": "click",
    "colorama": "colorama",
    "cosmos_xenna": "cosmos-xenna",
    "Crypto": "pycryptodome",
    "cudf": "cudf-cu12",
    "cuml": "cuml-cu12",
    "cupy": "cupy-cuda12x",
    "cv2": "opencv-python-headless",
    "data_designer": "data-designer",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "einops": "einops",
    "evaluate": "evaluate",
    "fitz": "pymupdf",
    "fsspec": "fsspec",
    "gcsfs": "gcsfs",
    "git": "gitpython",
    "google.auth": "google-auth",
    "google.cloud.storage": "google-cloud-storage",
    "google.protobuf": "protobuf",
    "grpc": "grpcio",
    "h5py": "h5py",
    "httpx": "httpx",
    "huggingface_hub": "huggingface-hub",
    "hydra": "hydra-core",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "iso639": "iso639-lang",
    "jinja2": "jinja2",
    "joblib": "joblib",
    "jose": "python-jose",
    "jsonschema": "jsonschema",
    "jwt": "pyjwt",
    "langdetect": "langdetect",
    "lightning": "lightning",
    "loguru": "loguru",
    "lxml": "lxml",
    "magic": "python-magic",
    "matplotlib": "matplotlib",
    "modelopt": "nvidia-modelopt",
    "msgpack": "msgpack",
    "nemo_curator": "nemo-curator",
    "nemo_evaluator": "nemo-evaluator",
    "nemo_evaluator_launcher": "nemo-evaluator-launcher",
    "nemo_run": "nemo-run",
    "networkx": "networkx",
    "nltk": "nltk",
    "obstore": "obstore",
    "omegaconf": "omegaconf",
    "openai": "openai",
    "orjson": "orjson",
    "packaging": "packaging",
    "pandas": "pandas",
    "peft": "peft",
    "PIL": "pillow",
    "pkg_resources": "setuptools",
    "platformdirs": "platformdirs",
    "polars": "polars",
    "portpicker": "portpicker",
    "psutil": "psutil",
    "psycopg2": "psycopg2-binary",
    "pulp": "pulp",
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic-core",
    "pydantic_settings": "pydantic-settings",
    "pytorch_lightning": "pytorch-lightning",
    "regex": "regex",
    "requests": "requests",
    "rich": "rich",
    "rouge_score": "rouge-score",
    "ruamel.yaml": "ruamel-yaml",
    "s3fs": "s3fs",
    "sacrebleu": "sacrebleu",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "sentence_transformers": "sentence-transformers",
    "sentencepiece": "sentencepiece",
    "serial": "pyserial",
    "setuptools": "setuptools",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "slugify": "python-slugify",
    "soundfile": "soundfile",
    "tabulate": "tabulate",
    "tensorboard": "tensorboard",
    "textual": "textual",
    "tiktoken": "tiktoken",
    "tokenizers": "tokenizers",
    "toml": "toml",
    "tomli": "tomli",
    "tomlkit": "tomlkit",
    "tqdm": "tqdm",
    "transformer_engine": "transformer-engine",
    "trl": "trl",
    "typer": "typer",
    "typing_extensions": "typing-extensions",
    "urllib3": "urllib3",
    "wandb": "wandb",
    "webdataset": "webdataset",
    "xxhash": "xxhash",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
    "zstandard": "zstandard",
}
"""Modules, top-level or dotted, to the distributions that are known to provide them."""

_WELL_KNOWN_OR_ABOVE = frozenset(
    ".".join(known.split(".")[:length]) for known in WELL_KNOWN for length in range(1, known.count(".") + 2)
)


class KnownNames(Protocol):
    """What can tell whether it knows a distribution: a catalogue's lock."""

    def __contains__(self, name: object, /) -> bool: ...


def is_core(module: str) -> bool:
    """Tell whether a module belongs to the base and must never be installed."""
    return module.partition(".")[0] in CORE_MODULES


def parents(module: str) -> tuple[str, ...]:
    """Return a dotted module and its parents, the longest first."""
    parts = module.split(".")
    return tuple(".".join(parts[:length]) for length in range(len(parts), 0, -1))


def well_known_child(package: str, name: str) -> str | None:
    """Return `package.name` if that is a module which a separate distribution provides (`google.protobuf`)."""
    module = f"{package}.{name}"
    return module if module in _WELL_KNOWN_OR_ABOVE else None


def distribution_for(module: str, *, lock: KnownNames | None, requirements: Mapping[str, str]) -> str | None:
    """Return the requirement that provides a module, or None where nothing says which one does.

    In this order: the image's `requirements:` for the module or a parent of it, which are returned as written; a
    distribution of the catalogue's lock that the shipped map names, or that has the module's top-level name; the
    shipped map. All but the first are normalised names without a version.
    """
    for name in parents(module):
        if name in requirements:
            return str(Requirement(requirements[name]))
    known = next((WELL_KNOWN[name] for name in parents(module) if name in WELL_KNOWN), None)
    if known is not None:
        return known
    if lock is not None:
        for name in parents(module):
            normalised = canonicalize_name(name)
            if normalised in lock:
                return normalised
    return None
