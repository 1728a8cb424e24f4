"""When a command's process looks for garbage."""

from __future__ import annotations

import gc
import subprocess
import sys

from adamas_cli import heap


def test_other_peoples_collector_is_left_alone() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    heap.exclude_imported()
    assert (gc.get_threshold(), gc.get_freeze_count()) == before


def test_a_command_collects_seldom_only_while_it_imports() -> None:
    code = """
import gc
from adamas_cli import heap
usual = gc.get_threshold()
heap.collect_seldom()
assert gc.get_threshold() > usual
heap.exclude_imported()
assert gc.get_threshold() == usual and gc.get_freeze_count() > 1000
heap.exclude_imported()
assert gc.get_threshold() == usual
"""
    subprocess.run([sys.executable, "-c", code], check=True)
