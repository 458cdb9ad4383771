"""A long run ends with the memory it began with.

python -m pytest tests/test_memory.py --memory_steps 5000     (the suite takes fewer)
"""

import subprocess
import sys

import pytest
from helpers import ROOT, arguments

WATCHED = """
import resource, sys, train
save = train.Run.save
def watched(run, better):
    save(run, better)
    pages = int(open("/proc/self/statm").read().split()[1])
    print("memory at step", run.step, pages * resource.getpagesize())
train.Run.save = watched
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_what_it_was(dataset, request):
    steps = request.config.getoption("--memory_steps")
    (dataset / "tiny.py").write_text("")
    settings = arguments(
        max_steps=steps, eval_interval=50, sample_interval=100, log_interval=10, dropout=0.1
    )
    command = [sys.executable, "-c", WATCHED, "tiny.py", *settings]
    process = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    lines = [
        line.split() for line in process.stdout.splitlines() if line.startswith("memory at step")
    ]
    memory = {int(step): int(size) for *_, step, size in lines}
    print({step: round(size / 1e6, 1) for step, size in memory.items()})
    assert len(memory) == steps // 50 + 1, process.stderr
    assert memory[steps] < 1.02 * memory[200]
