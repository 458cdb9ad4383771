# python train.py configs/shakespeare_char.py
#
# The main config: a 10M model (10,647,552 parameters) on the 1.1 MB of tinyshakespeare, one
# character per token. Validation loss 1.384 (mean of 3 seeds, 1.379 to 1.389) after six epochs,
# which take about 46 minutes on 2 cores of an Intel Xeon without bfloat16 (--on_cpu=false).
# With Muon and without the penalty: 1.411; on an NVIDIA H100 1.412 in 27 seconds (one run).
# Without a GPU the on_cpu block trains 0.8M parameters instead: validation loss 1.496 (median of
# 3 seeds, 1.493 to 1.501) in 170 seconds on 2 cores of an Intel Xeon without bfloat16, 7 of them to
# compile the model the first time.

run_name = "capstone"
dataset = "shakespeare_char"

# without a GPU these settings override those below: change them here
on_cpu = dict(
    n_layers=4, n_heads=4, d_model=128, block_size=128,  # 0.8M parameters: about three minutes
    dropout=0.0, weight_decay=0.1, confidence_penalty=0.0,  # 2.6 epochs overfit little
    max_steps=1250,
    eval_interval=250,
    eval_tokens=20_000,      # the whole validation split takes 3 seconds: only at the end
    sample_interval=250,
)

n_layers = 6
n_heads = 6
d_model = 384
block_size = 256
dropout = 0.1

batch_size = 16      # small batches: more updates per epoch
optimizer = "normuon"
learning_rate = 6e-3
confidence_penalty = 0.1  # keeps the predictions from becoming overconfident
min_lr = 0
warmup_steps = 50
weight_decay = 2.0   # twenty times the default, for six epochs
max_steps = 1470     # six epochs
eval_interval = 245  # once an epoch
sample_interval = 490
