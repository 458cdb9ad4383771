# python train.py configs/capstone.py
#
# The course's own settings, unchanged. The course calls this model "~10M", but it has
# 25,338,880 parameters: the matrices of a block have 12 d_model^2, so 8 blocks of width 512 have
# 25.2M. The 10M model is configs/shakespeare_char.py.
# Loss and time on a GPU: not measured yet. A CPU of 100 GFLOP/s would take a day and a half
# (6 x 25M parameters x 82M tokens = 1.2e16 FLOPs), so without a GPU the on_cpu block trains
# the same architecture with 0.8M parameters: validation loss 2.14 in 52 seconds on one core of an
# AMD EPYC with bfloat16 (one run).

run_name = "capstone_25m"  # "capstone" is the run of shakespeare_char.py

# without a GPU these settings override those below: change them here
on_cpu = dict(
    n_layers=4, n_heads=4, d_model=128, d_ff=512, block_size=128,  # 0.8M parameters
    dropout=0.0,          # little more than one epoch: too short to overfit
    batch_size=16,
    learning_rate=2e-3,   # a narrower model needs a higher rate
    max_steps=600,
    eval_tokens=20_000,   # only the final evaluation uses the whole validation split
    sample_interval=250,
)

n_layers = 8
n_heads = 8
d_model = 512
d_ff = 2048
block_size = 256
pos_type = "learned"
mlp_type = "gelu"
qk_norm = False
dropout = 0.2  # about 80 epochs

batch_size = 64
learning_rate = 3e-4
warmup_steps = 100
max_steps = 5000
eval_interval = 250  # often, because the best step comes early
