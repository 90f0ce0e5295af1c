"""memscaler: parks the GPUs of quiet LLM servers, and wakes them before the next request needs them."""

__version__ = "0.1.0"
