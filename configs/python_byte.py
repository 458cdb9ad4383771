# python train.py configs/python_byte.py
#
# A 10M model (10,720,896 parameters) on 11 MB of Python code: the standard library of the Python
# that runs this. Bytes, because code has few rare characters and much whitespace, which the model
# should learn exactly.
# Loss and time on a GPU: not measured yet.
# Without a GPU the on_cpu block trains 0.8M parameters: validation loss 1.301, 1.88 bits per byte
# (median of 4 seeds; 1.292 to 1.306), in 45 seconds on 2 cores of an AMD EPYC with bfloat16.
# 1,000 steps of the 10M model (--on_cpu=false --max_steps=1000), 0.4 epochs, reach 0.956, 1.379 bits
# per byte (one run).

run_name = "python_byte"
dataset = "python_byte"

# without a GPU these settings override those below: change them here
on_cpu = dict(
    n_layers=4, n_heads=4, d_model=128, block_size=128,
    dropout=0.0, weight_decay=0.1,  # a tenth of an epoch: nothing is read twice
    max_steps=550,
    eval_interval=110,
    eval_tokens=20_000,  # of about a million; the final evaluation uses all
    sample_interval=275,
)

n_layers = 6
n_heads = 6
d_model = 384
block_size = 256
dropout = 0.1

batch_size = 16
optimizer = "muon"
learning_rate = 6e-3
min_lr = 0
warmup_steps = 50
weight_decay = 1.0
max_steps = 16_000  # 6 epochs
eval_interval = 1600
