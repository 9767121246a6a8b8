"""Between live torch objects and committed values: state, randomness, environment, samples, recipes.

The recorder and the verifier's replay must agree on all of this to the bit, so both use these modules. They are the
only ones of `polstore.codec` that import torch, and nothing imports them before something is trained or replayed.
"""
