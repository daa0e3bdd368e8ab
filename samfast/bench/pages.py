"""A profile's result for people: short tables for a terminal, and the index page of its folder."""

from __future__ import annotations

from html import escape
from typing import Any

from samfast.bench import html
from samfast.bench.timeline import size_of

SHORT = 12
"""Rows of a table in the terminal."""

NO_WAITS = "nothing waited for the GPU"
NO_GPU = "no GPU: nothing to wait for; kernels, idle time and PyTorch's memory snapshot need one"

SLOWED = (
    "While it watches, the profiler slows the host but not the kernels. The tables are of the "
    "traced runs; without "
    "the profiler the GPU idles less, unless it is CUDA graphs that keep it busy."
)


def text(result: dict[str, Any]) -> str:
    """The result as short tables, in lines."""
    memory, environment = result["memory"], result["environment"]
    on_gpu = environment["gpu"] is not None
    lines = [
        f"{result['model']}, recipe {result['recipe']}, "
        f"{environment['gpu'] or environment['cpu'] or 'CPU'}",
        f"{asked(result['workload'])}: {milliseconds(result['seconds']['alone'])} ms a run, "
        f"{milliseconds(result['seconds']['traced'])} ms traced"
        + (f"; {_idle(result)}" if on_gpu else ""),
        "",
        f"{'region':<12}{'host ms':>10}"
        + (f"{'GPU ms':>10}{'idle ms':>10}{'idle':>8}" if on_gpu else ""),
    ]
    for name, row in result["regions"].items():
        line = f"{name:<12}{milliseconds(row['host_seconds']):>10}"
        if on_gpu:
            line += f"{milliseconds(row['gpu_busy_seconds']):>10}"
            line += f"{milliseconds(row['gpu_idle_seconds']):>10}"
            line += f"{percent(row['idle_share']):>8}"
        lines.append(line)
    lines += ["", f"{'calls':>7} {'ms':>10} {'share':>6}  {'kernel' if on_gpu else 'operator'}"]
    lines += [
        f"{row['calls']:>7g} {row['ms']:>10.3f} {row['share']:>6.1%}  {row['name'][:90]}"
        for row in result["kernels"][:SHORT]
    ]
    lines += ["", *_waits(result["waits"]), ""]
    lines.append(f"memory at its peak: {size_of(memory['peak_bytes'])}{_beside(memory)}")
    lines += [
        f"{size_of(row['bytes']):>10}  {row[memory['by']]}" for row in memory["allocations"][:SHORT]
    ]
    return "\n".join(lines) + "\n"


def page(result: dict[str, Any]) -> bytes:
    """index.html: every table, the stamp, and links to the other files of the folder."""
    memory, environment = result["memory"], result["environment"]
    on_gpu = environment["gpu"] is not None
    seconds = result["seconds"]
    place = str(environment["gpu"] or environment["cpu"] or "a CPU")
    head = (
        f"<p>{escape(asked(result['workload']))} on {escape(place)}: "
        f"<b>{milliseconds(seconds['alone'])} ms</b> a run, {milliseconds(seconds['traced'])} ms "
        "while traced" + (f"; <b>{_idle(result)}</b>" if on_gpu else "") + ".</p>"
    )
    return html.page(
        f"Profile of {result['model']}, recipe {result['recipe']}",
        head,
        html.note(SLOWED if on_gpu else NO_GPU + "."),
        "<h2>By region</h2>",
        _regions(result["regions"], on_gpu),
        "<h2>By kernel</h2>" if on_gpu else "<h2>By operator</h2>",
        _kernels(result["kernels"], "kernel" if on_gpu else "operator"),
        "<h2>By class</h2>",
        html.table(
            ("class", "ms a run", "share"),
            [
                [kind, f"{row['ms']:.3f}", f"{row['share']:.1%}"]
                for kind, row in result["classes"].items()
                if row["ms"]
            ],
        ),
        "<h2>Waits for the GPU</h2>",
        _wait_table(result["waits"]),
        "<h2>Memory at its peak</h2>",
        f"<p><b>{size_of(memory['peak_bytes'])}</b>{escape(_beside(memory))}. "
        f"{html.link('memory.html')} shows it over time.</p>",
        *(html.note(remark) for remark in memory["remarks"]),
        html.table(
            (memory["by"], "bytes", "pieces"),
            [
                [row[memory["by"]], size_of(row["bytes"]), str(row["pieces"])]
                for row in memory["allocations"]
            ],
        ),
        "<h2>Files</h2>",
        _files(result["files"]),
        "<h2>Stamp</h2>",
        html.table(
            ("", ""),
            [[key, "" if value is None else str(value)] for key, value in environment.items()],
            names=(0, 1),
        ),
    )


