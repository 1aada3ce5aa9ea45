"""The HTTP client: answers as `Predictor` does, and needs neither torch nor a model.

from sce.client import Client

client = Client("http://localhost:8000", token="...")
client.predict(["The parcel never came."], ["late delivery", "billing"])
"""

from sce.client.client import Client, EmbeddedTexts
from sce.client.connection import (
    EndpointError,
    EndpointUnavailable,
    LimitExceeded,
    NotAuthorised,
    RequestRefused,
)
from sce.client.served import EndpointInfo, RequestLimits, ServedLabelSet, ServedModel

__all__ = [
    "Client",
    "EmbeddedTexts",
    "EndpointError",
    "EndpointInfo",
    "EndpointUnavailable",
    "LimitExceeded",
    "NotAuthorised",
    "RequestLimits",
    "RequestRefused",
    "ServedLabelSet",
    "ServedModel",
]
