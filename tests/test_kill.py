"""Training processes killed at random instants: nothing is lost but the steps since the last save.

python -m pytest tests/test_kill.py --kills 30     (the suite kills three times)
"""

import random
import time

from helpers import arguments, run, same, start, timeless, weights

from common import checkpoint


def test_a_run_that_is_killed_again_and_again_equals_one_that_was_not(dataset, request):
    kills = request.config.getoption("--kills")
    (dataset / "tiny.py").write_text("")
    settings = dict(max_steps=40 * kills, eval_interval=20, save_interval=4, log_interval=7, dropout=0.1,
                    batch_size=4, micro_batch_size=2, block_size=128)  # fmt: skip
    assert run("train.py", "tiny.py", *arguments(**settings, run_name="whole"))[0] == 0
    last, resumed = dataset / "out" / "tiny_last.pt", 0
    for _ in range(kills):
        resume = ["--resume"] if last.exists() else []
        process = start("train.py", "tiny.py", *arguments(**settings), *resume)
        if random.random() < 0.8:  # mostly in the midst of the loop, now and then while it starts
            next((line for line in process.stdout if " lr " in line), None)
        time.sleep(random.uniform(0, 1.5))
        process.kill()
        process.communicate()
        for path in (dataset / "out").glob("tiny_*.pt"):
            checkpoint.load(path)  # what is there is whole
        resumed += bool(resume)
    status, _, error = run(
        "train.py", "tiny.py", *arguments(**settings), *(["--resume"] if last.exists() else [])
    )
    assert status == 0, error
    assert resumed > 0
    assert same(weights("out/whole_last.pt"), weights("out/tiny_last.pt"))
    assert same(weights("out/whole_best.pt"), weights("out/tiny_best.pt"))
    assert timeless("out/whole_metrics.jsonl") == timeless("out/tiny_metrics.jsonl")
