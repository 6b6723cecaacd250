"""OpenVLA: perceive (DINOv2 + SigLIP), align (projector), reason (Llama), generate (action tokens).

    images (N cameras) --perceive--> patches (B, N*P, Dv) --align--> (B, N*P, D) --+
    state (optional) ------------------------------------------------> (B, 1, D) --+--> reason --> generate --> actions
    prompt --> token ids --> (B, L, D) --------------------------------------------+

Each step is one module. `model.py` wires them, `policy.py` makes a `Policy` of them, `weights.py` reads and writes the
published folder layout.
"""
