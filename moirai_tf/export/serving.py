"""Lays a placed model out for TensorFlow Serving, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from moirai_tf.cost.inputs import chosen_inputs, generate_inputs
from moirai_tf.errors import MoiraiError, file_errors
from moirai_tf.export import serving_files as files
from moirai_tf.export.options import ServingOptions, check_serving_options
from moirai_tf.export.rehearsal import Rehearsal, rehearse
from moirai_tf.export.serving_files import Tenant
from moirai_tf.export.warmup import (
    WARMUP_FILE,
    Request,
    apis,
    last_rows,
    read_requests,
    request_of,
    write_requests,
)
from moirai_tf.graph.importer import import_graph
from moirai_tf.graph.options import ImportOptions
from moirai_tf.model.input_files import Array
from moirai_tf.model.output import (
    alone,
    check_apart,
    discard,
    publish,
    read_fingerprint,
    real_path,
    stage,
    write_saved_model,
)
from moirai_tf.model.saved_model import SavedModel, read_saved_model
from moirai_tf.records import whole_files
from moirai_tf.rewrite.directory import unplaced
from moirai_tf.rewrite.plan import Plan
from moirai_tf.rewrite.plan_file import read_plan

_OWN = "of the model's own warm-up requests"
"""What stands for a signature where requests come with the model."""


@dataclass(frozen=True)
class ServingExport:
    """What was written."""

    directory: Path
    """The version."""
    files: tuple[Path, ...]
    """Configuration that all models of the server share."""
    batch_sizes: tuple[int, ...]
    """Sizes of batches that the server may run; empty if it merges no requests."""
    requests: int
    """Warm-up requests."""
    flags: tuple[str, ...]
    restart: bool
    """Whether the shared session configuration changed, which a running server does not notice."""
    notes: tuple[str, ...]

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.batch_sizes)) or "as they come"
        lines = [
            f"version     {self.directory}",
            f"warm-up     {self.requests} requests, run here as the server will",
            f"batches     {sizes}",
            *(f"configures  {file}" for file in self.files),
            *(f"note        {note}" for note in self.notes),
            f"server      tensorflow_model_server {' '.join(self.flags)}",
        ]
        if self.restart:
            lines.append("restart     servers that run: the session configuration changed")
        return "\n".join(lines)


@file_errors("the model cannot be exported")
def export_serving(
    placed_dir: str | Path,
    base_path: str | Path,
    options: ServingOptions | None = None,
    **more: Any,
) -> ServingExport:
    """Writes a placed model as the next version of a model of TensorFlow Serving.

    The version holds the model, warm-up requests and, where requests may be merged, batching
    parameters. Beside `base_path` are the files of the server: its models, the session
    configuration, `compose.yaml` and `serve.sh`. Other models in them are kept.

    Args:
      placed_dir: the placed model; only read.
      base_path: the directory of all versions of the model; its last part is the model's name.
      options: how to lay it out.
      **more: fields of the options instead.

    Raises:
      MoiraiError: the plan has devices of other processes, the version exists, the server's other
        models do not go with this one, a request fails, or a file cannot be read or written.
    """
    options = replace(options or ServingOptions(), **more)
    check_serving_options(options)
    apis()
    plan, base = read_plan(placed_dir), real_path(Path(base_path))
    model = read_saved_model(placed_dir)
    files.check_servable(str(placed_dir), plan)
    check_apart(model.path, base)
    return _write(model, plan, base, options, _rehearsed(model, plan, base, options))


def _rehearsed(model: SavedModel, plan: Plan, base: Path, options: ServingOptions) -> _Content:
    """Requests that were run here as the server will, and what they tell of batches."""
    server = _server(base, plan, options)
    trials, notes = _trials(unplaced(model), plan, base.name, options)
    own = [Request(_OWN, None, log) for log in read_requests(model.path)]
    rehearsal = rehearse(
        real_path(model.path), plan, server.session, [*own, *trials], options.export_timeout_s
    )
    _check(rehearsal, plan)
    kept = [*own, *(r for r in trials if r.signature not in rehearsal.failed)]
    notes += [
        f"signature {name!r} has no warm-up request: {why}"
        for name, why in rehearsal.failed.items()
    ]
    sizes, reason = _batch_sizes(model.meta_graph(plan.tags), plan, trials, rehearsal, options)
    if not sizes:
        notes.append(f"the server merges no requests: {reason}")
        kept = [r for r in kept if r.rows in (None, _planned_rows(trials, plan))]
    return _Content(tuple(kept), tuple(sizes), tuple(notes))


@dataclass(frozen=True)
class _Server:
    """The shared configuration, merged with what is there."""

    models: str
    session: str
    tenants: tuple[Tenant, ...]
    """Beside the model that is exported."""
    changed: bool
    """Whether the session configuration differs from the one that is there."""


def _server(base: Path, plan: Plan, options: ServingOptions) -> _Server:
    folder, root = base.parent, options.model_root.rstrip("/") or "/"
    config = files.read_models(folder / files.MODELS)
    files.add_model(config, base.name, str(PurePosixPath(root) / base.name))
    tenants = tuple(files.other_tenants(config, folder, root, base.name))
    files.check_tenants([*tenants, Tenant(base.name, plan, batched=False)])
    plans = [tenant.plan for tenant in tenants if tenant.plan is not None]
    old = files.read_old(folder / files.SESSION)
    session = files.session_text(old, [*plans, plan], options)
    return _Server(str(config), session, tenants, bool(old) and old != session)


def _trials(
    original: SavedModel, plan: Plan, name: str, options: ServingOptions
) -> tuple[list[Request], list[str]]:
    """Requests for every signature, the plan's first; and why a signature has none."""
    meta_graph = original.meta_graph(plan.tags)
    graph = import_graph(original, plan.import_options(options.inputs))
    inputs = chosen_inputs(graph, options.inputs, options.seed)
    rows = _rows(meta_graph.signature_def[plan.signature], inputs)
    trials = _requests(name, plan.signature, meta_graph, inputs, rows)
    notes = []
    for other in sorted(meta_graph.signature_def):
        if other == plan.signature or not meta_graph.signature_def[other].inputs:
            continue
        try:
            wanted = ImportOptions(signature=other, tags=plan.tags, batch_size=rows or 1)
            inputs = generate_inputs(import_graph(original, wanted), options.seed)
            trials += _requests(name, other, meta_graph, inputs, rows)
        except MoiraiError as error:
            notes.append(f"signature {other!r} has no warm-up request: {error.rule}")
    return trials, notes


