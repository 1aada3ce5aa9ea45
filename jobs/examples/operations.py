"""An operator: is the endpoint well, what does it allow, and how fast does it answer?

    SCE_ENDPOINT_TOKEN=... python jobs/examples/operations.py --url http://127.0.0.1:8000

Asks /health, /info and /metrics, then for answers, and prints their latencies. Exit code 0: well,
1: not ready, or slower than --slowest milliseconds in the median: a probe after a rollout.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence

import numpy as np
import requests

from sce.client import Client

LABELS = ["late delivery", "billing", "praise"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--slowest", type=float, default=1000.0, metavar="MILLISECONDS")
    asked = parser.parse_args(argv)
    token = os.environ.get("SCE_ENDPOINT_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}

    health = requests.get(f"{asked.url}/health", timeout=10)
    print(f"/health: {health.status_code}")
    if health.status_code != 200:  # 503 until the model is loaded
        return 1
    with Client(asked.url, token=token) as client:
        info = client.info()
        for name, model in info.models.items():
            print(f"{name}: {model.dimension} dimensions, label sets {model.label_sets or 'none'}")
        most = info.limits
        print(f"a request has at most {most.max_texts} texts, {most.max_body_bytes} bytes")
        seconds = []
        for i in range(asked.requests):
            started = time.perf_counter()
            client.predict([f"Parcel {i} never came."], LABELS)  # another text each time
            seconds.append(time.perf_counter() - started)
    median, slow = np.percentile(np.array(seconds) * 1000, [50, 95])
    print(f"{asked.requests} requests: median {median:.0f} ms, 95 % below {slow:.0f} ms")
    metrics = requests.get(f"{asked.url}/metrics", headers=headers, timeout=10)
    names = sorted(set(re.findall(r"^# TYPE (\w*sce_\w+)", metrics.text, re.M)))
    print(f"/metrics: {len(names)} of ours, such as {', '.join(names[:3])}")
    return 0 if median <= asked.slowest else 1


if __name__ == "__main__":
    sys.exit(main())
