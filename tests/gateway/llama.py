"""A real llama.cpp server on an address of its own choice: python -m tests.gateway.llama MODEL HOST PORT."""

import signal
import sys

import xllamacpp


def main() -> None:
    """Serve until killed."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path, host, port = sys.argv[1:4]
    parameters.hostnames = [host]
    parameters.port = int(port)
    parameters.n_ctx = 4096
    parameters.n_parallel = 2
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.warmup = False
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
