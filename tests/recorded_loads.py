"""The loads that a real server has seen in bursts, for `tests/test_adaptive.py`.

    python -m tests.recorded_loads

writes `recorded_loads.json` anew.
"""

import argparse
import json
from pathlib import Path

from benchmarks.bursts import OPTIONS, arrivals, bodies, burst, recorded_loads
from benchmarks.server import campaign_model, campaign_server

RECORDED = Path(__file__).parent / "recorded_loads.json"
SETTINGS = {"floor": "0.1", "ceiling": "0.8", "queue": 4}
RATES = (2.0, 40.0, 6.0, 7.0)
"""Requests per second of each burst."""


def main() -> None:
    args = argparse.Namespace(
        model=None, shape="small", dtype="float32", device="cpu", size=(224, 224)
    )
    args.model = campaign_model(args)
    args.output_tokens = 16
    overrides = (
        "hired_budget={floor},hired_max_budget={ceiling},hired_adaptive=true,"
        "hired_adaptive_queue={queue}".format(**SETTINGS)
    )
    level = {"VLLM_LOGGING_LEVEL": "DEBUG"}
    with campaign_server(args, OPTIONS, overrides, **level) as server:
        for seed, rate in enumerate(RATES):
            burst(server, bodies(args, 40, seed), arrivals(40, rate, seed))
        loads = recorded_loads(server.log.read_text())
    rows = ",\n".join(map(json.dumps, loads))
    head = json.dumps(SETTINGS).removesuffix("}")
    RECORDED.write_text(f'{head}, "loads": [\n{rows}\n]}}\n')


if __name__ == "__main__":
    main()
