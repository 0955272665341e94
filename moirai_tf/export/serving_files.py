"""The files that one TensorFlow Serving process shares among its models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from google.protobuf import text_format
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.framework import device as device_lib

from moirai_tf.errors import MoiraiError
from moirai_tf.export.options import ServingOptions
from moirai_tf.model.load import logical_cpus
from moirai_tf.records import Format
from moirai_tf.rewrite.directory import has_plan
from moirai_tf.rewrite.plan import Plan
from moirai_tf.rewrite.plan_file import read_plan

MODELS, SESSION, COMPOSE, COMMAND = (
    "models.config", "session_config.pbtxt", "compose.yaml", "serve.sh",
)  # fmt: skip
BATCHING = "batching_params.pbtxt"
"""In a version's directory; the others are beside the models."""
_SERVICE = "tensorflow-serving"
_GRPC, _REST = 8500, 8501
"""Ports that the image exposes."""

_FORMAT = Format(
    why="one file configures all models of a server, so what is in it already is kept",
    fix="repair it, or move it away to begin anew",
    closed=False,
)


@dataclass(frozen=True)
class Tenant:
    """A model of the server."""

    name: str
    plan: Plan | None
    """None of a model that moirai_tf did not place, or whose directory is not here."""
    batched: bool
    """Whether its requests may be merged."""


def read_models(file: Path) -> Any:
    """The `ModelServerConfig` of a file; an empty one if there is no such file.

    Raises:
      MoiraiError: it cannot be parsed, lists models in a way of its own, or the extra `serving` is
        not installed.
    """
    from tensorflow_serving.config import model_server_config_pb2

    config = model_server_config_pb2.ModelServerConfig()
    if file.exists():
        _parse(file, config)
    if config.WhichOneof("config") == "custom_model_config":
        raise _FORMAT.fault(str(file), "it has a custom_model_config, which lists no models")
    return config


def add_model(config: Any, name: str, base_path: str) -> None:
    """Lists a model in a `ModelServerConfig`, if it is not there already.

    Raises:
      MoiraiError: another model has its name.
    """
    for known in config.model_config_list.config:
        if known.name != name:
            continue
        if PurePosixPath(known.base_path) != PurePosixPath(base_path):
            raise MoiraiError(
                f"{MODELS} has a model {name!r} at {known.base_path}, not {base_path}",
                why="clients choose a model by its name",
                fix="give base_path another last part, or the model_root that the file was made "
                "with",
            )
        return
    config.model_config_list.config.add(name=name, base_path=base_path, model_platform="tensorflow")


def other_tenants(config: Any, folder: Path, root: str, name: str) -> Iterator[Tenant]:
    """The models that a server would have beside the one of that name.

    Args:
      config: the `ModelServerConfig`.
      folder: where the models are here.
      root: the same folder as the server sees it.
      name: the model that is exported.
    """
    for known in config.model_config_list.config:
        if known.name == name:
            continue
        path = PurePosixPath(known.base_path)
        here = folder / path.relative_to(root) if path.is_relative_to(root) else None
        latest = None if here is None else latest_version(here)
        if here is None or latest is None:
            yield Tenant(known.name, None, batched=False)
            continue
        directory = version_directory(here, latest)
        plan = read_plan(directory) if has_plan(directory) else None
        yield Tenant(known.name, plan, (directory / BATCHING).is_file())


def versions(base: Path) -> dict[int, Path]:
    """Version -> its directory, as TensorFlow Serving counts them: `00012` is 12."""
    if not base.is_dir():
        return {}
    return {int(p.name): p for p in base.iterdir() if p.name.isascii() and p.name.isdigit()}


def latest_version(base: Path) -> int | None:
    """The version that is served unless told otherwise."""
    return max(versions(base), default=None)


def version_directory(base: Path, number: int) -> Path:
    """Where a version is, or would be."""
    return versions(base).get(number, base / str(number))