def _requests(
    name: str, signature: str, meta_graph: Any, inputs: Mapping[str, Array], rows: int | None
) -> list[Request]:
    """The whole batch, then its ends in every size that a server may form."""
    definition = meta_graph.signature_def[signature]
    if _rows(definition, inputs) != rows or rows is None:
        return [request_of(name, signature, definition, inputs)]
    found = [request_of(name, signature, definition, inputs, rows)]
    for size in reversed(_sizes(rows)[:-1]):
        found.append(request_of(name, signature, definition, last_rows(inputs, size), size))
    return found


def _rows(definition: Any, inputs: Mapping[str, Array]) -> int | None:
    """The size of the batch, if every input has a first dimension of any size."""
    for info in definition.inputs.values():
        shape = info.tensor_shape
        if info.WhichOneof("encoding") != "name" or shape.unknown_rank or not shape.dim:
            return None
        if shape.dim[0].size != -1:
            return None
    sizes = {len(array) for array in inputs.values()}
    return sizes.pop() if len(sizes) == 1 else None


def _sizes(rows: int) -> list[int]:
    """Powers of two below the planned batch, and the batch."""
    return [1 << k for k in range(rows.bit_length()) if 1 << k < rows] + [rows]


def _planned_rows(trials: Sequence[Request], plan: Plan) -> int | None:
    return next(r.rows for r in trials if r.signature == plan.signature)


def _check(rehearsal: Rehearsal, plan: Plan) -> None:
    for name in (plan.signature, _OWN):
        if name in rehearsal.failed:
            what = f"signature {name!r}" if name == plan.signature else f"one {name}"
            raise MoiraiError(
                f"{what} cannot be run as TensorFlow Serving runs it: {rehearsal.failed[name]}",
                why="a server refuses to load a model whose warm-up requests fail",
                fix="give inputs that the model accepts (--inputs); if none is, export the "
                "original anew, so that a Session can run it",
            )


