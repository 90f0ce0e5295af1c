"""`memscaler gpuctl`: the processes on GPUs, and what is set on them."""