def check_tenants(tenants: Sequence[Tenant]) -> None:
    """Refuses models that no one process can serve together.

    Raises:
      MoiraiError: saying which models, and why none would do.
    """
    placed = [(tenant.name, tenant.plan) for tenant in tenants if tenant.plan is not None]
    for name, plan in placed:
        check_servable(name, plan)
        if _tags(plan) != _tags(placed[0][1]):
            raise _apart(
                (placed[0][0], name),
                f"have the tags {_tags(placed[0][1])} and {_tags(plan)}",
                "a server loads the MetaGraphs of one set of tags (--saved_model_tags)",
            )
    _check_gpus(placed)
    _check_memory(placed)


def check_servable(name: str, plan: Plan) -> None:
    """Refuses a plan with devices of other processes.

    Raises:
      MoiraiError: naming one.
    """
    if not plan.servable:
        remote = next(d.name for d in plan.devices if d.name.startswith("/job:"))
        raise MoiraiError(
            f"{name} is placed on {remote}, a device of another process",
            why="TensorFlow Serving has no session on other servers, and refuses such a model",
            fix="run it with moirai_tf.connect, or place it on the devices of one machine",
        )


def session_text(old: str, plans: Iterable[Plan], options: ServingOptions) -> str:
    """The session configuration that suits all plans, as text.

    Args:
      old: the text of the one that is there; its other fields are kept.
      plans: of all models of the server.
      options: what the user wants of it.

    Raises:
      MoiraiError: the old one cannot be parsed.
    """
    config = config_pb2.ConfigProto()
    try:
        text_format.Parse(old, config)
    except text_format.ParseError as error:
        raise _FORMAT.fault(SESSION, str(error)) from error
    devices = [device.name for plan in plans for device in plan.devices]
    config.device_count["CPU"] = max(config.device_count["CPU"], logical_cpus(devices))
    config.allow_soft_placement = False
    if options.intra_op_threads:
        config.intra_op_parallelism_threads = options.intra_op_threads
    if options.inter_op_threads:
        config.inter_op_parallelism_threads = options.inter_op_threads
    if options.gpu_memory_fraction:
        config.gpu_options.per_process_gpu_memory_fraction = options.gpu_memory_fraction
    # TensorFlow leaves out what is the default.
    return f"allow_soft_placement: false\n{text_format.MessageToString(config)}"


def batching_text(sizes: Sequence[int]) -> str:
    """`BatchingParameters` with these sizes of a batch, the largest last."""
    lines = [f"max_batch_size {{ value: {sizes[-1]} }}"]
    lines += [f"allowed_batch_sizes: {size}" for size in sizes]
    return "\n".join(lines) + "\n"


def flags(root: str, session: str, tenants: Sequence[Tenant]) -> list[str]:
    """What the server's command line must say.

    Threads and GPU memory are in the session configuration too, but there the flags win.
    """
    config = text_format.Parse(session, config_pb2.ConfigProto())
    found = {
        "model_config_file": f"{root}/{MODELS}",
        "tensorflow_session_config_file": f"{root}/{SESSION}",
        "tensorflow_intra_op_parallelism": config.intra_op_parallelism_threads,
        "tensorflow_inter_op_parallelism": config.inter_op_parallelism_threads,
        "per_process_gpu_memory_fraction": config.gpu_options.per_process_gpu_memory_fraction,
        "enable_model_warmup": "true",
    }
    if any(tenant.batched for tenant in tenants):
        found |= {"enable_batching": "true", "enable_per_model_batching_parameters": "true"}
    tags = {_tags(tenant.plan) for tenant in tenants if tenant.plan is not None}
    if tags != {"serve"}:
        found["saved_model_tags"] = min(tags)
    return [f"--{name}={value}" for name, value in found.items()]


def command_text(arguments: Sequence[str]) -> str:
    """A shell script that starts a server of this machine; its arguments are further flags."""
    lines = [f"tensorflow_model_server --port={_GRPC} --rest_api_port={_REST}", *arguments]
    joined = " \\\n  ".join(lines)
    return f'#!/bin/sh\n# Written by moirai_export_serving.\nexec {joined} "$@"\n'


