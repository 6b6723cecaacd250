"""Action codecs: the ways to say a chunk of actions as tokens, and which of them a policy's folder names.

It may import core. A codec knows neither images nor weights: a model's logits decide, within the codec's grammar.
"""
