# python train.py configs/wikipedia_bpe4096.py
#
# enwik8, 100 MB of English Wikipedia with its markup (90 MB for training), with a vocabulary of
# 4,096 tokens trained on it. A model of 10,425,088 parameters, 1,572,864 of them in the
# embedding. The split is the standard one, so its bits per byte can be compared with published
# ones (those on the 5 MB of validation text, not on the test text).
# The first run downloads 36 MB.
# Loss on all of enwik8: not measured yet. On the 487 articles of its first 4.15 MB
# (python prepare.py wikipedia_bpe4096 --limit 4154399), without a GPU, the on_cpu block trains 1.3M
# parameters: validation loss 4.013 (median of 3 seeds, 4.001 to 4.018), 2.03 bits per byte, in 87
# seconds (one run) on 2 cores of an Intel Xeon with bfloat16 (with bytes it was 2.35). 600 steps of
# the 10M model (--on_cpu=false --max_steps=600 --dropout=0.1 --weight_decay=1.0), two epochs, reach
# 3.587, 1.82 bits per byte (one run, begun with 1,100 steps and shortened at step 230).

run_name = "wikipedia_bpe4096"
dataset = "wikipedia_bpe4096"

# without a GPU these settings override those below: change them here
on_cpu = dict(
    n_layers=4, n_heads=4, d_model=128, block_size=128,  # 1.3M parameters
    max_steps=600,
    eval_interval=150,
    eval_tokens=20_000,  # only the final evaluation uses the whole validation split
    sample_interval=300,
)

n_layers = 5
n_heads = 6
d_model = 384
block_size = 256
dropout = 0.0  # 30 million tokens, read twice: too little to overfit

batch_size = 16
optimizer = "muon"
learning_rate = 6e-3
min_lr = 0
warmup_steps = 50
max_steps = 15_000
eval_interval = 1500
eval_tokens = 500_000  # of about 1.7 million; the final evaluation uses all
