"""The `vllm-hired` command: what can be asked without a server."""
