"""The picture of memory over time."""

from __future__ import annotations

import re
import xml.dom.minidom

from samfast.bench import timeline
from samfast.bench.allocations import Change, Recorded, replay
from samfast.bench.events import Span

CHANGES = [
    Change(0, 1, 3 * 2**20, "samfast/engine.py:7 in <lambda>"),
    Change(50, 2, 2**20, "early"),
    Change(60, 2, -(2**20)),
    Change(90, 3, 5 * 2**20, "late"),
    Change(100, 3, -5 * 2**20),
]


def page(recorded):
    text = timeline.page(recorded, "Memory of a <model>").decode()
    found = re.search("<svg.*</svg>", text, re.DOTALL)
    return text, None if found is None else xml.dom.minidom.parseString(found[0])


def test_areas_marks_and_regions():
    regions = (Span("encoder", -10, 80), Span("masks", 80, 95), Span("after", 200, 300))
    recorded = Recorded(replay(CHANGES, before=2**20, parts=100), regions, "line")
    text, picture = page(recorded)
    assert "Memory of a &lt;model&gt;" in text
    assert "<p>The peak: 9.0 MiB" in text
    titles = [each.firstChild.data for each in picture.getElementsByTagName("title")]
    assert titles == [
        "there before the run: 1.0 MiB at the peak",
        "late: 5.0 MiB at the peak",
        "samfast/engine.py:7 in <lambda>: 3.0 MiB at the peak",
        "early: 0 B at the peak",
        "encoder",
        "masks",
    ]
    first = picture.getElementsByTagName("path")[0].getAttribute("d")
    top = timeline.HEIGHT - (timeline.HEIGHT - 20) / 9
    assert first.startswith(f"M0 {timeline.HEIGHT:.1f}V{top:.1f}H10.0")
    mark = picture.getElementsByTagName("path")[-1].getAttribute("d")
    assert mark == f"M900.0 0V{timeline.HEIGHT}"
    band = picture.getElementsByTagName("rect")[0]
    assert (band.getAttribute("x"), band.getAttribute("width")) == ("0.0", "800.00")


def test_many_labels_share_the_last_area():
    changes = [Change(i, i, (i + 1) * 2**10, f"label {i}") for i in range(20)]
    text, picture = page(Recorded(replay(changes), (), "operator"))
    titles = [each.firstChild.data for each in picture.getElementsByTagName("title")]
    assert len(titles) == timeline.SHOWN + 1
    assert titles[0].startswith("label 19: 20.0 KiB")
    assert titles[-1].startswith("everything else: 36.0 KiB")
    assert "need a GPU" in text


def test_remarks():
    history = replay([])
    text, picture = page(Recorded(history, (), "line", 5, 3 * 2**20, incomplete=True))
    assert picture is None and "nothing was allocated" in text
    assert "CUDA graphs keep 3.0 MiB" in text
    assert "the first are missing" in text
    assert timeline.remarks(Recorded(history, (), "line", 5, 0)) == []


def test_sizes():
    sizes = (0, 1023, 1536, 5 * 2**20, 3 * 2**30)
    assert [timeline.size_of(size) for size in sizes] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 MiB",
        "3.0 GiB",
    ]
