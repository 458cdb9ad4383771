# python train.py configs/capstone.py
#
# The course's own settings, to the letter. The course calls this a model of "~10M" parameters; it has 25,338,880:
# a block's matrices hold 12 d_model^2 parameters, so 8 blocks of width 512 are 25.2M. The model of 10M parameters is
# configs/shakespeare_char.py, and on 1 MB of text the smaller one is the better choice.
# On a GPU: not measured yet. On a CPU this is for looking, not for training: use configs/shakespeare_char.py there.

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
