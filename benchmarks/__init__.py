"""Measurements, one question a module.

Sets vLLM's environment before anything imports it; what the user has set stays.
"""

import os

_ENVIRONMENT = {
    # The engine runs in this process, so that it can be looked into.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # By default the CPU backend leaves one core to a server that is not there.
    "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
IS_OFFLINE_OURS = "HF_HUB_OFFLINE" not in os.environ
"""Whether it is our default, which what downloads may change, and not the user's."""

for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
