"""Engine `onnx`: a policy as static graphs that onnxruntime runs, without torch and without transformers.

    frames      --see------> features            one graph for each number of rows
    features, text, state --begin--> logits, keys and values     one for each number of rows and tokens of text
    guess, keys and values --correct--> logits                   the same

`export` writes the folder, and imports torch. Everything else needs numpy, pillow, tokenizers and onnxruntime, and must
stay so: `tests/policy/onnx` imports it in a process of its own. It may import core, recipe, and modules of `policy/vla`
and `policy/vlm` that import no torch.
"""
