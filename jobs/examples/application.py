"""An application's developer: messages as they come, routed by a server that others operate.

    make serve     # or: sce serve --model runs/quickstart/model
    python jobs/examples/application.py --url http://127.0.0.1:8000

Needs `sce.client` alone, no torch and no model. Messages that nobody is sure of go to a person; a
server that is busy or restarts is waited for; one bad message does not hinder the others.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from sce.client import Client, EndpointUnavailable, RequestRefused

QUEUES = {
    "logistics": "parcels that are late, lost or at the wrong place",
    "accounting": "invoices, payments and charges",
    "technicians": "something is broken or does not start",
}
MESSAGES = ["The parcel never came.", "I was charged twice.", "It will not turn on.", "", "Hello?"]
A_PERSON = "a person"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--threshold", type=float, default=0.5)
    asked = parser.parse_args(argv)
    token = os.environ.get("SCE_ENDPOINT_TOKEN")
    try:
        with Client(asked.url, token=token, patience_seconds=10) as client:
            for message, queue in zip(MESSAGES, route(client, MESSAGES, asked.threshold)):
                print(f"{queue:12} <- {message!r}")
    except EndpointUnavailable as error:  # away for longer than our patience: try again later
        print(error, file=sys.stderr)
        return 1
    except RequestRefused as error:  # ours to mend: says which field, and what is allowed
        print(error, file=sys.stderr)
        return 2
    return 0


def route(client: Client, messages: Sequence[str], threshold: float) -> list[str]:
    """The queue of each message; `A_PERSON` where the server is not sure, or cannot read it."""
    answers = client.predict(messages, QUEUES, threshold=threshold)
    return [answer.label or A_PERSON for answer in answers]


if __name__ == "__main__":
    sys.exit(main())
