"""A cost table for people: what was measured where, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Iterator

from moirai_tf.cost.table import CostTable, DeviceProfile, Handling, MeasuredLink, StepCost


def table_text(table: CostTable) -> str:
    """Lines on every device, link and the step; times in milliseconds."""
    return "\n".join([
        f"costs of {len(table.operators)} operators on {len(table.devices)} devices",
        *(_device_line(profile) for profile in table.devices),
        *(_link_line(measured) for measured in table.links),
        *(_handling_line(name, known) for name, known in table.handling.items()),
        *(
            f"{name}  {100 * (factor - 1):.1f} % slower while the others compute"
            for name, factor in table.slowdown.items()
        ),
        *_step_lines(table.step),
    ])  # fmt: skip


def _device_line(profile: DeviceProfile) -> str:
    found = profile.measurement
    if found is None:
        return f"{profile.device.name}  computed"
    pieces = f" in {found.pieces} pieces" if found.pieces > 1 else ""
    peak = f", peak {found.peak_bytes / 1e6:.1f} MB" if found.peak_bytes else ""
    return (
        f"{profile.device.name}  measured{pieces}: {_ms(found.latency_ns)} a step, quartiles "
        f"{100 * found.spread:.1f} % apart, {_ms(found.attributed_ns)} in kernels, "
        f"{_ms(found.fixed_ns + found.moved_ns)} fixed{peak}"
    )


def _link_line(measured: MeasuredLink) -> str:
    link = measured.link
    return (
        f"{link.source} -> {link.target}  {link.latency_ns / 1e3:.0f} us + bytes / "
        f"{link.bandwidth_bytes_per_s / 1e9:.2f} GB/s, off by {100 * measured.error:.1f} %"
    )


def _handling_line(name: str, known: Handling) -> str:
    return (
        f"{name}  busy for {known.send_ns / 1e3:.0f} us + {_ms(known.send_ns_per_mib)} per MiB "
        f"that it sends, {known.receive_ns / 1e3:.0f} us + {_ms(known.receive_ns_per_mib)} per MiB "
        "that it receives"
    )


def _step_lines(step: StepCost) -> Iterator[str]:
    if step == StepCost():
        return
    yield f"a step costs {_ms(step.client_ns)} whatever it computes"
    for name, more_ns in step.device_ns.items():
        yield f"  and {_ms(more_ns)} more with {name}"


def _ms(time_ns: int) -> str:
    return f"{time_ns / 1e6:.3f} ms"
