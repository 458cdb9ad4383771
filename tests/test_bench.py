from experiments import bench


def test_generation_prints_rates_and_its_ratio_to_nanogpt(tmp_path, capsys, monkeypatch):
    (tmp_path / "model.py").write_text("""
import torch

class GPTConfig:
    def __init__(self, **settings):
        assert settings["n_embd"] == 384

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()

    def generate(self, idx, max_new_tokens):
        return idx
""")  # stands in for a checkout
    monkeypatch.setattr(bench, "SHAPE", {"vocab_size": 65, "block_size": 8, "n_layers": 1, "n_heads": 1, "d_model": 8})
    arguments = ["generation", "--device=cpu", "--tokens=4", "--rounds=2"]
    assert bench.main([*arguments, "--nanogpt", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "1 at once" in printed and "10 at once" in printed and printed.count("ratio of the medians: 0.0") == 2
    assert bench.main(arguments) == 0
    assert "ratio" not in capsys.readouterr().out
    assert bench.main([*arguments, "--nanogpt", str(tmp_path / "nowhere")]) == 2
