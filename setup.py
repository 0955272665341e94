"""Packaging: the library `moirai_tf` and its commands, which install as `moirai_tf_tools`."""

from pathlib import Path

from setuptools import find_packages, setup

COMMANDS = (
    "optimize", "inspect", "profile", "place", "verify", "bench", "report", "strip", "remap",
    "cluster", "compare", "export_onnx", "export_serving",
)  # fmt: skip

setup(
    name="moirai_tf",
    version="0.1.0",
    description="Places the operators of a TensorFlow SavedModel on heterogeneous devices.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    project_urls={"Paper": "https://arxiv.org/abs/2312.04025"},
    keywords="tensorflow savedmodel placement heterogeneous scheduling milp grappler inference",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=[*find_packages(include=["moirai_tf", "moirai_tf.*"]), "moirai_tf_tools"],
    # A top-level package called `tools` would be in the way of everybody else's.
    package_dir={"moirai_tf_tools": "tools"},
    package_data={"moirai_tf": ["py.typed"]},
    install_requires=[
        "absl-py>=2",
        "grpcio>=1.60",
        "highspy>=1.16,<2",
        "networkx>=3.2",
        "numba>=0.68,<0.69",
        "numpy>=2",
        "protobuf",
        "pydantic>=2.12,<3",
        "pyyaml>=6",
        "rich>=13",
        "scipy>=1.13",
        "tensorflow>=2.18,<2.22",
        "typing-extensions>=4.10",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.21,<2.22"],
        "gurobi": ["gurobipy>=12"],
        "docs": ["pdoc>=15"],
        "lint": ["mypy>=2.4,<3", "ruff>=0.17,<0.18", "types-PyYAML"],
        "onnx": ["onnx>=1.19", "onnxruntime>=1.23", "tf2onnx>=1.17"],
        "publish": ["build>=1.2", "twine>=6"],
        "report": ["plotly>=6"],
        "serving": ["tensorflow-serving-api>=2.18,<2.22"],
        "test": [
            "hypothesis",
            "keras-hub>=0.31,<0.33",
            "onnx>=1.19",
            "onnxruntime>=1.23",
            "plotly>=6",
            "pytest>=9,<10",
            "pytest-xdist>=3.8",
            "tensorflow-serving-api>=2.18,<2.22",
            "tensorflow-text>=2.18,<2.22",
            "tf-keras>=2.18,<2.22",
            "tf2onnx>=1.17",
            "tritonclient>=2.50",
        ],
    },
    entry_points={
        "console_scripts": [
            f"moirai_{name} = moirai_tf_tools.moirai_{name}:entry" for name in COMMANDS
        ]
    },
)
