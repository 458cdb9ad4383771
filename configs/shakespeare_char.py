run_name = "capstone"
dropout = 0.2

on_cpu = dict(
    n_layers=4, n_heads=4, d_model=128, block_size=64, batch_size=12, dropout=0.0,
    max_steps=2000, learning_rate=4e-3, eval_interval=500, log_interval=100,
)
