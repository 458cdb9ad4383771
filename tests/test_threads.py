"""OpenMP's settings, which must be there before torch is imported."""

import ast
import os
import subprocess
import sys

import pytest
from helpers import ROOT


def spin_count(**variables: str) -> str:
    """What a new process has in GOMP_SPINCOUNT after importing common.threads."""
    openmp = ("OMP_", "GOMP_", "KMP_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(openmp)}
    code = "import os, sys, common.threads; assert 'torch' not in sys.modules;"
    code += " print(os.environ.get('GOMP_SPINCOUNT'))"
    command = [sys.executable, "-c", code]
    options = {"capture_output": True, "text": True, "check": True}
    return subprocess.run(command, cwd=ROOT, env=environment | variables, **options).stdout.strip()


def test_waiting_threads_sleep_early_unless_the_user_has_set_openmp_variables():
    assert int(spin_count()) < 300_000  # GNU OpenMP's own
    assert spin_count(OMP_NUM_THREADS="2") == "None"
    assert spin_count(GOMP_SPINCOUNT="7") == "7"


@pytest.mark.parametrize(
    "name", ["train.py", "sample.py", "evaluate.py", "experiments/__init__.py"]
)
def test_commands_import_it_before_torch(name):
    imports = [node for node in ast.parse((ROOT / name).read_text()).body if "names" in vars(node)]
    assert imports[0].names[0].name == "common.threads"
