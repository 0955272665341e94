"""Reports: the critical path by hand, a page that says what the plan says, and a browser's eyes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from moirai_tf import MoiraiError, MoiraiItem
from moirai_tf.bench.timeline import Timeline
from moirai_tf.bench.trace import Trace, read_measured, write_trace
from moirai_tf.fusion.coarse import CoarseGraph, CoarseTensor, FusedOperator
from moirai_tf.graph.graph import Graph, TensorRef
from moirai_tf.graph.names import short_names
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.report import content_of, page_of, write_report
from moirai_tf.report.critical import Step, critical_path
from moirai_tf.report.model_explorer import write_node_data
from moirai_tf.rewrite.plan_file import (
    PlannedSchedule,
    ScheduledOperator,
    ScheduledTransfer,
    read_plan,
)
from tests.scatter import logical_cluster, scatter_pipeline
from tests.zoo import ZOO

ZooDir = Callable[[str], Path]
PLOTS = ("timeline", "path", "methods", "graph", "memory")


@pytest.fixture(scope="module")
def placed(zoo_dir: ZooDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolutional net dealt out to two logical CPUs."""
    output = tmp_path_factory.mktemp("report") / "placed"
    pipeline = scatter_pipeline(ZOO["conv_net_export"], output, 2).without("verify")
    pipeline.run(MoiraiItem(zoo_dir("conv_net_export"), logical_cluster(2)))
    return output


def coarse_of(chain: Graph, names: str, tensors: list[tuple[int, tuple[int, ...]]]) -> CoarseGraph:
    operators = tuple(FusedOperator(name, (0,), "", ("CPU",)) for name in names)
    made = tuple(CoarseTensor(TensorRef(0, 0), a, readers, 4) for a, readers in tensors)
    return CoarseGraph(chain, operators, made)


def test_a_critical_path_by_hand(chain: Graph) -> None:
    """a on d0 until 2, its tensor on d1 at 5, c there until 13, back from 14 (late) to 15, d to 16.

    b, on d0 from 2 to 10, delays nothing.
    """
    coarse = coarse_of(chain, "abcd", [(0, (1, 2)), (2, (3,))])
    schedule = PlannedSchedule(
        16,
        (
            ScheduledOperator("a", "d0", 0, 2),
            ScheduledOperator("b", "d0", 2, 10),
            ScheduledOperator("c", "d1", 5, 13),
            ScheduledOperator("d", "d0", 15, 16),
        ),
        (
            ScheduledTransfer("a", 0, "d0", "d1", 2, 5, None),
            ScheduledTransfer("c", 1, "d1", "d0", 14, 15, None),
        ),
    )
    assert critical_path(schedule, coarse) == (
        Step("compute", "a", "d0", 0, 2),
        Step("transfer", "a", "d0 -> d1", 2, 5),
        Step("compute", "c", "d1", 5, 13),
        Step("wait", "", "", 13, 14),
        Step("transfer", "c", "d1 -> d0", 14, 15),
        Step("compute", "d", "d0", 15, 16),
    )


def test_a_busy_device_and_a_busy_port_are_on_the_path(chain: Graph) -> None:
    """b waits for a's device until 3; its tensor then for the port that a's holds until 8."""
    coarse = coarse_of(chain, "abc", [(0, (2,)), (1, (2,))])
    schedule = PlannedSchedule(
        14,
        (
            ScheduledOperator("a", "d0", 0, 3),
            ScheduledOperator("b", "d0", 3, 4),
            ScheduledOperator("c", "d1", 12, 14),
        ),
        (
            ScheduledTransfer("a", 0, "d0", "d1", 3, 8, None),
            ScheduledTransfer("b", 1, "d0", "d1", 8, 12, None),
        ),
    )
    assert [(step.kind, step.name) for step in critical_path(schedule, coarse)] == [
        ("compute", "a"), ("transfer", "a"), ("transfer", "b"), ("compute", "c"),
    ]  # fmt: skip


def test_names_lose_what_all_share() -> None:
    assert short_names(["x", "Call/Call/a", "Call/Call/b/c"]) == {
        "x": "x", "Call/Call/a": "a", "Call/Call/b/c": "b/c",
    }  # fmt: skip
    assert short_names(["a", "b"]) == {"a": "a", "b": "b"}
    assert short_names(["Callee/a", "Caller/a"])["Callee/a"] == "Callee/a"


