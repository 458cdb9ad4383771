# python train.py configs/shakespeare_small.py
#
# For a CPU and a little patience: 1,785,728 parameters, four epochs. Validation loss 1.409 (median of
# 3 seeds, 1.407 to 1.411) after 7.5 minutes on 2 cores of an Intel Xeon without bfloat16, where
# nanoGPT's command for a CPU takes 93 seconds and ends at 1.886.
# There is no on_cpu block: these settings are meant for a CPU.

run_name = "small"
dataset = "shakespeare_char"

n_layers = 4
n_heads = 3
d_model = 192
block_size = 128
conv_width = 2  # every sublayer also sees the character before; export.py can't express it

batch_size = 16
optimizer = "normuon"
learning_rate = 6e-3
confidence_penalty = 0.1  # keeps the predictions from becoming overconfident
min_lr = 0
warmup_steps = 50
weight_decay = 1.0  # ten times the default, for four epochs
max_steps = 1961
eval_interval = 491  # once an epoch
sample_interval = 980