def asked(workload: dict[str, Any]) -> str:
    """The workload, in words."""
    count = workload["images"]
    images = f"{count} image{'s' if count > 1 else ''}"
    if workload["automatic"]:
        return f"everything in {images}"
    return f"{images}, {workload['points']} clicks"


def milliseconds(seconds: float | None) -> str:
    """Of seconds; empty where there are none."""
    return "" if seconds is None else f"{1e3 * seconds:.2f}"


def percent(share: float | None) -> str:
    """Of a share; empty where there is none."""
    return "" if share is None else f"{share:.1%}"


def _idle(result: dict[str, Any]) -> str:
    return (
        f"the GPU idles {percent(result['idle_share_alone'])}, traced "
        f"{percent(result['idle_share'])}"
    )


def _beside(memory: dict[str, Any]) -> str:
    parts = []
    if memory["before_bytes"]:
        parts.append(f"{size_of(memory['before_bytes'])} of it there before the run")
    if memory["reported_peak_bytes"] is not None:
        parts.append(f"by PyTorch's count {size_of(memory['reported_peak_bytes'])}")
    if memory["graph_bytes"]:
        parts.append(f"CUDA graphs keep {size_of(memory['graph_bytes'])} beside it")
    return f" ({'; '.join(parts)})" if parts else ""


def _waits(waits: list[dict[str, Any]] | None) -> list[str]:
    if waits is None:
        return [NO_GPU]
    if not waits:
        return [NO_WAITS]
    lines = [f"{'waits':>7} {'ms':>10}  line"]
    return lines + [
        f"{row['calls']:>7} {milliseconds(row['seconds']):>10}  {row['line'] or 'not known'} "
        f"({_cause(row)})"
        for row in waits[:SHORT]
    ]


def _cause(row: dict[str, Any]) -> str:
    return " > ".join(
        [*row["operators"][-2:], row["call"] or "a wait that the trace does not show"]
    )


def _regions(regions: dict[str, dict[str, Any]], on_gpu: bool) -> str:
    if not on_gpu:
        rows = [[name, milliseconds(row["host_seconds"])] for name, row in regions.items()]
        return html.table(("region", "ms a run"), rows)
    return html.note(
        "Kernels count for the region in which the host launched them, those of a CUDA graph for "
        "the one that "
        "replayed it. The GPU's idle time before a region's kernels is that region's."
    ) + html.table(
        ("region", "host ms a run", "GPU busy ms", "GPU idle ms", "idle share"),
        [
            [
                name,
                milliseconds(row["host_seconds"]),
                milliseconds(row["gpu_busy_seconds"]),
                milliseconds(row["gpu_idle_seconds"]),
                percent(row["idle_share"]),
            ]
            for name, row in regions.items()
        ],
    )


def _kernels(rows: list[dict[str, Any]], kind: str) -> str:
    return html.table(
        (kind, "class", "regions", "calls a run", "ms a run", "share"),
        [
            [
                row["name"],
                row["class"],
                ", ".join(row["regions"]),
                f"{row['calls']:g}",
                f"{row['ms']:.3f}",
                f"{row['share']:.1%}",
            ]
            for row in rows
        ],
        names=(0, 1, 2),
    )


def _wait_table(waits: list[dict[str, Any]] | None) -> str:
    if waits is None:
        return html.note(NO_GPU + ".")
    if not waits:
        return f"<p><b>{NO_WAITS}.</b></p>"
    return html.table(
        ("line", "operators and call", "region", "calls", "ms"),
        [
            [
                _line(row),
                " > ".join([*row["operators"], row["call"] or "not in the trace"]),
                row["region"],
                str(row["calls"]),
                milliseconds(row["seconds"]),
            ]
            for row in waits
        ],
        names=(0, 1, 2),
    )


def _line(row: dict[str, Any]) -> html.Raw:
    line = escape(row["line"] or "not known")
    if not row["stack"]:
        return html.Raw(line)
    stack = escape("\n".join(row["stack"]))
    return html.Raw(f"<details><summary>{line}</summary><pre>{stack}</pre></details>")


_ABOUT = {
    "trace.json.gz": "the trace: open https://ui.perfetto.dev, choose “Open trace file”, and give "
    "it this file",
    "memory.html": "memory over time",
    "memory.pickle": "PyTorch's own snapshot of the GPU's memory, with stacks: drop it onto "
    "https://pytorch.org/memory_viz, which reads it in the browser. It is made for that viewer; "
    "samfast reads none",
    "profile.json": "everything on this page as data",
}


def _files(files: list[str]) -> str:
    rows = [[html.Raw(html.link(name)), _ABOUT[name]] for name in files if name in _ABOUT]
    return html.table(("file", "what it is"), rows, names=(0, 1))
