"""SmolVLM and SmolVLM2: a SigLIP tower, neighbouring patches put behind one another, one linear layer, Llama.

frame --512 px, cut into parts or not--> SigLIP --> 4 x 4 patches become one --linear--> (B, 64 an image, D) --+
state (optional) ----------------------------------------------------------------------> (B, 1, D) -----------+--> Llama
chat template -------------------------------------------------------------------------> (B, L, D) -----------+
"""
