"""Proxy runs that branch off a trunk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mixing.proxy import fingerprint_of
from mixing.runs import ProxyRun, run_proxies
from tests.mixing.worlds import make_settings

MIXED = {"code": 0.25, "wiki": 0.5, "noise": 0.25}


def test_a_branch_starts_where_the_trunk_ends(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, steps=4, evaluate=(0, 4))
    trunk = run_proxies([ProxyRun("trunk", MIXED, 1)], settings, tmp_path / "trunk", workers=0)[0]
    start = trunk.folder / "train" / "checkpoints" / "step-4"
    branching = replace(settings, init_from=start)
    runs = [ProxyRun("code", {"code": 1.0, "wiki": 0.0, "noise": 0.0}, 2), ProxyRun("mixed", MIXED, 3)]
    ends = {m["probe"]: m["bits_per_byte"] for m in trunk.metrics if m["step"] == 4}
    last = {}
    for branch in run_proxies(runs, branching, tmp_path / "branches", workers=0):
        first = {m["probe"]: m["bits_per_byte"] for m in branch.metrics if m["step"] == 0}
        assert first == pytest.approx(ends, rel=1e-6)
        last[branch.run.run_id] = {m["probe"]: m["bits_per_byte"] for m in branch.metrics if m["step"] == 4}
    assert last["code"]["code"] < last["mixed"]["code"] < ends["code"]


def test_another_trunk_is_another_run_and_none_changes_nothing(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, steps=2, evaluate=(2,))
    runs = [ProxyRun("a", MIXED, 1), ProxyRun("b", MIXED, 2)]
    trunks = run_proxies(runs, settings, tmp_path / "trunk", workers=0)
    starts = [t.folder / "train" / "checkpoints" / "step-2" for t in trunks]
    prints = {
        fingerprint_of(runs[0], s, s.inputs())
        for s in (settings, *(replace(settings, init_from=start) for start in starts))
    }
    assert len(prints) == 3
    assert "start" not in settings.inputs()
