# python train.py configs/robotics_bpe4096.py
#
# Titles and abstracts of robotics papers, with a vocabulary of 4,096 tokens trained on them. A model
# of 10,425,088 parameters, 1,572,864 of them in the embedding.
# The first run downloads the 5,000 oldest abstracts from arXiv, page by page.
# On 8,854 papers, mostly of 2025, from a file (python prepare.py robotics_bpe4096 --input
# robotics.jsonl --field title abstract) its validation loss is 3.169, 0.992 bits per byte (one run,
# 3.4 epochs). --on_cpu=false took 97 minutes on 2 shared cores of an Intel Xeon without
# bfloat16. Without a GPU the on_cpu block trains 1.3M parameters. On the same papers: 4.100
# (median of 3 seeds, 4.086 to 4.110), 1.28 bits per byte, in 87 seconds (one run) on 2 cores of a Xeon
# with bfloat16 (with GPT-2's tokens it was 1.45).

run_name = "robotics_bpe4096"
dataset = "robotics_bpe4096"

# without a GPU these settings override those below: change them here
on_cpu = dict(
    n_layers=4, n_heads=4, d_model=128, block_size=128,  # 1.3M parameters
    dropout=0.0, weight_decay=0.1,  # less than one epoch: nothing is read twice
    max_steps=600,
    eval_interval=150,
    eval_tokens=20_000,  # only the final evaluation uses the whole validation split
    sample_interval=300,
)

n_layers = 5
n_heads = 6
d_model = 384
block_size = 256  # a title and an abstract are about 300 tokens
dropout = 0.1

batch_size = 16
optimizer = "muon"
learning_rate = 6e-3
min_lr = 0
warmup_steps = 50
weight_decay = 1.0
max_steps = 2000  # about 6 epochs of the 4,500 abstracts that are left for training
eval_interval = 200
