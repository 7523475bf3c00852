"""The paper's eight benchmarks, asked by lmms-eval through this plugin."""

import os

from benchmarks import IS_OFFLINE_OURS

# Before anything imports huggingface_hub: lmms-eval downloads the data sets.
if IS_OFFLINE_OURS:
    os.environ["HF_HUB_OFFLINE"] = "0"
