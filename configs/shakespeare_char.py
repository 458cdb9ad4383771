# python train.py configs/shakespeare_char.py
#
# The main config: a 10M model (10,647,552 parameters) on the 1.1 MB of tinyshakespeare, one
# character per token.
# Loss and time on a GPU: not measured yet.
# Without a GPU the on_cpu block trains 0.8M parameters instead: validation loss 1.515 (median of
# 3 seeds, 1.504 to 1.515) in 80 seconds on 2 cores of an AMD EPYC with bfloat16. A CPU without
# bfloat16 takes about twice as long.

run_name = "capstone"
dataset = "shakespeare_char"

# without a GPU these settings override those below: change them here
on_cpu = dict(
    n_layers=4, n_heads=4, d_model=128, block_size=128,  # 0.8M parameters: enough for two minutes
    dropout=0.0,             # 2.6 epochs: too few to overfit much
    batch_size=16,
    optimizer="muon",        # 1.63 after 500 steps, AdamW 1.76; a step takes a seventh longer
    learning_rate=6e-3,
    min_lr=0,
    warmup_steps=50,
    max_steps=1250,
    eval_interval=250,
    eval_tokens=20_000,      # the whole validation split takes 3 seconds: only at the end
    sample_interval=250,
    log_interval=10,
)

n_layers = 6
n_heads = 6
d_model = 384
block_size = 256
dropout = 0.2  # the 1 MB of text is read about 80 times: without dropout the model soon overfits

batch_size = 64
learning_rate = 1e-3  # small models tolerate, and need, higher rates than large ones
warmup_steps = 100
max_steps = 5000
eval_interval = 250  # often, because the best step comes early
