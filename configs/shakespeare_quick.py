# python train.py configs/shakespeare_quick.py
#
# The least time to a model that writes something like Shakespeare, without a GPU.
run_name = "quick"
dataset = "shakespeare_char"

n_layers = 4
n_heads = 4
d_model = 128
block_size = 128

batch_size = 16
optimizer = "muon"
learning_rate = 1e-2
min_lr = 0
warmup_steps = 10
max_steps = 160
eval_interval = 160
sample_interval = 0
compile = False