def test_a_report_says_what_the_plan_says(placed: Path, tmp_path: Path) -> None:
    content, plan = content_of(placed), read_plan(placed)
    assert content.path[0].start_ns == 0
    assert content.path[-1].finish_ns == content.planned.makespan_ns
    for one, other in zip(content.path, content.path[1:], strict=False):
        assert one.finish_ns == other.start_ns
    assert {d.name: d.operators for d in content.devices} == {
        name: row.operators for name, row in plan.summary.devices.items()
    }
    for device in content.devices:
        # Nothing is freed twice, and at the end only weights and results are held.
        assert min(nbytes for _, nbytes in device.memory) >= 0
        assert device.memory[-1][1] <= device.peak_bytes
    write_report(content, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert content.verdict in page
    assert f"{plan.summary.predicted_ns / 1e6:.3f} ms" in page
    assert not re.search(r'(src|href)="', page.split("</script>", 1)[1])


def test_what_was_measured_is_read_back(placed: Path, tmp_path: Path) -> None:
    planned = content_of(placed).planned
    devices = [device.name for device in read_plan(placed).devices]
    trace = Trace("m", tuple(devices), Timeline((), ()), planned, {}, 5, 1_234_567)
    write_trace(trace, tmp_path / "trace.json")
    found = read_measured(tmp_path / "trace.json", devices)
    assert found.latency_ns == 1_234_567
    assert found.timeline.spans == planned.spans
    assert [(m.source, m.target, m.span) for m in found.timeline.moves]
    content = content_of(placed, tmp_path / "trace.json")
    assert content.measured_ns == 1_234_567
    assert "measured CPU:1" in page_of(content)


@pytest.mark.parametrize("text", ["", "{}", '{"traceEvents": [{}], "otherData": {}}', "[1]"])
def test_what_is_no_trace_is_refused(placed: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "trace.json").write_text(text)
    with pytest.raises(MoiraiError, match="moirai_bench --trace"):
        content_of(placed, tmp_path / "trace.json")


def test_a_trace_of_other_devices_is_refused(placed: Path, tmp_path: Path) -> None:
    planned = content_of(placed).planned
    trace = Trace("m", ("/device:CPU:0", "/device:CPU:1"), Timeline((), ()), planned, {})
    write_trace(trace, tmp_path / "trace.json")
    text = (tmp_path / "trace.json").read_text().replace("CPU:1", "GPU:7")
    (tmp_path / "trace.json").write_text(text)
    with pytest.raises(MoiraiError, match="none of this model's plan"):
        content_of(placed, tmp_path / "trace.json")


def test_a_model_without_a_plan_is_refused(zoo_dir: ZooDir) -> None:
    with pytest.raises(MoiraiError, match=r"moirai_plan\.json"):
        content_of(zoo_dir("conv_net_export"))


def test_without_plotly_it_says_what_to_install(
    placed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MoiraiError, match=r"moirai_tf\[report\]"):
        page_of(content_of(placed))


def test_model_explorer_finds_every_node_of_the_plan(placed: Path, tmp_path: Path) -> None:
    """By its position in its graph; in functions 0 is what stands for their inputs."""
    content = content_of(placed)
    write_node_data(content, placed, tmp_path / "nodes.json")
    data = json.loads((tmp_path / "nodes.json").read_text())
    graph_def = read_saved_model(placed).meta_graph(read_plan(placed).tags).graph_def
    bodies = {f.signature.name: [None, *f.node_def] for f in graph_def.library.function}
    bodies["main"] = list(graph_def.node)
    texts = []
    for name, found in data.items():
        for number, shown in found["results"].items():
            device = bodies[name][int(number)].device
            texts.append(shown["value"])
            assert f"/device:{shown['value'].partition(',')[0]}" == device
            assert re.fullmatch("#[0-9a-f]{6}", shown["bgColor"])
    known = {device.name for device in read_plan(placed).devices}
    devices = [n.device for nodes in bodies.values() for n in nodes if n is not None]
    assert len(texts) == sum(device in known for device in devices) > 0
    busy = [span for span in content.planned.spans if span.duration_ns]
    assert sum(" ms" in text for text in texts) == len(busy)


def test_the_timeline_alone_is_a_picture(placed: Path, tmp_path: Path) -> None:
    """A bar for every operator that takes time, and for every transfer."""
    content = content_of(placed)
    write_report(content, tmp_path / "timeline.svg")
    root = ElementTree.parse(tmp_path / "timeline.svg").getroot()
    tag = "{http://www.w3.org/2000/svg}"
    moved = [move for move in content.planned.moves if move.span and move.span.duration_ns]
    busy = [span for span in content.planned.spans if span.duration_ns]
    assert len(root.findall(f"{tag}rect")) == len(busy) + len(moved) > 0
    assert {"CPU:1", "0 ms"} <= {text.text for text in root.findall(f"{tag}text")}


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_finds_every_picture_and_no_error(
    placed: Path, tmp_path: Path, width: int
) -> None:
    """Numbers are read off the page as Chromium made it (Debian's package `chromium`)."""
    content = content_of(placed)
    write_report(content, tmp_path / "report.html")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "this test needs Chromium: apt-get install chromium"
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
            "--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom",
            str(tmp_path / "report.html"),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    page = done.stdout
    for plot in PLOTS:
        assert re.search(rf'id="{plot}"[^>]*>.*?class="main-svg"', page, re.DOTALL), plot
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page.split('id="table-devices"')[1])
    assert cells[0] == "/device:CPU:0"
    assert int(cells[1]) == content.devices[0].operators
    drawn = re.search(r'id="graph".*?</div></div>', page, re.DOTALL)
    assert drawn is not None
    assert json.dumps(drawn.group()).count('class=\\"point\\"') == len(content.coarse)
