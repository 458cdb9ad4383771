# python train.py configs/robotics_bpe.py
#
# Titles and abstracts of robotics papers, in GPT-2's BPE. Each of its 50,257 tokens costs a row of the embedding, which
# is the head as well: at the width of 384 of the other configs that alone were 19.3M parameters, beside 10.6M in the
# blocks. So this model is narrow: 160 wide, 8,041,120 parameters in the embedding and 1,814,944 in all else.
# The first run asks arXiv for 5,000 papers, page by page. The loss to expect is not measured yet, neither on a GPU nor on a
# CPU, and the sizes given here are estimates: arXiv could not be reached from the machine of the measurements.

run_name = "robotics_bpe"
dataset = "robotics_bpe"

n_layers = 6
n_heads = 5
d_model = 160
block_size = 256  # an abstract is about 250 tokens
dropout = 0.2     # about 1.5M tokens, read 20 times over

batch_size = 64
learning_rate = 2e-3  # a narrow model wants more
warmup_steps = 100
max_steps = 2000
eval_interval = 100

on_cpu = dict(
    n_layers=4, n_heads=4, d_model=64, block_size=128,  # the head is nearly all of the work: narrower still
    dropout=0.0,
    batch_size=16,
    optimizer="muon",
    learning_rate=6e-3,
    min_lr=0,
    warmup_steps=30,
    max_steps=300,
    eval_interval=100,
    eval_tokens=20_000,
    sample_interval=150,
)
