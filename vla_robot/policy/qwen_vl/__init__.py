"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: frames of their own aspect ratio, and rotary positions by time, height and width.

    frame, multiples of 28 px --ViT, 2-D rotary, merge 2x2--> (B, h w / 784, D) --+
    state (optional) ------------------------------------------> (B, 1, D) --------+--> Qwen, causal, M-RoPE --> actions
    chat template ---------------------------------------------> (B, L, D) --------+

Qwen3-VL's cells are 32 px, and its first language layers also read features of inner layers of the ViT (DeepStack).
"""
