"""Gemma 4 with a vision tower (E2B, E4B, 26B-A4B, 31B): its own ViT, pooled to a budget of tokens.

    frame, multiples of 48 px --ViT, x/y tables and rotary, pool 3x3, linear--> (B, tokens, D) --+
    state (optional) --------------------------------------------------------> (B, 1, D) --------+--> Gemma 4
    chat template -----------------------------------------------------------> (B, L, D) --------+

Without a tower (12B "unified"), cells of 48 px meet the words inside the language model after one linear layer each:

    frame, multiples of 48 px --norms, linear, x/y tables--> (B, tokens, D) --linear--> (B, tokens, D) ----> Gemma 4

Tokens of one image see each other in the sliding layers of the large models, and are causal in the small ones. Each
token of a small model has a further embedding for each layer.
"""
