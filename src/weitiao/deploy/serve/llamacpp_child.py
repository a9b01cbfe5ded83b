"""llama.cpp's server by xllamacpp, in a process of its own: llamacpp_child.py FILE NAME PORT, the key in LLAMA_API_KEY.

Started without a port and a key, xllamacpp would listen on a port of its choosing without any.
"""

import importlib
import os
import signal
import sys


def main() -> None:
    """Serve until SIGTERM."""
    xllamacpp = importlib.import_module("xllamacpp")  # it has no types
    file, name, port = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = file, [name] if isinstance(params.model_alias, list) else {name}
    params.hostnames, params.port = ["127.0.0.1"], int(port)
    params.api_keys = [os.environ.pop("LLAMA_API_KEY")]
    params.ui = params.endpoint_slots = params.endpoint_props = False
    params.n_ctx, params.n_parallel = 0, 4
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(
        os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1
    )
    server = xllamacpp.Server(params)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server
    os._exit(0)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
