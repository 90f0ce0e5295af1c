"""Places models onto GPUs: what a model needs, what there is, and the words that make llama.cpp do it."""
