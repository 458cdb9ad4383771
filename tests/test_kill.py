"""Runs killed at random moments lose nothing but the steps since the last save.

python -m pytest tests/test_kill.py --kills 30     (by default a run is killed twice)
"""

import random
import time

import pytest
from helpers import arguments, same, start, timeless, wait_for_line, weights

from common import checkpoint
from train import main


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_equals_an_uninterrupted_one(
    dataset, empty_config, request
):
    kills, seed = (request.config.getoption(name) for name in ("--kills", "--kill_seed"))
    seed = random.randrange(2**32) if seed is None else seed
    print(f"to repeat these kills: --kills {kills} --kill_seed {seed}")
    rng = random.Random(seed)
    settings = {
        "max_steps": 40 * kills,
        "eval_interval": 20,
        "save_interval": 4,
        "log_interval": 7,
        "dropout": 0.1,
        "micro_batch_size": 2,
        "block_size": 128,
    }
    assert main([empty_config, *arguments(**settings, run_name="whole")]) == 0

    command = ["train.py", empty_config, *arguments(**settings)]
    last, resumed = dataset / "out" / "tiny_last.pt", 0
    for i in range(kills):
        process = start(*command, *(["--resume"] if last.exists() else []))
        if i == 0 or rng.random() < 0.8:  # mostly during training, sometimes while it starts
            wait_for_line(process, "| loss")
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.communicate()
        for path in (dataset / "out").glob("tiny_*.pt"):
            checkpoint.load(path)  # raises an error unless it is complete
        resumed += last.exists()

    assert main([*command[1:], *(["--resume"] if last.exists() else [])]) == 0
    assert resumed > 0
    assert same(weights("out/whole_last.pt"), weights("out/tiny_last.pt"))
    assert same(weights("out/whole_best.pt"), weights("out/tiny_best.pt"))
    assert timeless("out/whole_metrics.jsonl") == timeless("out/tiny_metrics.jsonl")