def _batch_sizes(
    meta_graph: Any,
    plan: Plan,
    trials: Sequence[Request],
    rehearsal: Rehearsal,
    options: ServingOptions,
) -> tuple[list[int], str]:
    """The sizes of batches that a server may form, or none and why it must not."""
    if not options.batching:
        return [], "as the option batching says"
    rows = _planned_rows(trials, plan)
    if rows == 1:
        return [], "the plan is for single rows (batch_size=1)"
    for name in sorted(meta_graph.signature_def):
        if not meta_graph.signature_def[name].inputs:
            continue
        known = [r.rows for r in trials if r.signature == name]
        if name in rehearsal.mixed:
            return [], f"signature {name!r}: {rehearsal.mixed[name]}"
        if name in rehearsal.failed or not known:
            return [], f"signature {name!r} could not be tried, and a server merges for all"
        if None in known or rows is None:
            return [], f"signature {name!r} has an input whose first dimension is no batch"
    return _sizes(rows or 1), ""


@dataclass(frozen=True)
class _Content:
    requests: tuple[Request, ...]
    batch_sizes: tuple[int, ...]
    notes: tuple[str, ...]


def _write(
    model: SavedModel, plan: Plan, base: Path, options: ServingOptions, content: _Content
) -> ServingExport:
    """Writes the version and the shared files; nobody else does that meanwhile."""
    with _folder(base), alone(base.parent):
        server = _server(base, plan, options)  # another export may have come first
        known = files.versions(base)
        number = options.version or max(known, default=0) + 1
        if number in known:
            raise MoiraiError(
                f"{base} has a version {number} already: {known[number]}",
                why="a server may be serving it, and takes no notice of what changes inside",
                fix="give a version that is free, or none for the next one",
            )
        batching = files.batching_text(content.batch_sizes) if content.batch_sizes else ""
        staged = stage(base / str(number), overwrite=False)
        try:
            write_saved_model(
                model, model.proto, staged.directory, {Path(files.BATCHING): batching},
                read_fingerprint(model) or None, copy=options.copy,
            )  # fmt: skip
            write_requests((r.log for r in content.requests), staged.directory / WARMUP_FILE)
            arguments, texts = _texts(base, plan, options, server, batched=bool(batching))
            with whole_files(texts):
                publish(staged)
        except BaseException:
            if not staged.directory.exists():  # it was published, but not the shared files
                shutil.rmtree(staged.output, ignore_errors=True)
            raise
        finally:
            discard(staged)
        (base.parent / files.COMMAND).chmod(0o755)
    return ServingExport(
        staged.output, tuple(texts), content.batch_sizes, len({r.log for r in content.requests}),
        tuple(arguments), server.changed, (*content.notes, *_tenant_notes(server)),
    )  # fmt: skip


def _texts(
    base: Path, plan: Plan, options: ServingOptions, server: _Server, *, batched: bool
) -> tuple[list[str], dict[Path, str]]:
    """The server's flags, and file -> text of what it shares among its models."""
    root, folder = options.model_root.rstrip("/"), base.parent
    tenants = [*server.tenants, Tenant(base.name, plan, batched)]
    arguments = files.flags(root, server.session, tenants)
    gpus = files.gpus_of(t.plan for t in tenants if t.plan is not None)
    compose = files.compose_text(
        files.read_old(folder / files.COMPOSE), options.model_root, arguments, gpus
    )
    return arguments, {
        folder / files.SESSION: server.session,
        folder / files.MODELS: server.models,
        folder / files.COMPOSE: compose,
        folder / files.COMMAND: files.command_text(arguments),
    }


def _tenant_notes(server: _Server) -> Iterator[str]:
    for tenant in server.tenants:
        if tenant.plan is None:
            yield (
                f"model {tenant.name!r} was not placed by moirai_tf, or is not here: with soft "
                "placement off it must find every device that it names"
            )


@contextmanager
def _folder(base: Path) -> Iterator[None]:
    """Makes the directory of a model's versions; none that is empty is left after an error."""
    missing = [p for p in (base, *base.parents) if not p.exists()]
    base.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise
