# python train.py configs/robotics_bpe.py
#
# Titles and abstracts of robotics papers, in GPT-2's BPE. Each of the 50,257 tokens has a row in
# the embedding, which is also the output head. At the other configs' width of 384 the embedding
# alone would have 19.3M parameters, against 10.6M in the blocks. So this model is only 160 wide,
# with 8,041,120 parameters in the embedding and 1,814,944 in the rest.
# The first run downloads 5,000 abstracts from arXiv, page by page.
# Loss on a GPU: not measured yet. Without a GPU, on 8,854 papers, mostly of 2025, from a file
# (python prepare.py robotics_bpe --input robotics.jsonl --field title abstract), the on_cpu block
# trains 3.4M parameters, 3.2M of them the embedding: validation loss 5.357, 1.45 bits per byte
# (median of 4 seeds; 5.353 to 5.369), in 82 seconds on 2 busy cores of an AMD EPYC with bfloat16.

run_name = "robotics_bpe"
dataset = "robotics_bpe"

# without a GPU these settings override those below: change them here
on_cpu = dict(
    n_layers=4, n_heads=4, d_model=64, block_size=128,  # narrow: the head is most of the work
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

n_layers = 6
n_heads = 5
d_model = 160
block_size = 256  # an abstract is about 250 tokens
dropout = 0.2     # about 1.5M tokens, read 20 times

batch_size = 64
learning_rate = 2e-3  # a narrow model needs a higher rate
warmup_steps = 100
max_steps = 2000
eval_interval = 100
