"""The memory of a run does not grow.

python -m pytest tests/test_memory.py --memory_steps 5000     (fewer by default)
"""

import os
import re
import sys

import pytest
from helpers import ROOT, arguments, start_python

INTERVAL = 20  # steps between evaluations; each draws the curves and saves
WATCHED = """
import resource, sys, train

evaluate_run = train.evaluate_run

def watched(run, *arguments):
    result = evaluate_run(run, *arguments)
    pages = int(open("/proc/self/statm").read().split()[1])
    print("memory at step", run.step, pages * resource.getpagesize())
    return result

train.evaluate_run = watched
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow(dataset, empty_config, request, monkeypatch):
    steps = request.config.getoption("--memory_steps")
    settings = {
        "max_steps": steps,
        "eval_interval": INTERVAL,
        "sample_interval": 100,
        "log_interval": 10,
        "dropout": 0.1,
    }
    monkeypatch.setenv("PYTHONPATH", os.fspath(ROOT))
    process = start_python("-c", WATCHED, empty_config, *arguments(**settings))
    output, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    found = re.findall(r"^memory at step (\d+) (\d+)$", output, flags=re.MULTILINE)
    memory = {int(step): int(size) for step, size in found}
    print({step: round(size / 1e6, 1) for step, size in memory.items()})
    assert len(memory) == steps // INTERVAL + 1, error
    # half of the evaluations may add 5% together: a leaked figure alone is 5 MB of about 400 each
    assert memory[steps] < 1.05 * memory[steps // 2 // INTERVAL * INTERVAL]
