"""Tables of relative positions for windows of another size, by timm 1.0.31 and PyTorch 2.11.0: the golden numbers of
crates/gcvit/tests/network.rs.

    pip install torch==2.11.0 timm==1.0.31
    python3 relative_positions.py
"""
import torch
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple

table = (torch.arange(18, dtype=torch.float64) * 0.7).sin().view(9, 2).float()
for row in resize_rel_pos_bias_table_simple(table, (3, 3), (25, 2)).flatten().view(5, 10).tolist():
    print(", ".join(f"{value:.6f}" for value in row))