def compose_text(old: str, root: str, arguments: Sequence[str], gpus: int) -> str:
    """A `compose.yaml` with the server; what the old one says besides is kept.

    Raises:
      MoiraiError: the old one is no such file.
    """
    try:
        values = yaml.safe_load(old) or {}
        service = values.setdefault("services", {}).setdefault(_SERVICE, {})
        service.setdefault("image", _image(gpus))
        service["command"] = list(arguments)
        service.setdefault("ports", [f"{port}:{port}" for port in (_GRPC, _REST)])
        service.setdefault("volumes", [f".:{root}:ro"])
        service.setdefault("restart", "unless-stopped")
        if gpus:
            reserved = {"driver": "nvidia", "count": gpus, "capabilities": ["gpu"]}
            service["deploy"] = {"resources": {"reservations": {"devices": [reserved]}}}
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise _FORMAT.fault(COMPOSE, f"it is no file of Docker Compose: {error}") from error
    text: str = yaml.safe_dump(values, sort_keys=False)
    return text


def gpus_of(plans: Iterable[Plan]) -> int:
    """How many GPUs a process must have so that the plans find theirs."""
    return 1 + max((i for plan in plans for i in _gpu_models(plan)), default=-1)


def _image(gpus: int) -> str:
    try:
        tag = version("tensorflow-serving-api")
    except PackageNotFoundError:
        tag = "latest"
    return f"tensorflow/serving:{tag}{'-gpu' if gpus else ''}"


def _parse(file: Path, into: Any) -> None:
    try:
        text_format.Parse(_FORMAT.read_text(file), into)
    except text_format.ParseError as error:
        raise _FORMAT.fault(str(file), str(error)) from error


def read_old(file: Path) -> str:
    """The text of a file that is to be merged; empty if there is none.

    Raises:
      MoiraiError: it cannot be read.
    """
    return _FORMAT.read_text(file) if file.exists() else ""


def _tags(plan: Plan) -> str:
    return ",".join(sorted(plan.tags)) or "serve"


def _gpu_models(plan: Plan) -> dict[int, str]:
    """Index of every GPU of a plan -> its model."""
    specs = [(device_lib.DeviceSpec.from_string(d.name), d.model) for d in plan.devices]
    return {spec.device_index: model for spec, model in specs if spec.device_type == "GPU"}


def _check_gpus(placed: Sequence[tuple[str, Plan]]) -> None:
    known: dict[int, tuple[str, str]] = {}
    for name, plan in placed:
        for index, model in _gpu_models(plan).items():
            first, other = known.setdefault(index, (name, model)) if model else (name, model)
            if other != model:
                raise _apart(
                    (first, name),
                    f"are placed for {other!r} and {model!r} as GPU {index}",
                    "one process has one GPU of that number",
                )


def _check_memory(placed: Sequence[tuple[str, Plan]]) -> None:
    needed: dict[str, dict[str, int]] = defaultdict(dict)
    room: dict[str, int] = {}
    for name, plan in placed:
        peaks: Mapping[str, int] = plan.summary.peak_bytes if plan.summary is not None else {}
        for device in plan.devices:
            needed[device.name][name] = peaks.get(device.name, 0)
            if device.memory_bytes is not None:
                room[device.name] = min(room.get(device.name, device.memory_bytes),
                                        device.memory_bytes)  # fmt: skip
    for device_name, most in room.items():
        total = sum(needed[device_name].values())
        if total > most and len(placed) > 1:
            raise _apart(
                tuple(needed[device_name]),
                f"need {total} bytes of {device_name} together, which has {most}",
                "a server keeps all its models in memory at once",
            )


def _apart(names: Sequence[str], what: str, why: str) -> MoiraiError:
    return MoiraiError(
        f"one server cannot serve {' and '.join(names)}: they {what}",
        why=why,
        fix="export one of them below another folder, for a server of its own",
    )
