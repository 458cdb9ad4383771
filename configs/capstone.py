# python train.py configs/capstone.py
#
# The course's own settings, to the letter. The course calls this a model of "~10M", but it has 25,338,880 parameters:
# a block's matrices hold 12 d_model^2 of them, so 8 blocks of width 512 are 25.2M. The model of 10M is
# configs/shakespeare_char.py.
# On a GPU: not measured yet. On a CPU of 100 GFLOP/s it would take a day and a half (6 x 25M x 82M tokens = 1.2e16
# operations), so the on_cpu block shows the same architecture at a size that two cores can feed.

run_name = "capstone_25m"  # the name "capstone" belongs to the 10M run, which sample.py opens by default

n_layers = 8
n_heads = 8
d_model = 512
d_ff = 2048
block_size = 256
pos_type = "learned"
mlp_type = "gelu"
qk_norm = False
dropout = 0.2  # 1 MB of text is read dozens of times over

batch_size = 64
learning_rate = 3e-4
warmup_steps = 100
max_steps = 5000
eval_interval = 250  # often, because the best step comes early

on_cpu = dict(
    n_layers=4, n_heads=4, d_model=128, d_ff=512, block_size=128,  # 0.8M parameters
    dropout=0.0,          # hardly more than one epoch: nothing is learnt by heart
    batch_size=16,
    learning_rate=2e-3,   # the narrower model wants more
    max_steps=600,
    eval_tokens=20_000,   # the whole validation split: only at the end
    sample_interval=250,
)
