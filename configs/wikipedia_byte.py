# python train.py configs/wikipedia_byte.py
#
# A 10M model (10,720,896 parameters) on enwik8: 90 MB of English Wikipedia with its markup. The
# split is the standard one, so its bits per byte can be compared with published ones (those on the
# 5 MB of validation text, not on the test text).
# The first run downloads 36 MB.
# Loss on all of enwik8, and on a GPU: not measured yet. On the 487 articles of its first 4.15 MB
# (python prepare.py wikipedia_byte --limit 4154399), without a GPU, the on_cpu block trains 0.8M
# parameters: validation loss 1.628, 2.35 bits per byte (median of 4 seeds; 1.624 to 1.633), in 82
# seconds on 2 busy cores of an AMD EPYC with bfloat16.

run_name = "wikipedia_byte"
dataset = "wikipedia_byte"

# without a GPU these settings override those below: change them here
on_cpu = dict(
    n_layers=4, n_heads=4, d_model=128, block_size=128,
    batch_size=16,
    optimizer="muon",
    learning_rate=6e-3,
    min_lr=0,
    warmup_steps=50,
    max_steps=550,
    eval_interval=110,
    eval_tokens=20_000,
    sample_interval=275,
)

n_layers = 6
n_heads = 6
d_model = 384
block_size = 512  # articles are coherent over longer spans than verse
dropout = 0.0     # less than two epochs: too few to overfit

batch_size = 32
learning_rate = 1e-3
warmup_steps = 200
max_steps = 10_000
eval_interval = 500
eval_tokens = 500_000  # of 5 MB; the final evaluation uses all
