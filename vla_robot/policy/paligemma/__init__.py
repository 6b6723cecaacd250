"""PaliGemma 1 and 2: SigLIP, one linear layer, Gemma; the prompt sees itself in both directions.

frame 224 px --SigLIP--> (B, 256, 1152) --linear--> (B, 256, D) --+
state (optional) ------------------------------------> (B, 1, D) --+--> Gemma, prefix-LM mask --> action tokens
<bos> text \\n ---------------------------------------> (B, L, D) --+
"""
